"""What a step batches: what vLLM's scheduler chose in, sums over its requests and a digest of them out.

The same in a server and in a simulation of it, so that the two can be compared (vllm/v1/core/sched/output.py, 0.26 to
0.33; no vLLM is imported).
"""

from array import array
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple
from zlib import crc32


class Batch(NamedTuple):
    """A step's requests: those in their prompt, with their tokens, and those that generate."""

    prompt_tokens: int
    num_prefills: int
    num_decodes: int
    context: int
    digest: int


def batch_of(scheduled: Any, numbers_of: Callable[[Sequence[str]], Iterable[int]]) -> Batch:  # noqa: ANN401
    """Add up a step, a SchedulerOutput of vLLM's. The digest is of its requests' numbers, tokens and tokens computed
    before, all in order."""
    tokens_by_id, cached = scheduled.num_scheduled_tokens, scheduled.scheduled_cached_reqs
    ids, tokens = list(tokens_by_id), list(tokens_by_id.values())
    num_tokens = sum(tokens)
    computed: list[int] = cached.num_computed_tokens
    outputs: list[int] = cached.num_output_tokens
    if ids != cached.req_ids:  # some are new, or in another order
        computed_by_id = dict(zip(cached.req_ids, computed, strict=True))
        computed_by_id.update((new.req_id, new.num_computed_tokens) for new in scheduled.scheduled_new_reqs)
        outputs_by_id = dict(zip(cached.req_ids, outputs, strict=True))
        computed, outputs = [computed_by_id[i] for i in ids], [outputs_by_id.get(i, 0) for i in ids]
    resumed, drafts_by_id = cached.resumed_req_ids, scheduled.scheduled_spec_decode_tokens
    if num_tokens == len(ids) and all(outputs) and not resumed:
        num_decodes = decode_tokens = len(ids)
    else:
        decoding = [
            num
            for req_id, num, num_outputs in zip(ids, tokens, outputs, strict=True)
            if num_outputs and num - len(drafts_by_id.get(req_id, ())) == 1 and req_id not in resumed
        ]
        num_decodes, decode_tokens = len(decoding), sum(decoding)
    digest = crc32(array("q", [*numbers_of(ids), *tokens, *computed]).tobytes())
    return Batch(num_tokens - decode_tokens, len(ids) - num_decodes, num_decodes, sum(computed), digest)


def numbers_of_names(ids: Sequence[str]) -> Iterable[int]:
    """Return the numbers of requests that are named by them, as those of a simulation are."""
    return map(int, ids)
