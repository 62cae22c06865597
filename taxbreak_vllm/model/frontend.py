"""What an API server publishes about the requests it serves: `api-I/state.json` and `api-I/requests.json` in the spool.

A request's time, from its arrival at the API server to the end of its answer, is cut into stages (methodology
section 11) that sum to it. No content and no request id is kept: 32 random bits that vLLM put behind the id at most.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from taxbreak_vllm.model.step import Int64, Names

SPAN_BUCKETS_NS = (*(m * 10**e for e in range(4, 11) for m in (1, 2, 5)), 10**11)
UNKNOWN_ENGINE = -1  # of a request on its way through an API server: any may get it
NO_ENGINE = -2  # of one that ended there
NUM_WATERFALLS = 256  # kept of each API server, the newest


class Stage(Names):
    """The stages of a request, in order; the last four are those of an output's way from the engine to its client."""

    RECEIVE = "receive"  # from the arrival to the end of its body
    PARSE = "parse"  # to the template: JSON, validation, routing
    RENDER = "render"  # template and tokenizer
    SUBMIT = "submit"  # checked, registered, encoded, sent to the engine
    IPC_INPUT = "ipc_input"  # on its way to the engine's scheduler
    QUEUE = "queue"  # waits to be scheduled, and for none of the following
    QUEUE_KV = "queue_kv"  # KV blocks are refused to the request whose turn it is
    QUEUE_ENCODER = "queue_encoder"  # the encoder has no room for it
    QUEUE_GRAMMAR = "queue_grammar"  # its grammar is compiled
    QUEUE_REMOTE_KV = "queue_remote_kv"  # its KV cache is fetched from elsewhere
    PREFILL = "prefill"  # to its first token
    DECODE = "decode"  # to its last token
    IPC_OUTPUT = "ipc_output"  # on its way from the engine to the API server
    DETOKENIZE = "detokenize"
    SERIALIZE = "serialize"  # waits for its turn, made into JSON
    SEND = "send"


WAITS = (Stage.QUEUE_KV, Stage.QUEUE_ENCODER, Stage.QUEUE_GRAMMAR, Stage.QUEUE_REMOTE_KV)
QUEUED = (Stage.QUEUE, *WAITS)
DELIVERY = (Stage.IPC_OUTPUT, Stage.DETOKENIZE, Stage.SERIALIZE, Stage.SEND)


@dataclass(frozen=True, slots=True, kw_only=True)
class SpanHistogram:
    """Durations: how many, their sum, and how many fell into each bucket of `SPAN_BUCKETS_NS`, one more above."""

    num: Int64 = 0
    sum_ns: Int64 = 0
    bucket_counts: tuple[Int64, ...] = (0,) * (len(SPAN_BUCKETS_NS) + 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontendState:
    """The requests one API server has answered since its start; all durations in ns.

    `num_requests` counts those that the engine's client took and that have ended. Of these `stages`, `ttft` (to the
    first byte of the answer after the first output) and `total` (to its end) hold all but `num_failed`, which had no
    end (an error, an abort, a client that left), and `num_unknown`, without vLLM's own stamps (statistics are off, or
    on another machine's clock) or not what a request is (answered in the background, more than 256 of the engine's).
    Of `num_undivided` among these no engine told what they waited for in its queue: all of that is `queue`, and the
    four stages that begin with `queue_` do not have them (`queue_off_reason` of the engine says why).

    `tokens` are the four parts of the delivery of single outputs, of one request in `followed_every`. `loop_lag` is how
    late the event loop was, to about 1 ms. `num_lost` counts requests nobody had time to count, `num_in_flight` those
    that have not ended. `off_reason` says why counting ended. `runqueue_wait_ratio` is, of late, the share of the
    time in which the event loop's thread was ready to run that it waited for a CPU.
    """

    server_id: str = ""
    api: str = "0"
    model_name: str = ""
    pid: Int64 = 0
    started_unix_ns: Int64 = 0
    updated_unix_ns: Int64 = 0
    num_requests: Int64 = 0
    num_failed: Int64 = 0
    num_unknown: Int64 = 0
    num_undivided: Int64 = 0
    num_lost: Int64 = 0
    num_in_flight: Int64 = 0
    stages: Mapping[Stage, SpanHistogram] = field(default_factory=dict)
    ttft: SpanHistogram = field(default_factory=SpanHistogram)
    total: SpanHistogram = field(default_factory=SpanHistogram)
    tokens: Mapping[Stage, SpanHistogram] = field(default_factory=dict)
    followed_every: Int64 = 64
    loop_lag: SpanHistogram = field(default_factory=SpanHistogram)
    runqueue_wait_ratio: float | None = None
    off_reason: str | None = None
    traffic_off_reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Waterfall:
    """One request: what its time went to. `stages_ns` sum to `total_ns`, to the nanosecond; without the four stages
    `queue_...`, all of `queue` is undivided, as no engine told.

    `ttft_ns` is the time to the first byte of its answer after its first output (of an answer in one piece: its end),
    and `first_token_ns` cuts the delivery of that. A request of several choices or prompts is queued until the first
    of them is scheduled, in prefill until one has a token and in decode until all have their last. `number` is the 32
    random bits of vLLM's id; `engine` served it, the first of several.
    """

    number: Int64
    engine: str
    started_unix_ns: Int64
    total_ns: Int64
    ttft_ns: Int64
    stages_ns: Mapping[Stage, Int64]
    first_token_ns: Mapping[Stage, Int64]
    num_prompt_tokens: Int64
    num_output_tokens: Int64
    is_streamed: bool
