"""What a step batches: what vLLM's scheduler chose in, sums over its requests and a digest of them out.

The same in a server and in a simulation of it, so that the two can be compared (vllm/v1/core/sched/output.py, 0.26 to
0.33; no vLLM is imported).
"""

from array import array
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple
from zlib import crc32


class Work(NamedTuple):
    """A step: requests in their prompt and their tokens, requests that generate, Σ tokens computed before it."""

    prompt_tokens: int
    num_prefills: int
    num_decodes: int
    context: int


class Batch(NamedTuple):
    """The same, and a digest that tells batches of like sums apart."""

    prompt_tokens: int
    num_prefills: int
    num_decodes: int
    context: int
    digest: int


def work_of(scheduled: Any) -> Work:  # noqa: ANN401 - a SchedulerOutput
    """Add up a step."""
    ids, tokens = [*scheduled.num_scheduled_tokens], [*scheduled.num_scheduled_tokens.values()]
    return _sums(scheduled, ids, tokens, *_progress(scheduled, ids))


def batch_of(scheduled: Any, numbers_of: Callable[[Sequence[str]], Iterable[int]]) -> Batch:  # noqa: ANN401
    """Add up a step, a SchedulerOutput of vLLM's. The digest is of its requests' numbers, tokens and tokens computed
    before, all in order."""
    ids, tokens = [*scheduled.num_scheduled_tokens], [*scheduled.num_scheduled_tokens.values()]
    computed, outputs = _progress(scheduled, ids)
    digest = crc32(array("q", [*numbers_of(ids), *tokens, *computed]).tobytes())
    return Batch(*_sums(scheduled, ids, tokens, computed, outputs), digest)


def _progress(scheduled: Any, ids: list[str]) -> tuple[list[int], list[int]]:  # noqa: ANN401
    """Return how many tokens of each request were computed, and how many it was given, before the step."""
    cached = scheduled.scheduled_cached_reqs
    computed: list[int] = cached.num_computed_tokens
    outputs: list[int] = cached.num_output_tokens
    if ids != cached.req_ids:  # some are new, or in another order
        computed_by_id = dict(zip(cached.req_ids, computed, strict=True))
        computed_by_id.update((new.req_id, new.num_computed_tokens) for new in scheduled.scheduled_new_reqs)
        outputs_by_id = dict(zip(cached.req_ids, outputs, strict=True))
        computed, outputs = [computed_by_id[i] for i in ids], [outputs_by_id.get(i, 0) for i in ids]
    return computed, outputs


def _sums(scheduled: Any, ids: list[str], tokens: list[int], computed: list[int], outputs: list[int]) -> Work:  # noqa: ANN401
    num_tokens = sum(tokens)
    resumed = scheduled.scheduled_cached_reqs.resumed_req_ids
    if num_tokens == len(ids) and all(outputs) and not resumed:
        return Work(0, 0, len(ids), sum(computed))
    drafts_by_id = scheduled.scheduled_spec_decode_tokens
    decoding = [
        num
        for req_id, num, num_outputs in zip(ids, tokens, outputs, strict=True)
        if num_outputs and num - len(drafts_by_id.get(req_id, ())) == 1 and req_id not in resumed
    ]
    return Work(num_tokens - sum(decoding), len(ids) - len(decoding), len(decoding), sum(computed))


def numbers_of_names(ids: Sequence[str]) -> Iterable[int]:
    """Return the numbers of requests that are named by them, as those of a simulation are."""
    return map(int, ids)
