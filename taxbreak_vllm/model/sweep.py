"""What a server would make of many settings and loads: a point for each, or what a search found for each."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import msgspec

from taxbreak_vllm.model.step import Int64
from taxbreak_vllm.model.workload import Bounds, Latencies, Validation


class Aim(StrEnum):
    """What is searched for: the greatest load that keeps the SLO (goodput), or the fewest replicas that do."""

    THROUGHPUT = "throughput"
    REPLICAS = "replicas"


class Limit(StrEnum):
    """What ended a search: the SLO, that beyond it nothing is known, or that no more was asked for."""

    SLO = "slo"
    UNKNOWN = "unknown"
    ASKED = "asked"


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepPoint:
    """One setting under one load, as `predict` answers it; of a search the one it found, `ended_by` what lies beyond.

    Without an answer `predicted` is None and `reason` says why. `meets_slo` is None without an SLO or an answer.
    `is_on_front`: no other point has as much throughput of a replica with latencies as low.
    """

    changes: Mapping[str, str]
    load: float
    replicas: Int64 = 1
    requests_per_s: float | None = None
    predicted: Latencies | None = None
    band: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    bounds: Bounds | None = None
    meets_slo: bool | None = None
    limit: Limit | None = None
    ended_by: str | None = None
    num_answers: Int64 = 1
    is_on_front: bool = False
    reason: str | None = None

    @property
    def tokens_per_s_replica(self) -> float | None:
        """Throughput for what it costs: tokens a second and replica."""
        return None if self.predicted is None else self.predicted.tokens_per_s / self.replicas


@dataclass(frozen=True, slots=True, kw_only=True)
class Swept:
    """`taxbreak workload sweep`; `taxbreak.workload-sweep/1`.

    `slo` bounds `ttft`, `tpot` and `e2e`, in seconds; it is met where `attainment` of the requests keep to all of it.
    The recording is checked once; where that fails there are no points, and `reason` says why.
    """

    engine: str
    vllm: str
    load: str
    slo: Mapping[str, float]
    attainment: float
    checks: tuple[Validation, ...]
    points: tuple[SweepPoint, ...] = ()
    aim: Aim | None = None
    measured: Latencies | None = None
    reason: str | None = None
    notes: tuple[str, ...] = ()
    schema: str = "taxbreak.workload-sweep/1"

    def to_json(self) -> bytes:
        """Encode as one JSON object."""
        return msgspec.json.encode(self)
