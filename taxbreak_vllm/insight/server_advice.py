"""What to change about a server around its steps: its engine's loop, the messages between processes, its API servers.

In: what the engine, its workers and the API servers publish about themselves. Out: `AdviceReport`. Nothing is advised
on an account that does not close, and every bound is what a device or a request was seen to wait. Settings are those
of vLLM 0.32.
"""

from collections.abc import Callable, Sequence

from taxbreak_vllm.insight.server_evidence import BEFORE_ENGINE, MIN_ITERATIONS, ServerEvidence, find
from taxbreak_vllm.model.advice import Advice, AdviceReport, Component, Verdict
from taxbreak_vllm.model.engine import EngineState, unexplained_ratio
from taxbreak_vllm.model.frontend import FrontendState
from taxbreak_vllm.model.worker import WorkerState

MAX_UNEXPLAINED_RATIO = 0.05
_UNI_ON_CPU = "vllm.v1.executor.uniproc_executor.UniProcExecutor"  # vLLM's CPU build makes `uni` two processes
IDLE_RATIO = 0.5  # of an engine's time without any request


def advise_server(
    engines: Sequence[EngineState], workers: Sequence[WorkerState], frontends: Sequence[FrontendState]
) -> AdviceReport:
    """Apply every rule to every engine of one server whose account closes."""
    found: dict[str, Advice] = {}
    reasons = []
    for evidence in ServerEvidence.of_each(engines, workers, frontends):
        doubt = doubt_of(evidence.engine)
        if doubt is not None:
            reasons.append(f"engine {evidence.engine.engine}: {doubt}")
        for rule in RULES if doubt is None else RULES_ON_REQUESTS:
            one = rule(evidence)
            if one is not None and (one.rule not in found or one.at_most_ratio > found[one.rule].at_most_ratio):
                found[one.rule] = one
    advice = tuple(sorted(found.values(), key=lambda one: -one.at_most_ratio))
    verdict = Verdict.ACT if advice else Verdict.WITHHELD if reasons or not engines else Verdict.NO_ACTION
    return AdviceReport(verdict=verdict, advice=advice, reasons=tuple(reasons))


def doubt_of(engine: EngineState) -> str | None:
    """Say why an engine's account bears no advice; None where it does."""
    if engine.off_reason is not None:
        return f"its loop is no longer timed ({engine.off_reason})"
    if engine.num_iterations < MIN_ITERATIONS:
        return f"{engine.num_iterations} iterations were seen, fewer than {MIN_ITERATIONS}"
    if not engine.exposed_ns:
        return "it works ahead, and what its device waited for is not known"
    ratio = unexplained_ratio(engine)
    if ratio is None:
        return "it had nothing to do"
    if ratio > MAX_UNEXPLAINED_RATIO:
        return f"{ratio:.0%} of its iterations are not explained"
    return None


def one_process(e: ServerEvidence) -> Advice | None:
    """Messages to and from the only worker of an engine."""
    if len(e.workers) != 1:
        return None
    return find(
        e,
        "one-process",
        Component.IPC,
        finding="the device waits for calls on their way to its only worker and for results on their way back",
        change="Run the worker in the engine's own process: there is only one.",
        settings=(f"--distributed-executor-backend {_UNI_ON_CPU if e.is_cpu else 'uni'}",),
        refuted_by="taxbreak_idle_between_steps_seconds_total{cause=~'ipc_.*'} does not fall",
    )


def work_ahead(e: ServerEvidence) -> Advice | None:
    """The loop's own work, one step after another."""
    if e.engine.works_ahead or e.is_cpu:
        return None
    return find(
        e,
        "work-ahead",
        Component.ENGINE_LOOP,
        finding="the device waits while the engine takes in one step's tokens and schedules the next",
        change="Schedule the next step while the device works on this one.",
        settings=("--async-scheduling",),
        refuted_by="vLLM logs that asynchronous scheduling cannot be used with these settings",
    )


