"""ΔFT as stacks of frames: what flame graphs and profilers are handed."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

import msgspec

REST = "…"  # the frames that are too small to be drawn
LEAST_DRAWN = 1 / 5000  # of the whole: a screen has no more pixels


class FrameKind(StrEnum):
    """What a frame is: the phase of the steps, a Python function, an op."""

    PHASE = "phase"
    PYTHON = "python"
    OP = "op"


KINDS = tuple(FrameKind)


@dataclass(frozen=True, slots=True, kw_only=True)
class HostStacks:
    """ΔFT of some steps, or of a trace, as a tree of frames in columns, parents before their children.

    Frame i stands under frame `parent[i]` (-1: none), `name[i]` indexes `names`, `kind[i]` indexes `kinds`.
    `delta_ft_ns[i]` is its own, without that of the frames in it: all of them sum to the ΔFT of the breakdown.
    `exposed_ns[i]` is its own exposed ΔFT; None where it is not known what the device waited for. `num_steps` are the
    steps of each phase, `has_python` tells whether Python functions were recorded, `reason` why there is no frame.
    """

    title: str
    names: tuple[str, ...] = ()
    kinds: tuple[FrameKind, ...] = KINDS
    parent: tuple[int, ...] = ()
    name: tuple[int, ...] = ()
    kind: tuple[int, ...] = ()
    delta_ft_ns: tuple[int, ...] = ()
    exposed_ns: tuple[int, ...] | None = None
    num_steps: Mapping[str, int] = field(default_factory=dict)
    has_python: bool = False
    reason: str = ""

    def stack(self, frame: int) -> Iterator[int]:
        """Return a frame and those it stands under, innermost first."""
        while frame >= 0:
            yield frame
            frame = self.parent[frame]

    def trimmed(self, min_ratio: float = LEAST_DRAWN) -> "HostStacks":
        """Put frames that hold less than this share of the whole together, as one frame under what they stand under."""
        ft_ns = self._with_children(self.delta_ft_ns)
        exposed_ns = None if self.exposed_ns is None else self._with_children(self.exposed_ns)
        least = [min_ratio * sum(own) for own in (self.delta_ft_ns, self.exposed_ns or ())]
        columns: list[list[int]] = [[], [], [], [], []]
        place: list[int] = []  # of each frame, or of what it was put into
        rest: dict[int, int] = {}
        names = [*self.names, REST]
        for i, parent in enumerate(self.parent):
            is_in_rest = parent >= 0 and columns[1][place[parent]] == len(self.names)
            is_large = ft_ns[i] >= least[0] or (exposed_ns is not None and exposed_ns[i] >= least[1] > 0)
            under = -1 if parent < 0 else place[parent]
            if is_in_rest:
                place.append(under)
            elif is_large or parent < 0:
                place.append(_append(columns, under, self.name[i], self.kind[i]))
            else:
                if under not in rest:
                    rest[under] = _append(columns, under, len(self.names), self.kind[i])
                place.append(rest[under])
            columns[3][place[i]] += self.delta_ft_ns[i]
            columns[4][place[i]] += self.exposed_ns[i] if self.exposed_ns is not None else 0
        used = {number: at for at, number in enumerate(sorted(set(columns[1])))}
        return replace(
            self,
            names=tuple(names[number] for number in used),
            parent=tuple(columns[0]),
            name=tuple(used[number] for number in columns[1]),
            kind=tuple(columns[2]),
            delta_ft_ns=tuple(columns[3]),
            exposed_ns=None if self.exposed_ns is None else tuple(columns[4]),
        )

    def to_json(self) -> bytes:
        """Encode as one JSON object."""
        return msgspec.json.encode(self)

    def _with_children(self, own_ns: Sequence[int]) -> list[int]:
        total_ns = list(own_ns)
        for i in range(len(total_ns) - 1, -1, -1):
            if self.parent[i] >= 0:
                total_ns[self.parent[i]] += total_ns[i]
        return total_ns


def _append(columns: list[list[int]], *frame: int) -> int:
    for column, value in zip(columns, (*frame, 0, 0), strict=True):
        column.append(value)
    return len(columns[0]) - 1
