"""What is read out of the results, row by row: steps, balances, counters, requests for steps. Times are integer ns."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from taxbreak_vllm.model.breakdown import Tier
from taxbreak_vllm.model.step import Phase

CaptureStatus = Literal["running", "done", "expired", "cancelled"]

_ANALYSIS_GRACE_NS = 60 * 10**9


@dataclass(frozen=True, slots=True)
class StepRow:
    """One analyzed step without its breakdown."""

    step_id: str
    server_id: str
    model_name: str
    engine: str
    rank: int
    phase: Phase
    graph_mode: str
    started_unix_ns: int
    capture_id: str | None
    window_ns: int
    active_ns: int
    exposed_ns: int | None
    delta_ft_ns: int | None
    delta_ct_ns: int | None
    delta_kt_ns: int | None
    orchestration_ns: int | None
    hdbi: float | None
    dilation: float | None
    replay: dict[Tier, float]


class Series(NamedTuple):
    """The labels that steps of one kind share."""

    model_name: str
    engine: str
    rank: int
    phase: str


@dataclass(frozen=True, slots=True)
class Balance:
    """The steps of one series whose recorded duration is of one bucket of `STEP_BUCKETS_NS`, within a window.

    `active_ns` and `orchestration_ns` are over the `num_balanced` steps that have an HDBI; `tier_sums` are the
    orchestration time that rests on each `Tier`; `step_id`, `started_unix_ns` and `window_ns` are those of the step
    analyzed last.
    """

    series: Series
    bucket: int
    step_id: str
    started_unix_ns: int
    window_ns: int
    active_ns: int | None
    orchestration_ns: int | None
    num_balanced: int
    tier_sums: tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class Total:
    """One counter since the results file exists; `phase` and `label` are "" where it has none."""

    model_name: str
    engine: str
    rank: int
    phase: str
    counter: str
    label: str
    value: int


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request for steps was not taken: another one is being recorded, or there were too many of late."""

    running_id: str | None = None
    retry_after_ns: int = 0


@dataclass(frozen=True, slots=True)
class CaptureRow:
    """A request for steps and how far it came.

    `recorded` by the fastest rank of the server; `analyzed`, and `settled` (analyzed or set aside), by the slowest rank
    that records, of the engine that is furthest: another may have nothing to do.
    """

    capture_id: str
    server_id: str
    steps: int
    phase: Phase | None
    stacks: bool
    created_unix_ns: int
    expires_unix_ns: int
    recorded: int
    is_cancelled: bool
    analyzed: int
    settled: int

    def status(self, now_ns: int) -> CaptureStatus:
        """Tell how it stands at this time."""
        if self.is_cancelled:
            return "cancelled"
        if self.settled >= self.steps:
            return "done"
        # What was recorded in time may be analyzed a little later.
        grace_ns = _ANALYSIS_GRACE_NS if self.recorded >= self.steps else 0
        return "running" if now_ns < self.expires_unix_ns + grace_ns else "expired"
