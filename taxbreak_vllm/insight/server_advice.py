"""What to change about a server around its steps: its engine's loop, the messages between processes, its API servers.

In: what the engine, its workers and the API servers publish about themselves. Out: `AdviceReport`. Nothing is advised
on an account that does not close, and every bound is what a device or a request was seen to wait. Settings are those
of vLLM 0.32.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from taxbreak_vllm.insight.plain import WORTH_RATIO
from taxbreak_vllm.model.advice import Advice, AdviceReport, Component, Per, Verdict
from taxbreak_vllm.model.engine import Between, EnginePart, EngineState, unexplained_ratio
from taxbreak_vllm.model.frontend import DELIVERY, FrontendState, Stage
from taxbreak_vllm.model.worker import WorkerState

MIN_ITERATIONS = 100
MIN_REQUESTS = 20
MAX_UNEXPLAINED_RATIO = 0.05
IDLE_RATIO = 0.5  # of an engine's time without any request

_BEFORE_ENGINE = (Stage.PARSE, Stage.RENDER, Stage.SUBMIT)
_EXPLAINED = tuple(part for part in EnginePart if part is not EnginePart.LOOP)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerEvidence:
    """One engine, the workers it has and the API servers before it, which may serve other engines too.

    `iteration_ns` is the mean time from one step to the next in which there were requests. Stages are means a request.
    """

    engine: EngineState
    workers: Sequence[WorkerState] = ()
    frontends: Sequence[FrontendState] = ()

    @property
    def iteration_ns(self) -> float:
        """Return the mean iteration, the waiting for requests left out."""
        idle_ns = self.engine.between_ns.get(Between.NO_WORK, 0)
        return (self.engine.iterations_ns - idle_ns) / max(1, self.engine.num_iterations)

    def exposed_ns(self, *labels: EnginePart | Between) -> float:
        """Return what a device waited for these, a mean of all iterations."""
        engine = self.engine
        parts: tuple[Mapping[Any, int], ...] = (engine.exposed_ns, engine.between_ns)
        return sum(spent.get(label, 0) for label in labels for spent in parts) / max(1, engine.num_iterations)

    def stages_ns(self, *stages: Stage) -> float:
        """Return what a request spent in these stages, a mean of all whose stages are known."""
        spent = sum(state.stages[stage].sum_ns for state in self.frontends for stage in stages if stage in state.stages)
        return spent / max(1, self.num_requests)

    @property
    def request_ns(self) -> float:
        """Return what a request took, a mean."""
        return sum(state.total.sum_ns for state in self.frontends) / max(1, self.num_requests)

    @property
    def num_requests(self) -> int:
        """Return how many requests have known stages."""
        return sum(state.total.num for state in self.frontends)

    @property
    def is_cpu(self) -> bool:
        """Whether ops run on the host itself."""
        return any(worker.server.device_type == "cpu" for worker in self.workers)

    def of_iteration(self, rule: str, component: Component, amount_ns: float, **words: Any) -> Advice | None:  # noqa: ANN401
        """Advise on what a device waits between two steps, where that is worth it; `words` are those of `Advice`."""
        return _worth(rule, component, Per.ITERATION, amount_ns, self.iteration_ns, **words)

    def of_request(self, rule: str, component: Component, amount_ns: float, **words: Any) -> Advice | None:  # noqa: ANN401
        """Advise on what a request waits, where that is worth it; `words` are those of `Advice`."""
        whole_ns = self.request_ns if self.num_requests >= MIN_REQUESTS else 0
        return _worth(rule, component, Per.REQUEST, amount_ns, whole_ns, **words)


def advise_server(
    engines: Sequence[EngineState], workers: Sequence[WorkerState], frontends: Sequence[FrontendState]
) -> AdviceReport:
    """Apply every rule to every engine of one server whose account closes."""
    found: dict[str, Advice] = {}
    reasons = []
    for engine in engines:
        doubt = doubt_of(engine)
        if doubt is not None:
            reasons.append(f"engine {engine.engine}: {doubt}")
        evidence = ServerEvidence(
            engine=engine,
            workers=[worker for worker in workers if worker.server.engine == engine.engine],
            frontends=frontends,
        )
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
    return e.of_iteration(
        "one-process",
        Component.IPC,
        e.exposed_ns(Between.IPC_DISPATCH, Between.IPC_RETURN),
        finding="the device waits for calls on their way to its only worker and for results on their way back",
        change="Run the worker in the engine's own process: there is only one.",
        settings=("--distributed-executor-backend uni",),
        refuted_by="idle_between_steps_seconds_total{cause=~'ipc_.*'} does not fall",
    )


def work_ahead(e: ServerEvidence) -> Advice | None:
    """The loop's own work, one step after another."""
    if e.engine.works_ahead or e.is_cpu:
        return None
    return e.of_iteration(
        "work-ahead",
        Component.ENGINE_LOOP,
        e.exposed_ns(*_EXPLAINED, Between.IPC_DISPATCH, Between.IPC_RETURN),
        finding="the device waits while the engine takes in one step's tokens and schedules the next",
        change="Schedule the next step while the device works on this one.",
        settings=("--async-scheduling",),
        refuted_by="vLLM logs that asynchronous scheduling cannot be used with these settings",
    )


def less_output_work(e: ServerEvidence) -> Advice | None:
    """Taking in a step's tokens and handing them on, each step."""
    return e.of_iteration(
        "less-output-work",
        Component.ENGINE_LOOP,
        e.exposed_ns(EnginePart.UPDATE, EnginePart.POST),
        finding="the device waits while the engine takes in tokens, keeps statistics and hands outputs on",
        change="Hand tokens on in groups, and leave statistics out.",
        settings=("--stream-interval 4", "--disable-log-stats"),
        refuted_by="engine_exposed_seconds_total{part=~'update|post'} does not fall",
    )


