"""Chains of kernels that run one after another: `taxbreak.fusion/1`."""

from dataclasses import dataclass
from typing import Any

import msgspec

FUSION_SCHEMA = "taxbreak.fusion/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """A fusion candidate: `score` = `count` of the chain / `first_count` of its first kernel.

    `is_maximal`: no longer candidate of the report contains it as often.
    """

    kernels: tuple[str, ...]
    length: int
    count: int
    first_count: int
    score: float
    is_maximal: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthReport:
    """All chains of one length: distinct ones, their occurrences, candidates, and what is left once those are fused."""

    length: int
    distinct: int
    occurrences: int
    candidates: int
    fused: int
    kernels_after: int
    launches_after: int
    ideal_speedup: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FusionReport:
    """Chains of a trace, dearest first. `ideal_speedup` = launches / launches_after, None without launches.

    `kernels_after` and `launches_after` are those left when candidates of every length are fused where they do not
    overlap, the longest first. A launch is saved once all its kernels went into one that begins in an earlier launch.
    """

    path: str = ""
    min_score: float
    kernels: int
    unlinked: int
    launches: int
    kernels_after: int
    launches_after: int
    ideal_speedup: float | None
    by_length: tuple[LengthReport, ...]
    chains: tuple[Chain, ...]
    notes: tuple[str, ...] = ()
    schema: str = FUSION_SCHEMA

    def to_builtins(self) -> dict[str, Any]:
        """Return the report as dicts, lists and numbers."""
        tree: dict[str, Any] = msgspec.to_builtins(self)
        return tree

    def to_json(self) -> bytes:
        """Encode as one JSON object."""
        return msgspec.json.encode(self)
