"""The decomposition of a trace or capture: `taxbreak.breakdown/1`.

Every class is a frozen, slotted dataclass; msgspec encodes and strictly decodes them, so the JSON in the API and in
`--json` is this file. Durations are integer nanoseconds (`_ns`); `None` is what could not be measured, never 0.
Symbols (ΔFT, ΔCT, ΔKT, HDBI, TKLQT) are those of TaxBreak (arXiv 2603.12465) and SKIP (ISPASS 2025).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import msgspec

from taxbreak_vllm.model.calibration import Calibration as Calibration
from taxbreak_vllm.model.evidence import Evidence
from taxbreak_vllm.model.forecast import Forecast
from taxbreak_vllm.model.limit import StepLimit
from taxbreak_vllm.model.server import HdbiServer
from taxbreak_vllm.model.step import Batch, GraphMode, Phase

if TYPE_CHECKING:
    import pandas as pd

BREAKDOWN_SCHEMA = "taxbreak.breakdown/1"


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
    """Idle time of the device by cause (methodology section 4); None where it cannot be told (`notes` say why)."""

    host_ns: int | None = 0
    blocked_ns: int | None = 0
    queue_ns: int | None = 0
    edge_ns: int | None = 0

    @classmethod
    def unknown(cls) -> "IdleTime":
        """Return idle time of which nothing is known."""
        return cls(host_ns=None, blocked_ns=None, queue_ns=None, edge_ns=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceTime:
    """`active_ns + other_active_ns + idle_ns == window_ns`; the parts of `idle` sum to `idle_ns`, or are all None.

    Of a step with an `iteration` it is the step's own work, however late it ran, and the idle time of its iteration:
    over consecutive steps the two add up to the wall time. `idle.edge_ns` is then what the engine's part took.
    """

    window_ns: int = 0
    active_ns: int = 0
    other_active_ns: int = 0
    kernel_sum_ns: int = 0
    idle_ns: int | None = 0
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

    delta_ft_ns: int | None = 0
    delta_ct_ns: int | None = 0
    delta_kt_ns: int | None = 0
    other_ns: int | None = 0

    @classmethod
    def unknown(cls) -> "ExposedTax":
        """Return exposed taxes of which nothing is known."""
        return cls(delta_ft_ns=None, delta_ct_ns=None, delta_kt_ns=None, other_ns=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class EnginePart:
    """What the thread of a worker did between its steps: how long, and how much of it the device stood idle for."""

    busy_ns: int = 0
    exposed_ns: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Iteration:
    """A recorded step from its start to the start of the next one on its worker (methodology section 3).

    The device: `active_ns` (launched by the step) + `other_active_ns` + `idle_ns` = `window_ns`, all cut to the
    iteration; `idle` by cause (host, blocked, queue, engine) sums to `idle_ns`. The thread: the step's `host` and the
    `busy_ns` of `engine` sum to `window_ns`. Engine parts: `output` waits for a step's tokens, `loop` is the rest.
    """

    window_ns: int
    active_ns: int
    other_active_ns: int
    idle_ns: int
    idle: Mapping[str, int]
    engine: Mapping[str, EnginePart]


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

    `number` is its place among the steps of its trace, from 0 on: names may repeat. `limit` is of a recorded step of a
    server; where there is none, `limit_reason` says why.
    """

    name: str | None = None
    number: int | None = None
    phase: Phase | None = None
    graph_mode: GraphMode | None = None
    batch: Batch = field(default_factory=Batch)
    window_ns: int = 0
    host: HostTime = field(default_factory=HostTime)
    device: DeviceTime = field(default_factory=DeviceTime)
    taxes: Taxes = field(default_factory=Taxes)
    exposed: ExposedTax = field(default_factory=ExposedTax)
    iteration: Iteration | None = None
    limit: StepLimit | None = None
    limit_reason: str | None = None
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
    """The decomposition of one trace or capture; `taxbreak.breakdown/1`.

    `hdbi_server` is of the steps of a window beside the engines that run; None for any other breakdown. `forecasts` are
    what the changes that advice on this one recording asks for would win, where it was open to be replayed.
    """

    source: Source
    attribution: Attribution = Attribution.EXCLUSIVE
    calibration: Calibration = field(default_factory=Calibration)
    coverage: Coverage = field(default_factory=Coverage)
    evidence: Evidence = field(default_factory=Evidence)
    steps: tuple[StepBreakdown, ...] = ()
    total: StepBreakdown = field(default_factory=StepBreakdown)
    devices: tuple[DeviceShare, ...] = ()
    threads: tuple[ThreadShare, ...] = ()
    hdbi_server: HdbiServer | None = None
    forecasts: tuple[Forecast, ...] = ()
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


def hdbi(active_ns: float, orchestration_ns: float | None) -> float | None:
    """HDBI = T_device / (T_device + T_orchestration): 0 host-bound, 1 device-bound (TaxBreak Eq. 4)."""
    if orchestration_ns is None or active_ns + orchestration_ns == 0:
        return None
    return active_ns / (active_ns + orchestration_ns)
