"""Between what steps lie under a change, as no recording tells all that it depends on.

In: variants of a graph, any of which may be right, and how long steps take in each without the change. Out: what they
take under it in the one variant or the other, at both ends of each factor's range.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from taxbreak_vllm.model.whatif import Gate
from taxbreak_vllm.whatif.apply import at_both_ends
from taxbreak_vllm.whatif.build import Model
from taxbreak_vllm.whatif.changes import Change
from taxbreak_vllm.whatif.graph import Graph
from taxbreak_vllm.whatif.spans import Spans, means

Variant = tuple[Graph, Sequence[float] | None]  # and what each group of steps takes in it, ns; None: what they took

_FORGIVEN = ("reproduction", "unexplained", "contention")  # what their gates let pass is error all the same


@dataclass(frozen=True, slots=True)
class Answer:
    """What the steps of a group take without a change and with it, and between what that lies, ns."""

    was_ns: int
    point_ns: int
    low_ns: int
    high_ns: int


def interval(
    variants: Iterable[Variant],
    model: Model,
    change: Change,
    groups: Sequence[Spans],
    took_ns: Sequence[float],
    points_ns: Sequence[float],
) -> list[tuple[float, float]]:
    """Return between what each group of steps, which took so long, lies: other by as much as in the variants.

    `points_ns` are what they take in the first variant, in the middle of all ranges.
    """
    found = [points_ns]
    for number, (variant, known_ns) in enumerate(variants):
        befores = took_ns if known_ns is None else known_ns
        ends = at_both_ends(variant, model, change)
        if number == 0 and len(ends) == 1:
            continue  # that is the point
        for changed in ends:
            afters = means(changed, groups)
            found.append([was + after - before for was, after, before in zip(took_ns, afters, befores, strict=True)])
    return [(min(group), max(group)) for group in zip(*found, strict=True)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Missed:
    """By how much answers miss beyond what variants and ranges tell: shares of the step, and of what a change makes."""

    of_step: float
    of_change: float = 0.0

    def ns(self, before_ns: float, after_ns: float) -> float:
        """Return by how much an interval reaches further for it on each side."""
        return self.of_step * before_ns + self.of_change * abs(after_ns - before_ns)


def model_error(gates: Iterable[Gate]) -> float:
    """Return what share of the recording the graph gets wrong, or does not explain, as its gates found."""
    return sum(gate.value for gate in gates if gate.name in _FORGIVEN)
