"""States of engines and API servers, and requests, as servers might publish them: whole in every sum."""

from dataclasses import replace

from taxbreak_vllm.model.engine import EnginePart, EngineState, IdleFrom, IterationSums
from taxbreak_vllm.model.frontend import (
    DELIVERY,
    SPAN_BUCKETS_NS,
    WAITS,
    FrontendState,
    SpanHistogram,
    Stage,
    Waterfall,
)
from taxbreak_vllm.model.step import Phase

MS = 1_000_000
FAST = {stage: 0 if stage in WAITS else MS // 10 for stage in Stage} | {Stage.PREFILL: 20 * MS, Stage.DECODE: 40 * MS}


def engine_state(*, num=1000, worker_ms=6.0, exposed=None, between=None, phase=Phase.DECODE, **fields):
    """An engine all of whose iterations are of one phase; `exposed` and `between` are ms of each of them."""
    exposed_ns = {part: round(num * ms * MS) for part, ms in (exposed or {EnginePart.LOOP: 0.01}).items()}
    between_ns = {cause: round(num * ms * MS) for cause, ms in (between or {}).items()}
    worker_ns = round(num * worker_ms * MS)
    whole_ns = worker_ns + sum(exposed_ns.values()) + sum(between_ns.values())
    sums = IterationSums(num=num, total_ns=whole_ns, worker_ns=worker_ns, exposed_ns=exposed_ns, between_ns=between_ns)
    state = EngineState(
        server_id="vllm-a",
        engine="0",
        model_name="tiny",
        started_unix_ns=1,
        num_iterations=num,
        iterations_ns=whole_ns,
        worker_ns=worker_ns,
        busy_ns=exposed_ns,
        exposed_ns=exposed_ns,
        between_ns=between_ns,
        phases={phase: sums},
        idle_from=IdleFrom.WORKER_CALLS,
    )
    return replace(state, **fields)


def ahead(**fields):
    """An engine that works a step ahead, with nothing to tell what its device waited for."""
    return engine_state(exposed_ns={}, between_ns={}, phases={}, works_ahead=True, idle_from=None, **fields)


def spans(*durations_ns):
    """The histogram of these durations."""
    counts = [0] * (len(SPAN_BUCKETS_NS) + 1)
    for duration_ns in durations_ns:
        counts[sum(bound_ns < duration_ns for bound_ns in SPAN_BUCKETS_NS)] += 1
    return SpanHistogram(num=len(durations_ns), sum_ns=sum(durations_ns), bucket_counts=tuple(counts))


def frontend_state(*waterfalls, **fields):
    """An API server that has served these requests."""
    state = FrontendState(
        server_id="vllm-a",
        api="0",
        model_name="tiny",
        started_unix_ns=1,
        num_requests=len(waterfalls),
        stages={stage: spans(*(w.stages_ns[stage] for w in waterfalls)) for stage in Stage},
        ttft=spans(*(w.ttft_ns for w in waterfalls)),
        total=spans(*(w.total_ns for w in waterfalls)),
        tokens={stage: spans(*(w.first_token_ns[stage] for w in waterfalls)) for stage in DELIVERY},
        loop_lag=spans(MS // 2),
        runqueue_wait_ratio=0.01,
    )
    return replace(state, **fields)


def waterfall(number=1, *, started_unix_ns=0, engine="0", **stages_ms):
    """A request whose stages are fast, but for those given in ms by name."""
    stages_ns = FAST | {Stage(name): round(ms * MS) for name, ms in stages_ms.items()}
    delivery_ns = {stage: stages_ns[stage] for stage in DELIVERY}
    total_ns = sum(stages_ns.values())
    return Waterfall(
        number=number,
        engine=engine,
        started_unix_ns=started_unix_ns,
        total_ns=total_ns,
        ttft_ns=total_ns - stages_ns[Stage.DECODE],
        stages_ns=stages_ns,
        first_token_ns=delivery_ns,
        num_prompt_tokens=100,
        num_output_tokens=16,
        is_streamed=True,
    )