def waits_for_frontend(e: ServerEvidence) -> Advice | None:
    """A device without work while a request is still in an API server."""
    return find(
        e,
        "api-servers",
        Component.API_SERVER,
        finding="the device has nothing to do while a request is still on its way through the API server",
        change="Give requests more API servers, and their prompts more tokenizer threads.",
        settings=_api_settings(e),
        refuted_by="taxbreak_idle_between_steps_seconds_total{cause='frontend'} does not fall",
    )


def slow_before_engine(e: ServerEvidence) -> Advice | None:
    """Requests spend their time before the engine sees them."""
    worst = max(BEFORE_ENGINE, key=lambda stage: e.stages_ns(stage))
    return find(
        e,
        "before-the-engine",
        Component.API_SERVER,
        finding=f"it is in the API server before the engine has it, most of that in '{worst}'",
        change="Give requests more API servers, and their prompts more tokenizer threads.",
        settings=_api_settings(e),
        refuted_by=f"taxbreak_request_stage_seconds{{stage='{worst}'}} does not fall: a single request is that slow",
    )


def slow_delivery(e: ServerEvidence) -> Advice | None:
    """Requests wait for their last output to be made into an answer."""
    return find(
        e,
        "delivery",
        Component.API_SERVER,
        finding="its last token is known to the engine and not yet sent: the API server is behind",
        change="Send tokens in groups, or have more API servers make them into answers.",
        settings=("--stream-interval 4", f"--api-server-count {len(e.frontends) + 1} or more"),
        refuted_by="taxbreak_event_loop_lag_seconds is near zero: then the event loop was not busy",
    )


def queueing(e: ServerEvidence) -> Advice | None:
    """Requests wait to be scheduled."""
    return find(
        e,
        "queue",
        Component.ENGINE_LOOP,
        finding="it waits until the engine schedules it for the first time",
        change="Let more requests share a step, or share the load among more servers.",
        settings=("--max-num-seqs (larger)", "--max-num-batched-tokens (larger)"),
        refuted_by="vllm:kv_cache_usage_perc is near 1: then memory is what is missing",
    )


def more_cpu(e: ServerEvidence) -> Advice | None:
    """A thread that the device waits for was ready to run and had no CPU."""
    worst = max(e.cpu_waits_ns, key=lambda thread: e.cpu_waits_ns[thread])
    return find(
        e,
        "more-cpu",
        Component.MACHINE,
        finding=f"{worst} is ready to run and has no CPU",
        change="Give the server more CPUs, or pin its processes so that they do not share one.",
        settings=("more CPUs for the container", "taskset, or --numa-bind"),
        refuted_by="taxbreak_runqueue_wait_ratio stays, or the machine's CPUs are idle",
    )


def more_cpu_for_api(e: ServerEvidence) -> Advice | None:
    """An API server's event loop was ready to run and had no CPU."""
    return find(
        e,
        "more-cpu-for-api",
        Component.MACHINE,
        finding="the API server is ready to run and has no CPU",
        change="Give the server more CPUs, or pin its processes so that they do not share one.",
        settings=("more CPUs for the container", "taskset, or --numa-bind"),
        refuted_by="taxbreak_runqueue_wait_ratio stays, or the machine's CPUs are idle",
    )


def fewer_servers(e: ServerEvidence) -> Advice | None:
    """Most of the time there is no request."""
    return find(
        e,
        "fewer-servers",
        Component.MACHINE,
        finding="the engine has no request",
        change="Serve the same load with fewer servers, or scale them down with it.",
        settings=("fewer replicas", "--data-parallel-size (smaller)"),
        refuted_by="requests come in bursts that fewer servers could not take",
        worth_ratio=IDLE_RATIO,
    )


def _api_settings(e: ServerEvidence) -> tuple[str, ...]:
    return f"--api-server-count {len(e.frontends) + 1} or more", "--renderer-num-workers 2 or more"


RULES_ON_REQUESTS: tuple[Callable[[ServerEvidence], Advice | None], ...] = (
    slow_before_engine,
    slow_delivery,
    queueing,
    more_cpu_for_api,
)
RULES: tuple[Callable[[ServerEvidence], Advice | None], ...] = (
    one_process,
    work_ahead,
    waits_for_frontend,
    more_cpu,
    fewer_servers,
    *RULES_ON_REQUESTS,
)
