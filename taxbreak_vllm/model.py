"""The nouns of the project: what one stage hands to the next, and the schema of its JSON.

Every class is a frozen, slotted dataclass; msgspec encodes and strictly decodes them, so the JSON on disk, in the API
and in `--json` is this file. Durations are integer nanoseconds (`_ns`); `None` is what could not be measured, never 0.
Symbols (ΔFT, ΔCT, ΔKT, HDBI, TKLQT) are those of TaxBreak (arXiv 2603.12465) and SKIP (ISPASS 2025).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

if TYPE_CHECKING:
    import pandas as pd

BREAKDOWN_SCHEMA = "taxbreak.breakdown/1"

# Upper bounds of the step-time histogram: 0.1 ms to 10 s, 1-2-5 series; a last, unbounded bucket follows.
STEP_BUCKETS_NS = (*(m * 10**e for e in range(5, 10) for m in (1, 2, 5)), 10**10)

Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]  # in what is read from the spool: SQLite holds no more


class Phase(StrEnum):
    """What a step works on (methodology section 1)."""

    PREFILL = "prefill"
    DECODE = "decode"
    MIXED = "mixed"
    VERIFY = "verify"
    ENCODE = "encode"
    IDLE = "idle"


class Attribution(StrEnum):
    """Whose definitions: ours, where no instant counts twice, or the papers' (`paper.py`)."""

    EXCLUSIVE = "exclusive"
    PAPER = "paper"


