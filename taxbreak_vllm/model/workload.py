"""What a simulation of a server's traffic tells."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from taxbreak_vllm.model.step import Int64


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """The first step that was batched otherwise: what was recorded and what the simulation chose."""

    step: Int64
    recorded: Mapping[str, Int64]
    simulated: Mapping[str, Int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Of one engine's recorded steps, `num_same` of `num_steps` were batched alike, up to the first that was not.

    `num_warming` steps came before those that count, where the oldest of the recording is gone. `ended_early` says what
    ended the comparison before the end of the recording.
    """

    engine: str
    vllm: str
    is_whole: bool
    has_hashes: bool
    num_steps: Int64
    num_same: Int64
    num_warming: Int64
    num_requests: Int64
    num_hit_tokens: Int64
    num_preemptions: Int64
    first_difference: Difference | None = None
    ended_early: str | None = None
    elapsed_ns: Int64 = 0

    @property
    def is_identical(self) -> bool:
        """Whether all steps to the end of the recording were batched alike, and there were any."""
        return 0 < self.num_steps == self.num_same and self.first_difference is None and self.ended_early is None


@dataclass(frozen=True, slots=True, kw_only=True)
class Identities:
    """`taxbreak workload check`; `taxbreak.workload-check/1`."""

    engines: tuple[Identity, ...]
    schema: str = "taxbreak.workload-check/1"

    def to_json(self) -> bytes:
        """Encode as one JSON object."""
        return msgspec.json.encode(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class CostTerm:
    """What one part of a step takes, in one graph mode: ns a step, and for each of what it works on."""

    part: str
    graph_mode: str
    coefficients_ns: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stalls:
    """Steps that took more than twice what they should, and 1 ms more: how many, and their share of all time."""

    num: Int64
    time_ratio: float
    median_ns: Int64
    max_ns: Int64


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """What recorded steps cost: `seen` are the least and the most of each kind of work in one of them.

    `drift_ratio` is how far parts of the recording are apart in what steps of the same work took, as a standard
    deviation.
    """

    num_steps: Int64
    terms: tuple[CostTerm, ...]
    seen: Mapping[str, tuple[Int64, Int64]]
    median_error_ratio: float
    stalls: Stalls
    drift_ratio: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontendFit:
    """What an API server takes, apart from waiting for others; ns.

    A request takes `request_ns`, and `to_engine_ns` on its way. A message takes `from_engine_ns` on its way back
    (below 0 where it leaves before the engine's turn has ended), then `message_ns` and `output_ns` for each output to
    be taken apart, `send_ns` for each to be sent, and `end_ns` more for the end of an answer.
    """

    num_requests: Int64
    request_ns: Int64 = 0
    to_engine_ns: Int64 = 0
    from_engine_ns: Int64 = 0
    message_ns: Int64 = 0
    output_ns: Int64 = 0
    send_ns: Int64 = 0
    end_ns: Int64 = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Fits:
    """`taxbreak workload fit`; `taxbreak.workload-fit/1`."""

    engine: str
    vllm: str
    steps: Fit
    frontend: FrontendFit | None
    schema: str = "taxbreak.workload-fit/1"

    def to_json(self) -> bytes:
        """Encode as one JSON object."""
        return msgspec.json.encode(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Latencies:
    """What clients see; seconds, tokens a second, and shares. None where there is nothing to tell it from."""

    num_requests: Int64
    tokens_per_s: float
    ttft_s: Mapping[str, float] | None = None
    tpot_s: Mapping[str, float] | None = None
    e2e_s: Mapping[str, float] | None = None
    slo_ratio: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """One check before an answer: what was predicted of what is known, and how far off it is, by figure."""

    name: str
    passed: bool
    said: str
    error_ratio: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What a simulated server is busy with, and what its requests' time goes to, of which the most is the bound.

    `frontend_ratio`, `host_ratio` and `device_ratio` are shares of the wall time of the busiest replica, `e2e_ratio`
    those of the mean E2E, which add up to 1: frontend, queue, kv, host, device.
    """

    frontend_ratio: float
    host_ratio: float
    device_ratio: float
    kv_peak_ratio: float
    num_preemptions: Int64
    e2e_ratio: Mapping[str, float]
    bound: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """`taxbreak workload predict`; `taxbreak.workload-prediction/1`. `band` holds the low and high of each figure.

    The checks come in order, and where one fails there is no answer: `predicted` is None and `reason` says why.
    `worker_ratio` is what a worker's steps of a kind take times under another host or a graph, None where that is not
    known.
    """

    engine: str
    vllm: str
    load: str
    changes: Mapping[str, str]
    checks: tuple[Validation, ...]
    measured: Latencies | None = None
    predicted: Latencies | None = None
    band: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    bounds: Bounds | None = None
    reason: str | None = None
    notes: tuple[str, ...] = ()
    worker_ratio: Mapping[str, float | None] = field(default_factory=dict)
    schema: str = "taxbreak.workload-prediction/1"

    def to_json(self) -> bytes:
        """Encode as one JSON object."""
        return msgspec.json.encode(self)
