"""What one engine, its workers and the API servers before it tell of the time around the worker's steps.

In: their published states. Out: `ServerEvidence`, which bounds what a change can win of it, and tells the `PARTS` of an
iteration or a request that each rule is about.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from taxbreak_vllm.insight.plain import WORTH_RATIO
from taxbreak_vllm.model.advice import Advice, Component, Per
from taxbreak_vllm.model.engine import Between, EnginePart, EngineState
from taxbreak_vllm.model.frontend import DELIVERY, FrontendState, Stage
from taxbreak_vllm.model.worker import WorkerState

MIN_ITERATIONS = 100
MIN_REQUESTS = 20

BEFORE_ENGINE = (Stage.PARSE, Stage.RENDER, Stage.SUBMIT)
PARTS: Mapping[str, tuple[EnginePart | Between, ...] | tuple[Stage, ...]] = {
    "one-process": (Between.IPC_DISPATCH, Between.IPC_RETURN),
    "work-ahead": (
        *(part for part in EnginePart if part is not EnginePart.LOOP),
        Between.IPC_DISPATCH,
        Between.IPC_RETURN,
    ),
    "api-servers": (Between.FRONTEND, Between.IPC_INPUT),
    "before-the-engine": BEFORE_ENGINE,
    "delivery": DELIVERY,
    "queue": (Stage.QUEUE,),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerEvidence:
    """One engine, the workers it has and the API servers before it, which may serve other engines too.

    `iteration_ns` is the mean time from one step to the next in which there were requests. Stages are means a request.
    """

    engine: EngineState
    workers: Sequence[WorkerState] = ()
    frontends: Sequence[FrontendState] = ()

    @classmethod
    def of_each(
        cls, engines: Sequence[EngineState], workers: Sequence[WorkerState], frontends: Sequence[FrontendState]
    ) -> "list[ServerEvidence]":
        """Put the states of one server together, engine by engine."""
        return [
            cls(
                engine=engine,
                workers=[worker for worker in workers if worker.server.engine == engine.engine],
                frontends=frontends,
            )
            for engine in engines
        ]

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

    @property
    def cpu_waits_ns(self) -> Mapping[str, float]:
        """Return what each thread that the device waits for was ready to run without a CPU, in a mean iteration."""
        mean_worker_ns = self.engine.worker_ns / max(1, self.engine.num_iterations)
        waits = {
            f"engine {self.engine.engine}": (self.engine.runqueue_wait_ratio or 0.0) * self.exposed_ns(*EnginePart)
        }
        return waits | {
            f"the worker of rank {worker.server.rank}": (worker.runqueue_wait_ratio or 0.0) * mean_worker_ns
            for worker in self.workers
        }

    def part(self, rule: str) -> "Part":
        """Return what of a mean iteration or request a rule is about."""
        if rule == "fewer-servers":
            idle_ns = self.exposed_ns(Between.NO_WORK)
            return Part(Per.ITERATION, idle_ns, self.iteration_ns + idle_ns, self.engine.num_iterations)
        if rule == "more-cpu":
            return self._of_iteration(max(self.cpu_waits_ns.values()))
        if rule == "more-cpu-for-api":
            ratio = max((state.runqueue_wait_ratio or 0.0 for state in self.frontends), default=0.0)
            return self._of_request(ratio * self.stages_ns(*BEFORE_ENGINE, *DELIVERY))
        stages = [label for label in PARTS[rule] if isinstance(label, Stage)]
        if stages:
            return self._of_request(self.stages_ns(*stages))
        return self._of_iteration(self.exposed_ns(*(label for label in PARTS[rule] if not isinstance(label, Stage))))

    def _of_iteration(self, spent_ns: float) -> "Part":
        return Part(Per.ITERATION, spent_ns, self.iteration_ns, self.engine.num_iterations)

    def _of_request(self, spent_ns: float) -> "Part":
        return Part(Per.REQUEST, spent_ns, self.request_ns, self.num_requests)


class Part(NamedTuple):
    """What of a mean iteration or request, `whole_ns`, goes to something; `num` of them are known."""

    per: Per
    spent_ns: float
    whole_ns: float
    num: int

    @property
    def ratio(self) -> float:
        """Return the share, 0 where there are too few to tell."""
        return self.spent_ns / self.whole_ns if self.whole_ns > 0 and self.is_known else 0.0

    @property
    def is_known(self) -> bool:
        """Whether there are enough of them."""
        return self.num >= (MIN_REQUESTS if self.per is Per.REQUEST else MIN_ITERATIONS)


def find(
    evidence: ServerEvidence,
    rule: str,
    component: Component,
    *,
    finding: str,
    change: str,
    settings: tuple[str, ...],
    refuted_by: str,
    worth_ratio: float = WORTH_RATIO,
) -> Advice | None:
    """Advise on the part of a rule where it is worth it; None where it is not, or too few tell."""
    part = evidence.part(rule)
    if part.ratio < worth_ratio:
        return None
    return Advice(
        rule=rule,
        component=component,
        phase=None,
        finding=f"for {part.ratio:.0%} of {'an iteration' if part.per is Per.ITERATION else 'a request'} {finding}",
        change=change,
        settings=settings,
        at_most_ns=round(part.spent_ns),
        at_most_ratio=part.ratio,
        refuted_by=refuted_by,
        per=part.per,
        unpredicted="an account tells what a part takes, not what would be left of it",
    )
