"""What the API answers, as dataclasses: msgspec writes them, FastAPI describes them in /openapi.json."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields

from taxbreak_vllm.model.energy import EngineEnergy
from taxbreak_vllm.model.engine import EngineState, unexplained_ratio
from taxbreak_vllm.model.frontend import FrontendState, Waterfall
from taxbreak_vllm.model.step import Phase
from taxbreak_vllm.model.whatif import Gate, WhatIf
from taxbreak_vllm.model.worker import WorkerState
from taxbreak_vllm.service.http.tops import ListedBreakdown
from taxbreak_vllm.service.results.rows import CaptureRow, CaptureStatus, StepRow


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker(WorkerState):
    """A worker's state, and whether it is running."""

    live: bool

    @classmethod
    def of(cls, state: WorkerState, *, live: bool) -> "Worker":
        """Add to a state whether it is of a running worker."""
        return cls(**{field.name: getattr(state, field.name) for field in fields(state)}, live=live)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLoop(EngineState):
    """An engine's loop, and the share of its iterations that no part explains (null before the first)."""

    unexplained_ratio: float | None

    @classmethod
    def of(cls, state: EngineState) -> "EngineLoop":
        """Add the share to an engine's state."""
        members = {field.name: getattr(state, field.name) for field in fields(state)}
        return cls(**members, unexplained_ratio=unexplained_ratio(state))


@dataclass(frozen=True, slots=True)
class Iterations:
    """The loops of the engines that run."""

    engines: list[EngineLoop]


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestWaterfall(Waterfall):
    """A request, and which API server of which server it came to."""

    server_id: str
    api: str

    @classmethod
    def of(cls, waterfall: Waterfall, state: FrontendState) -> "RequestWaterfall":
        """Add to a request whose it is."""
        members = {field.name: getattr(waterfall, field.name) for field in fields(waterfall)}
        return cls(**members, server_id=state.server_id, api=state.api)


@dataclass(frozen=True, slots=True)
class Requests:
    """The API servers that run, with the sums since their start, and some of their requests, the newest first.

    `waterfalls` are null where there is none, and `reason` says why.
    """

    api_servers: list[FrontendState]
    waterfalls: list[RequestWaterfall] | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class SpoolUse:
    """How full the spool is; `pending` captures wait for their analysis."""

    captures: int
    pending: int
    bytes: int


@dataclass(frozen=True, slots=True)
class ResultsUse:
    """How many analyzed steps are kept."""

    steps: int


@dataclass(frozen=True, slots=True)
class AnalyzerUse:
    """How often the analyzer had to be started again."""

    restarts: int


@dataclass(frozen=True, slots=True)
class Status:
    """Servers, spool and analysis at a glance; `energy` of each engine is null but on the sidecar, which reads it."""

    version: str
    now_unix_ns: int
    window_s: int
    servers: list[Worker]
    spool: SpoolUse
    results: ResultsUse
    analyzer: AnalyzerUse
    energy: Sequence[EngineEnergy] | None = None


@dataclass(frozen=True, slots=True)
class StepsPage:
    """Some analyzed steps, newest first; `next` is the cursor of those that follow, null at the end."""

    steps: list[StepRow]
    next: str | None


@dataclass(frozen=True, slots=True)
class CaptureView:
    """A request for steps and how far it came: recorded by the fastest rank, analyzed by the slowest that records."""

    id: str
    status: CaptureStatus
    server_id: str
    steps: int
    phase: Phase | None
    stacks: bool
    recorded: int
    analyzed: int
    failed: int
    created_unix_ns: int
    expires_unix_ns: int

    @classmethod
    def of(cls, row: CaptureRow, now_ns: int) -> "CaptureView":
        """Describe a request as it stands at this time."""
        return cls(
            id=row.capture_id,
            status=row.status(now_ns),
            server_id=row.server_id,
            steps=row.steps,
            phase=row.phase,
            stacks=row.stacks,
            recorded=row.recorded,
            analyzed=row.analyzed,
            failed=row.settled - row.analyzed,
            created_unix_ns=row.created_unix_ns,
            expires_unix_ns=row.expires_unix_ns,
        )


CaptureView.__name__ = CaptureView.__qualname__ = "Capture"  # in /openapi.json, where `capture_id` leads to it


@dataclass(frozen=True, slots=True)
class CaptureOutcome(CaptureView):
    """A request for steps; once it has ended and a step was analyzed, with their breakdown.

    `failure` says why one of the failed steps could not be analyzed, or why the latest one was not recorded.
    """

    failure: str | None = None
    breakdown: ListedBreakdown | None = None


@dataclass(frozen=True, slots=True)
class CapturesPage:
    """Some requests for steps, newest first; `next` is the cursor of those that follow, null at the end."""

    captures: list[CaptureView]
    next: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GateOutcome(Gate):
    """A gate, and whether the recording passes it."""

    passes: bool = field()  # a property there, which is no default here


@dataclass(frozen=True, slots=True, kw_only=True)
class StepWhatIf(WhatIf):
    """What one recorded step says of a change."""

    gates: tuple[GateOutcome, ...]
    step_id: str
    server_id: str
    phase: Phase


@dataclass(frozen=True, slots=True)
class WhatIfs:
    """What recorded steps say of a change, each by itself."""

    answers: list[StepWhatIf]


@dataclass(frozen=True, slots=True)
class TrafficFile:
    """One file of what an engine or an API server keeps, and how large it is."""

    name: str
    bytes: int


@dataclass(frozen=True, slots=True)
class TrafficFiles:
    """What one server keeps of its requests and steps."""

    server_id: str
    files: list[TrafficFile]
