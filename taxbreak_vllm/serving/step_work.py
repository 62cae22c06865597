"""What a step's attention and logits work on, as integers: sums over its requests, none of which can be told from them.

In: what the scheduler hands to the worker, which holds every request's tokens of this step and those computed before
(vllm/v1/core/sched/output.py, alike for both model runners). Out: `StepWork`, or None where that does not tell. It is
for recorded steps alone, before the profiler starts, and never raises.
"""

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
    computed_by_id = {new.req_id: new.num_computed_tokens for new in scheduled.scheduled_new_reqs}
    computed_by_id.update(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
    q = np.fromiter(tokens_by_id.values(), dtype=np.int64, count=len(tokens_by_id))
    before = np.fromiter(map(computed_by_id.__getitem__, tokens_by_id), dtype=np.int64, count=len(q))
    k = before + q
    queries = _add(q)
    drafts_by_id = scheduled.scheduled_spec_decode_tokens
    return StepWork(
        queries=queries,
        keys=_add(k),
        pairs=_pairs(q, k),
        logits_rows=len(q) + (sum(map(len, drafts_by_id.values())) if drafts_by_id else 0),
        padded_tokens=_padded(queries, model, graph_mode),
        windows=tuple(_windowed(window, q, before) for window in model.windows) if model else (),
        unpacked=_unpacked(model, q, before),
    )


def _pairs(q: np.ndarray, k: np.ndarray) -> int:
    """Σ[qk − q(q−1)/2]"""
    return int(q @ k) - (int(q @ q) - _add(q)) // 2


def _unpacked(model: ModelShape | None, q: np.ndarray, before: np.ndarray) -> UnpackedWork | None:
    """vLLM absorbs requests of few queries, and unpacks the cache of the others (v1/attention/backends/utils.py,
    split_decodes_and_prefills).
    """
    if model is None or model.absorbed_queries is None:
        return None
    is_unpacked = q > model.absorbed_queries
    q, before = q[is_unpacked], before[is_unpacked]
    return UnpackedWork(queries=_add(q), context=_add(before), pairs=_pairs(q, before + q))


def _windowed(window: int, q: np.ndarray, before: np.ndarray) -> WindowWork:
    """A query sees itself and the `window` − 1 tokens before it."""
    k = before + q
    keys = _add(np.minimum(k, q + (window - 1)))
    return WindowWork(window=window, keys=keys, pairs=_seen(k, window) - _seen(before, window))


def _seen(lengths: np.ndarray, window: int) -> int:
    """Return the pairs of the first so many tokens of each request: 1 + 2 + … up to the window, then all of it each."""
    short = np.minimum(lengths, window)
    num_short = _add(short)
    return (int(short @ short) + num_short) // 2 + window * (_add(lengths) - num_short)


def _add(numbers: np.ndarray) -> int:
    return int(np.add.reduce(numbers))  # half the time of its method


def _padded(queries: int, model: ModelShape | None, graph_mode: GraphMode) -> int:
    if model is None or graph_mode not in (GraphMode.FULL, GraphMode.PIECEWISE):
        return queries
    return min((size for size in model.graph_sizes if size >= queries), default=queries)
