"""Many servers at once: a row for each recorded step, and what can be said across hosts, versions and models.

Durations are integer ns, shares 0 to 1. `None` is what could not be known, with a reason beside it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

FIGURES_SCHEMA = "taxbreak.fleet/1"
REPORT_SCHEMA = "taxbreak.fleet-report/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Predicted:
    """What a change would win of one recorded step: `model.forecast.Forecast` as a row keeps it."""

    change: str
    win_ratio: float | None = None
    low_ratio: float | None = None
    high_ratio: float | None = None
    refused: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRow:
    """One recorded step of one server: a row of the table that `fleet analyze` makes, `taxbreak.fleet/1`.

    `capture` is the digest of the capture in the archive, so a row is known by it. `settings` is the hash of the
    server's configuration. `step_ns` is the recorded step (its iteration where outputs are asynchronous), `plain_ns`
    the median of plain ones like it, `dilation` their ratio. `exposed_ns` is what the device waited for the host,
    `engine_ns` what it waited for the engine's thread, `limit_ns` the least its device work could take. `is_asked`:
    somebody asked for this step, so it stands for no others. From `cpu` on it is its worker's host (`model.host`).
    `reason` says why figures are None.
    """

    capture: str
    model: str
    vllm: str
    gpu: str
    device_type: str
    host: str
    place: str
    server: str
    engine: str
    rank: int
    settings: str
    torch: str
    started_unix_ns: int
    step_id: str
    phase: str
    graph_mode: str
    requests: int | None
    tokens: int | None
    step_ns: int
    plain_ns: int | None
    num_plain: int
    dilation: float | None
    residual: float | None
    delta_ft_ns: int | None
    delta_ct_ns: int | None
    delta_kt_ns: int | None
    orchestration_ns: int | None
    exposed_ns: int | None
    active_ns: int
    idle_ns: int | None
    hdbi: float | None
    engine_ns: int | None
    limit_ns: int | None
    bound: str | None
    mfu: float | None
    mbu: float | None
    launches: int | None
    kernels: int
    is_asked: bool
    cpu: str | None
    governor: str | None
    num_cpus: int | None
    num_allowed: int | None
    cpu_limit: float | None
    throttled_ratio: float | None
    runqueue_wait_ratio: float | None
    reason: str | None
    predicted: tuple[Predicted, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Broken:
    """A capture that could not be analyzed, and why."""

    capture: str
    key: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Shift:
    """A change of level over hosts, `change` of it between `low` and `high` nine times of ten.

    A ratio less one for a time, a difference for an HDBI. `p_value` is how often hosts that did not change would differ
    as much. They are None with a `reason`.
    """

    num_hosts: int
    change: float | None = None
    low: float | None = None
    high: float | None = None
    p_value: float | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepKind:
    """Steps that are compared with one another; `tokens` is from and up to how many, None where they do not tell."""

    model: str
    gpu: str
    phase: str
    graph_mode: str
    tokens: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A figure of one kind of step before and after: at a deploy (`before`, `after` are versions) or at a time.

    `from_unix_ns` to `to_unix_ns` is when hosts changed. `was` and `is_now` are medians over hosts, in ns or HDBI.
    """

    kind: StepKind
    figure: str
    before: str | None
    after: str | None
    from_unix_ns: int
    to_unix_ns: int
    was: float | None
    is_now: float | None
    shift: Shift
    is_found: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A fact in which a host differs from `num_others` like ones."""

    fact: str
    own: str
    others: str
    num_others: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlier:
    """A host apart from like ones: `ratio` of their median less one, `score` robust standard deviations.

    `vllm` is None where several versions tell it together. `differences` is what else sets it apart; none where
    nothing recorded does.
    """

    model: str
    gpu: str
    vllm: str | None
    host: str
    figure: str
    ratio: float
    score: float
    num_like: int
    num_captures: int
    differences: tuple[Difference, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupRow:
    """Captures that share what `by` names: medians per recorded step, and shares of the step.

    `taxes_ns` are medians by component. `engine_ratio` and `exposed_ratio` are shares of the recorded step that the
    device waited for the engine and for the host. `limit_ratio` is the least time of the device's work over the step.
    """

    by: Mapping[str, str]
    num_captures: int
    num_hosts: int
    hdbi: float | None = None
    step_ns: float | None = None
    taxes_ns: Mapping[str, float | None] = field(default_factory=dict)
    exposed_ratio: float | None = None
    engine_ratio: float | None = None
    limit_ratio: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetWin:
    """What one change would bring across the fleet: of `num_servers` that it was predicted for, the device time won.

    `servers` is that in servers: 3.2 means as much as 3.2 more servers of those. `low` and `high` hold it as the
    replays' intervals do. `num_unknown` servers do not tell, most for `reason`.
    """

    change: str
    model: str
    gpu: str
    servers: float | None = None
    low: float | None = None
    high: float | None = None
    num_servers: int = 0
    num_unknown: int = 0
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetReport:
    """A fleet as its archive tells of it; `taxbreak.fleet-report/1`.

    `num_comparisons` changes and `num_compared` hosts were looked at, so at most a thousandth of each is by chance.
    """

    archive: str
    version: str
    num_captures: int
    num_hosts: int
    num_servers: int
    from_unix_ns: int | None = None
    to_unix_ns: int | None = None
    by: tuple[str, ...] = ()
    groups: tuple[GroupRow, ...] = ()
    changes: tuple[Change, ...] = ()
    num_comparisons: int = 0
    outliers: tuple[Outlier, ...] = ()
    num_compared: int = 0
    wins: tuple[FleetWin, ...] = ()
    broken: tuple[Broken, ...] = ()
    num_broken: int = 0
    notes: tuple[str, ...] = ()
    schema: str = REPORT_SCHEMA

    def to_json(self) -> bytes:
        """Encode as one JSON object."""
        return msgspec.json.encode(self)

    @classmethod
    def from_json(cls, data: bytes) -> "FleetReport":
        """Decode what `to_json` wrote; raises msgspec.ValidationError for anything else."""
        return msgspec.json.decode(data, type=cls)

    def to_builtins(self) -> dict[str, Any]:
        """Return the JSON object as dicts, lists, ints and floats."""
        tree: dict[str, Any] = msgspec.to_builtins(self)
        return tree
