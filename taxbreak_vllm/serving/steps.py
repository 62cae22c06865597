"""What a step is: scheduler output in; phase, batch and graph mode out.

vLLM is not imported: its objects are described by the protocols below (vllm/v1/core/sched/output.py, 0.26 to 0.33).
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from taxbreak_vllm.model.step import Batch, GraphMode, Phase

_PROMPT_PHASES = frozenset({Phase.PREFILL, Phase.MIXED, Phase.ENCODE})


class NewRequest(Protocol):
    """The part of vLLM's NewRequestData that is read."""

    req_id: str
    prompt_token_ids: Sequence[int] | None
    num_computed_tokens: int


class CachedRequests(Protocol):
    """The part of vLLM's CachedRequestData that is read: parallel lists, one entry per request."""

    req_ids: list[str]
    resumed_req_ids: set[str]
    num_output_tokens: list[int]
    num_computed_tokens: list[int]


class ScheduledStep(Protocol):
    """The part of vLLM's SchedulerOutput that is read."""

    scheduled_new_reqs: Sequence[NewRequest]
    scheduled_cached_reqs: CachedRequests
    num_scheduled_tokens: Mapping[str, int]
    total_num_scheduled_tokens: int
    scheduled_spec_decode_tokens: Mapping[str, Collection[int]]
    scheduled_encoder_inputs: Mapping[str, Collection[int]]


class Work(NamedTuple):
    """What one step works on, as far as the scheduler tells; what it samples is in its output."""

    phase: Phase
    num_tokens: int
    num_requests: int = 0
    prompt_tokens: int = 0
    draft_tokens: int = 0

    def batch(self) -> Batch:
        """Return requests and tokens as the step's record holds them, those aside that only its output tells."""
        return Batch(requests=self.num_requests, prompt_tokens=self.prompt_tokens, draft_tokens=self.draft_tokens)


def is_generation(scheduled: ScheduledStep) -> bool:
    """Tell a step in which every request generates; it runs on each step and so reads as little as it can.

    A new request with a single token left after a prefix hit is not looked for here: `classify` finds it.
    """
    cached = scheduled.scheduled_cached_reqs
    if (
        scheduled.scheduled_new_reqs
        or cached.resumed_req_ids
        or scheduled.scheduled_encoder_inputs
        or not all(cached.num_output_tokens)
    ):
        return False
    num_more = scheduled.total_num_scheduled_tokens - len(scheduled.num_scheduled_tokens)
    drafts_by_id = scheduled.scheduled_spec_decode_tokens
    return num_more == (sum(map(len, drafts_by_id.values())) if drafts_by_id else 0)


def classify(scheduled: ScheduledStep) -> Work:
    """Tell a step's phase and tokens from its scheduler output (methodology section 1).

    A request is in its prompt while it is new, resumed after a preemption, has no output yet, or is given more tokens
    than one and its drafts. A new request with a single token left after a prefix hit computes what a decode does.
    """
    num_tokens, num_requests = scheduled.total_num_scheduled_tokens, len(scheduled.num_scheduled_tokens)
    if num_tokens == 0:
        return Work(Phase.IDLE, 0)
    num_drafts = sum(map(len, scheduled.scheduled_spec_decode_tokens.values()))
    num_prompts, prompt_tokens = (0, 0) if is_generation(scheduled) else _count_prompts(scheduled)
    if scheduled.scheduled_encoder_inputs:
        phase = Phase.ENCODE
    elif num_prompts == 0:
        phase = Phase.VERIFY if num_drafts else Phase.DECODE
    else:
        phase = Phase.PREFILL if num_prompts == num_requests else Phase.MIXED
    return Work(phase, num_tokens, num_requests, prompt_tokens, num_drafts)


def num_sampled(scheduled: ScheduledStep) -> int:
    """Count the tokens that a step without drafts samples; the one that ends a prompt is counted where that begins.

    A request that is computed anew after a preemption counts once more for each step of that.
    """
    return len(scheduled.scheduled_new_reqs) + sum(map(bool, scheduled.scheduled_cached_reqs.num_output_tokens))


def is_real(scheduled: ScheduledStep) -> bool:
    """Tell a step that serves someone from an empty one and from vLLM's warm-up."""
    return any(not req_id.startswith("_warmup_") for req_id in scheduled.num_scheduled_tokens)


def _count_prompts(scheduled: ScheduledStep) -> tuple[int, int]:
    """Count the requests in their prompt, and their tokens."""
    tokens_by_id, drafts_by_id = scheduled.num_scheduled_tokens, scheduled.scheduled_spec_decode_tokens
    num_prompts = prompt_tokens = 0
    for new in scheduled.scheduled_new_reqs:
        # drafts may stand behind the last token of a prompt too, where a prefix hit has left no more of it
        num_tokens = tokens_by_id.get(new.req_id, 0) - len(drafts_by_id.get(new.req_id, ()))
        length = _prompt_length(new)
        if num_tokens == 1 and length is not None and 0 < new.num_computed_tokens >= length - 1:
            continue
        num_prompts += 1
        prompt_tokens += num_tokens
    cached = scheduled.scheduled_cached_reqs
    for req_id, num_outputs in zip(cached.req_ids, cached.num_output_tokens, strict=False):
        num_tokens = tokens_by_id.get(req_id, 0)
        if (
            num_outputs == 0
            or req_id in cached.resumed_req_ids
            or num_tokens > 1 + len(drafts_by_id.get(req_id, ()))  # a resumed one, some chunks later
        ):
            num_prompts += 1
            prompt_tokens += num_tokens
    return num_prompts, prompt_tokens


def _prompt_length(new: NewRequest) -> int | None:
    """Return the tokens to compute before the first output; None for a prompt given as embeddings."""
    # the V2 runner is sent a resumed request as a new one, its output so far appended to the prompt
    tokens: Sequence[int] | None = getattr(new, "prefill_token_ids", None) or new.prompt_token_ids
    return None if tokens is None else len(tokens)


class GraphModes:
    """The CUDA graph mode vLLM's dispatcher picks for a step, told from the resolved configuration.

    vLLM names the actual mode only when asked before the step, which is done for recorded ones; the others get the
    mode that the same configuration, phase and size lead to (vllm/v1/cudagraph_dispatcher.py).
    """

    def __init__(self, *, decode: GraphMode, mixed: GraphMode, max_tokens: int) -> None:
        self._decode = decode
        self._mixed = mixed
        self._max_tokens = max_tokens

    @classmethod
    def from_config(cls, compilation_config: Any) -> "GraphModes":  # noqa: ANN401 - vLLM's CompilationConfig
        """Read a vLLM CompilationConfig after startup; one that can't be read gives UNKNOWN."""
        try:
            mode = compilation_config.cudagraph_mode
            decode, mixed = GraphMode(mode.decode_mode().name), GraphMode(mode.mixed_mode().name)
            return cls(decode=decode, mixed=mixed, max_tokens=compilation_config.max_cudagraph_capture_size or 0)
        except AttributeError:
            return cls(decode=GraphMode.UNKNOWN, mixed=GraphMode.UNKNOWN, max_tokens=0)

    @property
    def has_graphs(self) -> bool:
        """Whether any step of this server may replay a graph."""
        return not self._decode == self._mixed == GraphMode.NONE

    def of(self, phase: Phase, num_tokens: int) -> GraphMode:
        """Return the mode of a step of this phase and size."""
        mode = self._mixed if phase in _PROMPT_PHASES else self._decode
        return mode if 0 < num_tokens <= self._max_tokens or mode is GraphMode.UNKNOWN else GraphMode.NONE