def waits_for_frontend(e: ServerEvidence) -> Advice | None:
    """A device without work while a request is still in an API server."""
    return e.of_iteration(
        "api-servers",
        Component.API_SERVER,
        e.exposed_ns(Between.FRONTEND, Between.IPC_INPUT),
        finding="the device has nothing to do while a request is still on its way through the API server",
        change="Give requests more API servers, and their prompts more tokenizer threads.",
        settings=_api_settings(e),
        refuted_by="idle_between_steps_seconds_total{cause='frontend'} does not fall",
    )


def slow_before_engine(e: ServerEvidence) -> Advice | None:
    """Requests spend their time before the engine sees them."""
    parts = {stage: e.stages_ns(stage) for stage in _BEFORE_ENGINE}
    worst = max(parts, key=lambda stage: parts[stage])
    return e.of_request(
        "before-the-engine",
        Component.API_SERVER,
        sum(parts.values()),
        finding=f"it is in the API server before the engine has it, most of that in '{worst}'",
        change="Give requests more API servers, and their prompts more tokenizer threads.",
        settings=_api_settings(e),
        refuted_by=f"request_stage_seconds{{stage='{worst}'}} does not fall: then a single request is that slow",
    )


def slow_delivery(e: ServerEvidence) -> Advice | None:
    """Requests wait for their last output to be made into an answer."""
    return e.of_request(
        "delivery",
        Component.API_SERVER,
        e.stages_ns(*DELIVERY),
        finding="its last token is known to the engine and not yet sent: the API server is behind",
        change="Send tokens in groups, or have more API servers make them into answers.",
        settings=("--stream-interval 4", f"--api-server-count {len(e.frontends) + 1} or more"),
        refuted_by="event_loop_lag_seconds is near zero: then the event loop was not busy",
    )


def queueing(e: ServerEvidence) -> Advice | None:
    """Requests wait to be scheduled."""
    return e.of_request(
        "queue",
        Component.ENGINE_LOOP,
        e.stages_ns(Stage.QUEUE),
        finding="it waits until the engine schedules it for the first time",
        change="Let more requests share a step, or share the load among more servers.",
        settings=("--max-num-seqs (larger)", "--max-num-batched-tokens (larger)"),
        refuted_by="vllm:kv_cache_usage_perc is near 1: then memory is what is missing",
    )


def more_cpu(e: ServerEvidence) -> Advice | None:
    """A thread that the device waits for was ready to run and had no CPU."""
    mean_worker_ns = e.engine.worker_ns / max(1, e.engine.num_iterations)
    waits_ns = {f"engine {e.engine.engine}": (e.engine.runqueue_wait_ratio or 0.0) * e.exposed_ns(*EnginePart)}
    waits_ns |= {
        f"the worker of rank {worker.server.rank}": (worker.runqueue_wait_ratio or 0.0) * mean_worker_ns
        for worker in e.workers
    }
    worst = max(waits_ns, key=lambda thread: waits_ns[thread])
    return e.of_iteration(
        "more-cpu",
        Component.MACHINE,
        waits_ns[worst],
        finding=f"{worst} is ready to run and has no CPU",
        change="Give the server more CPUs, or pin its processes so that they do not share one.",
        settings=("more CPUs for the container", "taskset, or --numa-bind"),
        refuted_by="runqueue_wait_ratio stays, or the machine's CPUs are idle",
    )


def more_cpu_for_api(e: ServerEvidence) -> Advice | None:
    """An API server's event loop was ready to run and had no CPU."""
    ratio = max((state.runqueue_wait_ratio or 0.0 for state in e.frontends), default=0.0)
    return e.of_request(
        "more-cpu-for-api",
        Component.MACHINE,
        ratio * e.stages_ns(*_BEFORE_ENGINE, *DELIVERY),
        finding="the API server is ready to run and has no CPU",
        change="Give the server more CPUs, or pin its processes so that they do not share one.",
        settings=("more CPUs for the container", "taskset, or --numa-bind"),
        refuted_by="runqueue_wait_ratio stays, or the machine's CPUs are idle",
    )


def fewer_servers(e: ServerEvidence) -> Advice | None:
    """Most of the time there is no request."""
    engine = e.engine
    idle_ns = engine.between_ns.get(Between.NO_WORK, 0)
    return _worth(
        "fewer-servers",
        Component.MACHINE,
        Per.ITERATION,
        idle_ns / max(1, engine.num_iterations),
        engine.iterations_ns / max(1, engine.num_iterations),
        finding="the engine has no request",
        change="Serve the same load with fewer servers, or scale them down with it.",
        settings=("fewer replicas", "--data-parallel-size (smaller)"),
        refuted_by="requests come in bursts that fewer servers could not take",
        worth_ratio=IDLE_RATIO,
    )


def _worth(
    rule: str,
    component: Component,
    per: Per,
    amount_ns: float,
    whole_ns: float,
    *,
    finding: str,
    change: str,
    settings: tuple[str, ...],
    refuted_by: str,
    worth_ratio: float = WORTH_RATIO,
) -> Advice | None:
    ratio = amount_ns / whole_ns if whole_ns > 0 else 0.0
    if ratio < worth_ratio:
        return None
    return Advice(
        rule=rule,
        component=component,
        phase=None,
        finding=f"for {ratio:.0%} of {'an iteration' if per is Per.ITERATION else 'a request'} {finding}",
        change=change,
        settings=settings,
        at_most_ns=round(amount_ns),
        at_most_ratio=ratio,
        refuted_by=refuted_by,
        per=per,
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
    less_output_work,
    waits_for_frontend,
    more_cpu,
    fewer_servers,
    *RULES_ON_REQUESTS,
)
