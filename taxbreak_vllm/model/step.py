"""A step as a worker knows it: its phase, its batch, whose it is and how long plain ones like it take.

The JSON of `step.json` in the spool; durations are integer ns, `None` is what could not be known.
"""

from dataclasses import dataclass
from enum import StrEnum

from taxbreak_vllm.model.host import HostFacts
from taxbreak_vllm.model.numbers import Int64 as Int64
from taxbreak_vllm.model.shape import StepWork

# Upper bounds of the step-time histogram: 0.1 ms to 10 s, 1-2-5 series; a last, unbounded bucket follows.
STEP_BUCKETS_NS = (*(m * 10**e for e in range(5, 10) for m in (1, 2, 5)), 10**10)


class Names(StrEnum):
    """Names of which another version may have more: one that is not known here is kept, and is none of the members."""

    @classmethod
    def _missing_(cls, value: object) -> "Names | None":
        if not isinstance(value, str):
            return None
        name = str.__new__(cls, value)
        name._name_ = name._value_ = value
        return name


class Phase(StrEnum):
    """What a step works on (methodology section 1)."""

    PREFILL = "prefill"
    DECODE = "decode"
    MIXED = "mixed"
    VERIFY = "verify"
    ENCODE = "encode"
    IDLE = "idle"


PHASES = tuple(Phase)


class GraphMode(StrEnum):
    """How a step ran: op by op, in pieces of CUDA graphs, or as one (vllm/config/compilation.py, CUDAGraphMode).

    Any spelling of vLLM's names is read; a name that is none of these is `unknown`.
    """

    NONE = "none"
    PIECEWISE = "piecewise"
    FULL = "full"
    UNKNOWN = "unknown"

    @classmethod
    def _missing_(cls, value: object) -> "GraphMode":
        return next((mode for mode in cls if mode.value == str(value).lower()), cls.UNKNOWN)


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
    """One worker of one server: the labels of everything it produces.

    `cuda` is what its torch was built for (`12.9`, `hip 6.4`), `device_uuid` its GPU as DCGM names it (`GPU-…`), `host`
    the machine it runs on (in Kubernetes the node, where NODE_NAME tells). `settings_hash` is alike for two starts of a
    server whose configuration has the same bearing on its steps. Empty is what is not known.
    """

    server_id: str
    engine: str = "0"
    rank: Int64 = 0
    model_name: str = ""
    dtype: str = ""
    device_type: str = ""
    device_name: str = ""
    torch: str = ""
    vllm: str = ""
    cuda: str = ""
    settings_hash: str = ""
    device_uuid: str = ""
    host: str = ""
    pid: Int64 = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StepInfo:
    """One recorded step as the worker knew it; `step.json` of a capture.

    `step_id` is unique across servers and ranks and safe as a file name. `window_ns` is the recorded (profiled) step,
    `plain_window_ns` the median of the last `num_plain` unrecorded steps of the same phase, token bucket and graph mode
    (None while there are none). `overhead_ns` is what recording cost the step besides its dilation (profiler start and
    stop); `op_cost_ns` is what the profiler adds to each op it records, calibrated once in this process with empty ops.
    `num_bracketed` is how many consecutive steps its recording tells of: itself, the one before it, and the one after,
    of which it is enough to know when it began. `iteration_ns` is the time from its start to that (None: there was
    none, or the server had no work for it), `plain_iteration_ns` the median of plain ones of its kind. `work` is what
    decides its FLOPs and bytes (None: the worker could not tell). `host` is what its host was like just then.
    No prompt, token or request id is ever stored.
    """

    step_id: str
    step_index: Int64
    server: Server
    phase: Phase
    batch: Batch
    graph_mode: GraphMode
    started_unix_ns: Int64
    window_ns: Int64
    plain_window_ns: Int64 | None = None
    num_plain: Int64 = 0
    overhead_ns: Int64 = 0
    op_cost_ns: Int64 | None = None
    async_output: bool = False
    capture_id: str | None = None
    num_bracketed: Int64 = 1
    iteration_ns: Int64 | None = None
    plain_iteration_ns: Int64 | None = None
    work: StepWork | None = None
    host: HostFacts | None = None

    @property
    def compared_ns(self) -> tuple[int, int | None]:
        """Return how long it took and how long plain ones like it take.

        Where outputs are asynchronous a step's own time is that of enqueueing: there the iterations are compared, if
        they are known.
        """
        if self.async_output and self.iteration_ns is not None and self.plain_iteration_ns:
            return self.iteration_ns, self.plain_iteration_ns
        return self.window_ns, self.plain_window_ns


@dataclass(frozen=True, slots=True, kw_only=True)
class StepHistogram:
    """Plain (unrecorded) steps of one phase and graph mode: count, sum and counts per bucket of `STEP_BUCKETS_NS`."""

    phase: Phase
    graph_mode: GraphMode
    num_steps: Int64
    sum_ns: Int64
    bucket_counts: tuple[Int64, ...]
