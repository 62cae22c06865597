"""What a step's attention and logits work on, as integers: sums over its requests, none of which can be told from them.

In: what the scheduler hands to the worker, which holds every request's tokens of this step and those computed before
(vllm/v1/core/sched/output.py, alike for both model runners). Out: `StepWork`, or None where that does not tell. It is
for recorded steps alone, before the profiler starts, and never raises.
"""

from collections.abc import Sequence

import numpy as np

from taxbreak_vllm.model.shape import ModelShape, StepWork, UnpackedWork, WindowWork
from taxbreak_vllm.model.step import GraphMode
from taxbreak_vllm.serving.steps import ScheduledStep


def work_of(scheduled: ScheduledStep, model: ModelShape | None, graph_mode: GraphMode) -> StepWork | None:
    """Add up a step; without a model's shape there are no sliding windows and no padding."""
    try:
        return _work(scheduled, model, graph_mode)
    except Exception:  # another vLLM's output: the step is recorded without this
        return None


def _work(scheduled: ScheduledStep, model: ModelShape | None, graph_mode: GraphMode) -> StepWork | None:
    tokens_by_id, cached = scheduled.num_scheduled_tokens, scheduled.scheduled_cached_reqs
    new = scheduled.scheduled_new_reqs
    ids = [*cached.req_ids, *(each.req_id for each in new)]
    if len(ids) != len(tokens_by_id):
        return None
    computed = [*cached.num_computed_tokens, *(each.num_computed_tokens for each in new)]
    q = np.fromiter(map(tokens_by_id.__getitem__, ids), dtype=np.int64, count=len(ids))
    before = np.fromiter(computed, dtype=np.int64, count=len(ids))  # np.array takes longer
    queries = _add(q)
    drafts_by_id = scheduled.scheduled_spec_decode_tokens
    return StepWork(
        queries=queries,
        keys=queries + _add(before),
        pairs=_pairs(q, before),
        logits_rows=len(q) + (sum(map(len, drafts_by_id.values())) if drafts_by_id else 0),
        padded_tokens=_padded(queries, model, graph_mode),
        windows=_windowed(model.windows, q, before) if model and model.windows else (),
        unpacked=_unpacked(model, q, before),
    )


def _pairs(q: np.ndarray, before: np.ndarray) -> int:
    """Σ[qk − q(q−1)/2], with k = before + q"""
    return int(q @ before) + (int(q @ q) + _add(q)) // 2


def _unpacked(model: ModelShape | None, q: np.ndarray, before: np.ndarray) -> UnpackedWork | None:
    """vLLM absorbs requests of few queries, and unpacks the cache of the others (v1/attention/backends/utils.py,
    split_decodes_and_prefills).
    """
    if model is None or model.absorbed_queries is None:
        return None
    is_unpacked = q > model.absorbed_queries
    q, before = q[is_unpacked], before[is_unpacked]
    return UnpackedWork(queries=_add(q), context=_add(before), pairs=_pairs(q, before))


def _windowed(sizes: Sequence[int], q: np.ndarray, before: np.ndarray) -> tuple[WindowWork, ...]:
    """A query sees itself and the size − 1 tokens before it.

    So the first n tokens of a request make c(c + 1)/2 + (n − c)·size pairs, where c = min(n, size − 1); those of this
    step are what its n = before + q make above n = before.
    """
    c = np.minimum(np.array((before, before + q)), np.array(sizes)[:, None, None] - 1)  # [windows, 2, requests]
    sums, squares, queries = np.add.reduce(c, axis=2).tolist(), np.add.reduce(c * c, axis=2).tolist(), _add(q)
    works = []
    for size, (sum_before, sum_after), (squares_before, squares_after) in zip(sizes, sums, squares, strict=True):
        within, squared = sum_after - sum_before, squares_after - squares_before
        pairs = (squared + within) // 2 + (queries - within) * size
        works.append(WindowWork(window=size, keys=sum_before + queries, pairs=pairs))
    return tuple(works)


def _add(numbers: np.ndarray) -> int:
    return int(np.add.reduce(numbers))  # half the time of its method


def _padded(queries: int, model: ModelShape | None, graph_mode: GraphMode) -> int:
    if model is None or graph_mode not in (GraphMode.FULL, GraphMode.PIECEWISE):
        return queries
    return min((size for size in model.graph_sizes if size >= queries), default=queries)
