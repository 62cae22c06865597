"""What a worker publishes about itself, and what it is told: `state.json`, `control.json`, `capture.json`."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from taxbreak_vllm.model.ceilings import DeviceProperties
from taxbreak_vllm.model.shape import ModelShape
from taxbreak_vllm.model.step import Int64, Phase, Server, StepHistogram

DISABLED = "disabled"
OVERHEAD = "overhead"
REVOCABLE = frozenset({DISABLED, OVERHEAD})  # reasons why recording is off that a control message can end


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerState:
    """What a worker publishes about itself about once a second; `state.json` beside its captures.

    Counters start at zero with the process. `num_sampled` counts the tokens of all steps, recorded or not (None: with
    drafts). `iterations` are the times from the starts of plain steps to the starts of
    the next ones, those left out in which the server had no work. `overhead_ns` is all time recording has taken from
    serving: profiler start and stop, dilation, and what storing takes, counted as if steps had waited for all of it.
    `serving_ns` is the time since the hooks were armed. `records` is False for a rank that only times its steps;
    `max_capture_steps` bounds a request (None: it did not say). `enabled` tells whether steps may be recorded now,
    `off_reason` why not ("disabled", "overhead", "hook", …). `sample_every` and `overhead_budget_ratio` are in force
    since the control `control_id` (None: since the start); to stay within the budget one step in `sample_every` ·
    `slowdown` is recorded. `capture_refusal` says why the latest step of the request was not recorded. `num_sessions`
    counts the profiler's starts, `num_device_records` what they brought of the device; `cupti_version` is the number
    that CUPTI gives itself. `runqueue_wait_ratio` is, of late, the share of the time in which the steps' thread was
    ready to run that it waited for a CPU. `settings` are those of vLLM that advice is about. `model` is the shape of
    the model on this rank; where it could not be told, `model_reason` says why. `device` is what its device says of
    itself. `notes` are for whoever reads the figures or turns recording on.
    """

    server: Server
    started_unix_ns: Int64
    updated_unix_ns: Int64
    enabled: bool
    records: bool = True
    max_capture_steps: int | None = None
    steps: tuple[StepHistogram, ...] = ()
    iterations: tuple[StepHistogram, ...] = ()
    num_sampled: Int64 | None = None
    num_samples: Int64 = 0
    dropped: Mapping[str, Int64] = field(default_factory=dict)
    overhead_ns: Int64 = 0
    serving_ns: Int64 = 0
    capture_id: str | None = None
    capture_recorded: Int64 = 0
    capture_refusal: str | None = None
    off_reason: str | None = None
    sample_every: Int64 | None = None
    overhead_budget_ratio: float | None = None
    slowdown: Int64 = 1
    control_id: str | None = None
    num_sessions: Int64 = 0
    num_device_records: Int64 = 0
    cupti_attached: bool = False
    cupti_version: int | None = None
    runqueue_wait_ratio: float | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    model: ModelShape | None = None
    model_reason: str | None = None
    device: DeviceProperties | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """How a server shall record from now on, `control.json` in the spool; None leaves what its environment says."""

    control_id: str
    enabled: bool | None = None
    sample_every: Int64 | None = None
    overhead_budget_ratio: float | None = None
    updated_unix_ns: Int64 = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerControl:
    """How one worker records now; the members are those of `WorkerState`."""

    engine: str
    rank: int
    enabled: bool
    off_reason: str | None = None
    sample_every: int | None = None
    overhead_budget_ratio: float | None = None
    slowdown: int = 1
    control_id: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlState:
    """What was last said about a server's recording, None for nothing yet, and what its workers do."""

    server_id: str
    applied: bool
    control: Control | None
    workers: tuple[WorkerControl, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureRequest:
    """A wish for the next `steps` steps of one server, written into the spool by whoever asks, read by its workers.

    `max_stall_ms` bounds what stopping one of its recordings may take, None as the server's setting does.
    """

    capture_id: str
    steps: Int64
    phase: Phase | None = None
    stacks: bool = False
    max_stall_ms: float | None = None
    created_unix_ns: Int64 = 0
    expires_unix_ns: Int64 = 0