class Tier(StrEnum):
    """Where a baseline comes from, best first (methodology section 6)."""

    REPLAYED = "replayed"
    FAMILY = "family"
    TRACE = "trace"
    FLOOR = "floor"


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Requests and tokens of a step; `None` where the source does not tell.

    `draft_tokens` were proposed by speculative decoding and checked in this step, `accepted_tokens` of them were kept.
    """

    requests: Int64 | None = None
    prompt_tokens: Int64 | None = None
    output_tokens: Int64 | None = None
    draft_tokens: Int64 | None = None
    accepted_tokens: Int64 | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """One worker of one server: the labels of everything it produces."""

    server_id: str
    engine: str = "0"
    rank: Int64 = 0
    model_name: str = ""
    dtype: str = ""
    device_type: str = ""
    device_name: str = ""
    torch: str = ""
    vllm: str = ""
    pid: Int64 = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StepInfo:
    """One recorded step as the worker knew it; `step.json` of a capture.

    `step_id` is unique across servers and ranks and safe as a file name. `window_ns` is the recorded (profiled) step,
    `plain_window_ns` the median of the last `num_plain` unrecorded steps of the same phase, token bucket and graph mode
    (None while there are none). `overhead_ns` is what recording cost the step besides its dilation (profiler start and
    stop); `op_cost_ns` is what the profiler adds to each op it records, calibrated once in this process with empty ops.
    No prompt, token or request id is ever stored.
    """

    step_id: str
    step_index: Int64
    server: Server
    phase: Phase
    batch: Batch
    graph_mode: str
    started_unix_ns: Int64
    window_ns: Int64
    plain_window_ns: Int64 | None = None
    num_plain: Int64 = 0
    overhead_ns: Int64 = 0
    op_cost_ns: Int64 | None = None
    async_output: bool = False
    capture_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepHistogram:
    """Plain (unrecorded) steps of one phase and graph mode: count, sum and counts per bucket of `STEP_BUCKETS_NS`."""

    phase: Phase
    graph_mode: str
    num_steps: Int64
    sum_ns: Int64
    bucket_counts: tuple[Int64, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerState:
    """What a worker publishes about itself about once a second; `state.json` beside its captures.

    Counters start at zero with the process. `overhead_ns` is all time recording has taken from serving: profiler start
    and stop, dilation, and what storing takes, counted as if steps had waited for all of it. `serving_ns` is the time
    since the hooks were armed. `records` is False for a rank that only times its steps; `max_capture_steps` bounds a
    request (None: it did not say). `enabled` tells whether steps may be recorded now, `off_reason` why not ("disabled",
    "overhead", "hook"). `sample_every` and `overhead_budget_ratio` are in force since the control `control_id` (None:
    since the start); to stay within the budget one step in `sample_every` · `slowdown` is recorded.
    """

    server: Server
    started_unix_ns: Int64
    updated_unix_ns: Int64
    enabled: bool
    records: bool = True
    max_capture_steps: int | None = None
    steps: tuple[StepHistogram, ...] = ()
    num_samples: Int64 = 0
    dropped: Mapping[str, Int64] = field(default_factory=dict)
    overhead_ns: Int64 = 0
    serving_ns: Int64 = 0
    capture_id: str | None = None
    capture_recorded: Int64 = 0
    off_reason: str | None = None
    sample_every: Int64 | None = None
    overhead_budget_ratio: float | None = None
    slowdown: Int64 = 1
    control_id: str | None = None


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


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlState:
    """What was last said about a server's recording, None for nothing yet, and what its workers do."""

    server_id: str
    applied: bool
    control: Control | None
    workers: tuple[WorkerControl, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureRequest:
    """A wish for the next `steps` steps of one server, written into the spool by whoever asks, read by its workers."""

    capture_id: str
    steps: Int64
    phase: Phase | None = None
    stacks: bool = False
    created_unix_ns: Int64 = 0
    expires_unix_ns: Int64 = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class HostTime:
    """The window of the main thread, partitioned: the parts sum to the step's `window_ns` (methodology section 3).

    On `device_type="cpu"` the compute of leaf ops is `blocked_ns`: the host thread waits for its own device.
    """

    python_ns: int = 0
    dispatch_ns: int = 0
    library_ns: int = 0
    launch_ns: int = 0
    runtime_ns: int = 0
    blocked_ns: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class IdleTime:
    """Idle time of the device by cause (methodology section 4)."""

    host_ns: int = 0
    blocked_ns: int = 0
    queue_ns: int = 0
    edge_ns: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceTime:
    """`active_ns + other_active_ns + idle_ns == window_ns`; the parts of `idle` sum to `idle_ns`."""

    window_ns: int = 0
    active_ns: int = 0
    other_active_ns: int = 0
    kernel_sum_ns: int = 0
    idle_ns: int = 0
    idle: IdleTime = field(default_factory=IdleTime)


@dataclass(frozen=True, slots=True, kw_only=True)
class Taxes:
    """ΔFT, ΔCT, ΔKT of a step (TaxBreak Eq. 1-3); a component that could not be measured is None."""

    delta_ft_ns: int | None = None
    delta_ct_ns: int | None = None
    delta_kt_ns: int | None = None
    delta_kt_excess_ns: int | None = None
    orchestration_ns: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExposedTax:
    """The taxes the device actually waited for; they sum to `device.idle.host_ns` (methodology section 4)."""

    delta_ft_ns: int = 0
    delta_ct_ns: int = 0
    delta_kt_ns: int = 0
    other_ns: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyShare:
    """What one family of kernels did: kernels, launches, and the union of its device time."""

    kernels: int = 0
    active_ns: int = 0
    launches: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TopRow:
    """One (op, kernel) pair; on CPU `kernel` is the op itself."""

    op: str
    kernel: str
    family: str
    i_lib: bool
    count: int
    delta_ft_ns: int | None
    delta_ct_ns: int | None
    delta_kt_ns: int | None
    active_ns: int
    tier: Tier


@dataclass(frozen=True, slots=True, kw_only=True)
class StepBreakdown:
    """One step, or the total of a trace (`name` and `number` are None then and left out of the JSON).

    `number` is its place among the steps of its trace, from 0 on: names may repeat.
    """

    name: str | None = None
    number: int | None = None
    phase: Phase | None = None
    graph_mode: str | None = None
    batch: Batch = field(default_factory=Batch)
    window_ns: int = 0
    host: HostTime = field(default_factory=HostTime)
    device: DeviceTime = field(default_factory=DeviceTime)
    taxes: Taxes = field(default_factory=Taxes)
    exposed: ExposedTax = field(default_factory=ExposedTax)
    hdbi: float | None = None
    tklqt_ns: int | None = None
    tklqt_per_kernel_ns: int | None = None
    akd_ns: int | None = None
    inference_latency_ns: int | None = None
    launches: int | None = None
    kernels: int = 0
    unique_kernels: int = 0
    kernels_per_output_token: float | None = None
    families: Mapping[str, FamilyShare] = field(default_factory=dict)
    top: tuple[TopRow, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a breakdown comes from."""

    path: str = ""
    capture_id: str | None = None
    device_type: str = ""
    device_name: str = ""
    torch: str = ""
    vllm: str = ""
    model_name: str = ""
    dtype: str = ""
    server_id: str = ""
    engine: str = ""
    rank: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Observer effect (methodology section 5).

    `dilation` is the recorded step over the median plain one. Where that and the profiler's cost per op are known, the
    cost is taken off ΔFT and `state` is "calibrated"; `residual` is what the step then still takes beyond the plain
    one, as a share of it. `host` and `device` stay as recorded.
    """

    dilation: float | None = None
    op_cost_ns: int | None = None
    residual: float | None = None
    state: str = "uncalibrated"


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """What was read, joined and lost. `linked` and `unlinked` count kernels, `launches` those with an activity.

    `replay` is the share of orchestration time carried by each tier of baseline, `denied_ns` the orchestration time of
    dispatches that are never replayed, in whichever tier they are.
    """

    activities: int = 0
    kernels: int = 0
    linked: int = 0
    unlinked: int = 0
    launches: int = 0
    kernel_launches: int = 0
    graph_launches: int = 0
    launches_without_activity: int = 0
    events: int = 0
    dropped_events: int = 0
    replay: Mapping[Tier, float] = field(default_factory=dict)
    denied_ns: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceShare:
    """One device of a trace: its activities and the union of their time; the steps show the one with most."""

    device: int
    activities: int
    active_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ThreadShare:
    """One host thread that launched work: its launches and the ΔFT + ΔCT they cost; it is in the taxes of the steps."""

    thread: str
    launches: int
    host_tax_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Breakdown:
    """The decomposition of one trace or capture; `taxbreak.breakdown/1`."""

    source: Source
    attribution: Attribution = Attribution.EXCLUSIVE
    calibration: Calibration = field(default_factory=Calibration)
    coverage: Coverage = field(default_factory=Coverage)
    steps: tuple[StepBreakdown, ...] = ()
    total: StepBreakdown = field(default_factory=StepBreakdown)
    devices: tuple[DeviceShare, ...] = ()
    threads: tuple[ThreadShare, ...] = ()
    notes: tuple[str, ...] = ()
    schema: str = BREAKDOWN_SCHEMA

    def to_builtins(self) -> dict[str, Any]:
        """Return the JSON object of interfaces.md as dicts, lists, ints and floats."""
        tree: dict[str, Any] = msgspec.to_builtins(self)
        del tree["total"]["name"], tree["total"]["number"]
        return tree

    def to_json(self) -> bytes:
        """Encode as one JSON object, that of `to_builtins`; steps go there directly, for there may be thousands."""
        total = msgspec.to_builtins(self.total)
        del total["name"], total["number"]
        return msgspec.json.encode({name: getattr(self, name) for name in self.__dataclass_fields__} | {"total": total})

    @classmethod
    def from_json(cls, data: bytes) -> "Breakdown":
        """Decode what `to_json` wrote; raises msgspec.ValidationError for anything else."""
        return msgspec.json.decode(data, type=cls)

    @classmethod
    def from_builtins(cls, tree: object) -> "Breakdown":
        """Convert what `to_builtins` returned; raises msgspec.ValidationError for anything else."""
        return msgspec.convert(tree, cls)

    def to_pandas(self) -> "pd.DataFrame":
        """Return one row per step, op and kernel; durations in ns, missing values as NA."""
        import pandas as pd

        rows = [
            {"step": step.name, "phase": step.phase, **msgspec.to_builtins(row)}
            for step in self.steps
            for row in step.top
        ]
        columns = ["step", "phase", *TopRow.__dataclass_fields__]
        return pd.DataFrame(rows, columns=columns).convert_dtypes()


def sum_or_none(values: Iterable[int | None]) -> int | None:
    """Add what is known; None when nothing is."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def hdbi(active_ns: int, orchestration_ns: int | None) -> float | None:
    """HDBI = T_device / (T_device + T_orchestration): 0 host-bound, 1 device-bound (TaxBreak Eq. 4)."""
    if orchestration_ns is None or active_ns + orchestration_ns == 0:
        return None
    return active_ns / (active_ns + orchestration_ns)


def add_steps(steps: Iterable[StepBreakdown]) -> StepBreakdown:
    """Add steps of separate captures into one total: sums of parts, HDBI of the sums, families added, top rows merged.

    A sum of `None`s stays None; steps without an HDBI have no part in that of the sum. Not for the steps of one trace,
    whose device windows may overlap: a trace's own `total` is taken over the whole trace.
    """
    parts = list(steps)

    def add(cls: type, values: Iterable[Any]) -> Any:  # noqa: ANN401 - any of the all-integer dataclasses above
        rows = list(values)
        return cls(**{name: sum(getattr(row, name) for row in rows) for name in cls.__dataclass_fields__})  # type: ignore[attr-defined]

    taxes = Taxes(**{name: sum_or_none(getattr(s.taxes, name) for s in parts) for name in Taxes.__dataclass_fields__})
    device = DeviceTime(
        **{
            name: sum(getattr(s.device, name) for s in parts)
            for name in ("window_ns", "active_ns", "other_active_ns", "kernel_sum_ns", "idle_ns")
        },
        idle=add(IdleTime, (s.device.idle for s in parts)),
    )
    batch = Batch(**{name: sum_or_none(getattr(s.batch, name) for s in parts) for name in Batch.__dataclass_fields__})
    families = {
        family: add(FamilyShare, (s.families[family] for s in parts if family in s.families))
        for family in sorted({family for s in parts for family in s.families})
    }
    kernels = sum(s.kernels for s in parts)
    phases = {s.phase for s in parts}
    modes = {s.graph_mode for s in parts}
    valid = [s for s in parts if s.hdbi is not None]
    return StepBreakdown(
        phase=phases.pop() if len(phases) == 1 else None,
        graph_mode=modes.pop() if len(modes) == 1 else None,
        batch=batch,
        window_ns=sum(s.window_ns for s in parts),
        host=add(HostTime, (s.host for s in parts)),
        device=device,
        taxes=taxes,
        exposed=add(ExposedTax, (s.exposed for s in parts)),
        hdbi=hdbi(sum(s.device.active_ns for s in valid), sum_or_none(s.taxes.orchestration_ns for s in valid)),
        tklqt_ns=sum_or_none(s.tklqt_ns for s in parts),
        tklqt_per_kernel_ns=sum_or_none(s.tklqt_per_kernel_ns for s in parts),
        akd_ns=device.kernel_sum_ns // kernels if kernels else None,
        inference_latency_ns=sum_or_none(s.inference_latency_ns for s in parts),
        launches=sum_or_none(s.launches for s in parts),
        kernels=kernels,
        unique_kernels=max((s.unique_kernels for s in parts), default=0),
        kernels_per_output_token=kernels / batch.output_tokens if batch.output_tokens else None,
        families=families,
        top=_merge_top(parts),
        notes=tuple(dict.fromkeys(note for s in parts for note in s.notes)),
    )


def _merge_top(steps: list[StepBreakdown], limit: int = 50) -> tuple[TopRow, ...]:
    by_key: dict[tuple[str, str], list[TopRow]] = {}
    for step in steps:
        for row in step.top:
            by_key.setdefault((row.op, row.kernel), []).append(row)
    order = list(Tier)
    merged = [
        TopRow(
            op=op,
            kernel=kernel,
            family=rows[0].family,
            i_lib=rows[0].i_lib,
            count=sum(row.count for row in rows),
            delta_ft_ns=sum_or_none(row.delta_ft_ns for row in rows),
            delta_ct_ns=sum_or_none(row.delta_ct_ns for row in rows),
            delta_kt_ns=sum_or_none(row.delta_kt_ns for row in rows),
            active_ns=sum(row.active_ns for row in rows),
            tier=max((row.tier for row in rows), key=order.index),
        )
        for (op, kernel), rows in by_key.items()
    ]
    merged.sort(key=lambda row: (row.delta_ft_ns or 0) + (row.delta_ct_ns or 0) + row.active_ns, reverse=True)
    return tuple(merged[:limit])
