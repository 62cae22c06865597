"""A change in the words it is asked for in. In: words as `python=2` or `0.5..0.7`. Out: what a recording says of it.

Raises SettingsError, in one line, for what is no change.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from taxbreak_vllm.model.errors import SettingsError
from taxbreak_vllm.model.whatif import WhatIf
from taxbreak_vllm.taxes.recording import Recording
from taxbreak_vllm.trace.kernels import Family
from taxbreak_vllm.whatif.basis import Basis
from taxbreak_vllm.whatif.changes import HOST, Change, Range, RefusedError
from taxbreak_vllm.whatif.compiled import Forward
from taxbreak_vllm.whatif.like import times_like
from taxbreak_vllm.whatif.predict import predict, refuse

if TYPE_CHECKING:  # it opens SQLite
    from taxbreak_vllm.baselines.store import Baselines

_FACTOR = re.compile(r"(\d+(?:\.\d+)?|\.\d+)(?:\.\.(\d+(?:\.\d+)?|\.\d+))?")
_MAX_FACTOR = 1000
_CLASSES = {cls.name.lower(): cls for cls in HOST}
_FAMILIES = {family.value: family for family in Family if family is not Family.COLLECTIVE}
_K = TypeVar("_K")


@dataclass(frozen=True, slots=True)
class Asked:
    """A change, the words for it, and why no recording can tell of it (None: one may).

    `like` has the replayed times of ops; with it a recording must have been read with its calls.
    """

    change: Change
    named: str
    beyond: str | None
    like: "Baselines | None" = None
    compiled: bool = False

    def of(self, recording: Recording, *, basis: Basis | None = None, is_drawn: bool = False) -> WhatIf:
        """Say what the recording says of it, with its timeline where it shall be drawn; raises as `predict` does."""
        if self.beyond is not None:
            return refuse(recording, self.named, self.beyond)
        change = self.change
        try:
            if self.compiled:
                change = replace(change, compiled=Forward.of(recording))
            if self.like is not None:
                change = replace(change, like=times_like(recording, self.like))
        except RefusedError as refusal:
            return refuse(recording, self.named, str(refusal))
        return predict(recording, change, named=self.named, basis=basis, is_drawn=is_drawn)


def asked(
    *,
    host: Iterable[str] = (),
    kernels: Iterable[str] = (),
    graph: str | None = None,
    fuse: Iterable[str] = (),
    floor_us: float | None = None,
    no_sync: Iterable[str] = (),
    is_async: bool = False,
    compiled: bool = False,
    like: "Baselines | None" = None,
) -> Asked:
    """Read a change from the words of each option of `taxbreak whatif`."""
    host, kernels, fuse, no_sync = tuple(host), tuple(kernels), tuple(fuse), tuple(no_sync)
    change = Change(
        host=_factors("--host", host, _CLASSES),
        kernels=_factors("--kernels", kernels, _FAMILIES),
        floor_ns=None if floor_us is None else round(floor_us * 1000),
        full_graph=_is_full(graph),
        fused=tuple(map(_chain, fuse)),
        no_sync=no_sync,
        one_step_ahead=is_async,
    )
    words = (
        *(f"--host {each}" for each in host),
        *(f"--kernels {each}" for each in kernels),
        *([f"--graph {graph}"] if graph else []),
        *(f"--fuse {each}" for each in fuse),
        *([f"--floor-us {floor_us:g}"] if floor_us is not None else []),
        *(f"--no-sync {each}" for each in no_sync),
        *(["--async"] if is_async else []),
        *(["--compiled"] if compiled else []),
        *([f"--like {like.path}"] if like is not None else []),
    )
    return Asked(change, " ".join(words), _beyond(graph), like, compiled)


def _beyond(graph: str | None) -> str | None:
    if graph == "piecewise":
        return "--graph piecewise: needs a measured cost for each piece, and which ops would be left out of graphs"
    return None


def _is_full(graph: str | None) -> bool:
    if graph not in (None, "full", "piecewise"):
        raise SettingsError(f"--graph {graph}: is neither full nor piecewise")
    return graph == "full"


def _chain(text: str) -> tuple[str, ...]:
    parts = tuple(part.strip() for part in text.split(","))
    if len(parts) < 2 or not all(parts):
        raise SettingsError(f"--fuse {text}: give two or more names of kernels with commas between")
    return parts


def _factors(option: str, texts: Iterable[str], known: Mapping[str, _K]) -> dict[_K, Range]:
    """Read factors: of everything known, or of one by its name; the later of two for one thing holds.

    A factor that lies between two values may begin with either.
    """
    found: dict[_K, Range] = {}
    for text in texts:
        name, _, factor = text.rpartition("=")
        match = _FACTOR.fullmatch(factor)
        if match is None:
            raise SettingsError(f"{option} {text}: give a factor, as 1.3, 0.5..0.7 or {next(iter(known))}=2")
        low, high = sorted((float(match[1]), float(match[2] or match[1])))
        if high > _MAX_FACTOR:
            raise SettingsError(f"{option} {text}: a factor goes up to {_MAX_FACTOR}")
        if name and name not in known:
            raise SettingsError(f"{option} {text}: {name!r} is none of {', '.join(known)}")
        found.update(dict.fromkeys([known[name]] if name else known.values(), Range(low=low, high=high)))
    return found
