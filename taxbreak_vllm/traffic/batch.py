"""What a step batches: what vLLM's scheduler chose in, sums over its requests and a digest of them out.

The same in a server and in a simulation of it, so that the two can be compared (vllm/v1/core/sched/output.py, 0.26 to
0.33; no vLLM is imported).
"""

from collections.abc import Callable
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np


class Batch(NamedTuple):
    """A step's requests: those in their prompt, with their tokens, and those that generate."""

    prompt_tokens: int
    num_prefills: int
    num_decodes: int
    context: int
    digest: int


def batch_of(scheduled: Any, number_of: Callable[[str], int]) -> Batch:  # noqa: ANN401 - a SchedulerOutput
    """Add up a step. The digest is of each request's number, tokens and tokens computed before, in order."""
    tokens_by_id, cached = scheduled.num_scheduled_tokens, scheduled.scheduled_cached_reqs
    computed_by_id = {new.req_id: new.num_computed_tokens for new in scheduled.scheduled_new_reqs}
    resumed, decoding, drafts_by_id = cached.resumed_req_ids, set(), scheduled.scheduled_spec_decode_tokens
    for req_id, computed, num_outputs in zip(
        cached.req_ids, cached.num_computed_tokens, cached.num_output_tokens, strict=True
    ):
        computed_by_id[req_id] = computed
        num_tokens = tokens_by_id.get(req_id, 0) - (len(drafts_by_id.get(req_id, ())) if drafts_by_id else 0)
        if num_outputs and num_tokens == 1 and req_id not in resumed:
            decoding.add(req_id)
    rows = np.array(
        [(number_of(req_id), num, computed_by_id[req_id]) for req_id, num in tokens_by_id.items()], dtype="<i8"
    ).reshape(-1, 3)
    num_tokens, context = rows[:, 1:].sum(axis=0).tolist()
    num_prefills = len(rows) - len(decoding)
    decode_tokens = sum(map(tokens_by_id.__getitem__, decoding))
    return Batch(num_tokens - decode_tokens, num_prefills, len(decoding), context, crc32(rows.tobytes()))
