"""The recordings of one worker's steps, one at a time: opened for a step that was picked, closed when the next begins.

In: steps as they begin and end. Out: recorded steps, offered to be stored, and what recording them took.
"""

from collections.abc import Callable
from threading import get_ident
from typing import Any

from taxbreak_vllm.model.shape import ModelShape, StepWork
from taxbreak_vllm.model.step import Phase, Server
from taxbreak_vllm.serving.bracket import MAX_BEFORE, MAX_WAIT_NS, Bracket, Step
from taxbreak_vllm.serving.chosen_experts import ChosenExperts
from taxbreak_vllm.serving.graph_mode import GraphModeNote
from taxbreak_vllm.serving.outbox import Outbox
from taxbreak_vllm.serving.recorder import (
    AFTER_ANNOTATION,
    BEFORE_ANNOTATION,
    STEP_ANNOTATION,
    Profile,
    RecordedStep,
    Recorder,
)
from taxbreak_vllm.serving.sampling.kinds import StepKind, StepKinds
from taxbreak_vllm.serving.sampling.policy import Policy
from taxbreak_vllm.serving.sampling.sampler import Sample
from taxbreak_vllm.serving.sampling.stalls import Detail
from taxbreak_vllm.serving.step_work import work_of
from taxbreak_vllm.serving.steps import ScheduledStep, Work, classify
from taxbreak_vllm.serving.tokens import SampledTokens

# What an engine runs to keep in step with its data-parallel siblings; its size is vLLM's own affair.
DUMMY_BATCH = Work(Phase.IDLE, 1)


class Recordings:
    """Records on the thread of the worker; all of it may raise.

    `works_ahead` tells a server whose device is still at work on one step when the next one begins.
    """

    def __init__(
        self,
        server: Server,
        recorder: Recorder,
        outbox: Outbox,
        policy: Policy,
        kinds: StepKinds,
        *,
        has_graphs: bool,
        works_ahead: bool,
        model: ModelShape | None = None,
        now_ns: Callable[[], int],
        unix_ns: Callable[[], int],
    ) -> None:
        self._server = server
        self._recorder = recorder
        self._outbox = outbox
        self._policy = policy
        self._kinds = kinds
        self._has_graphs = has_graphs
        self._works_ahead = works_ahead
        self._model = model
        self._now_ns = now_ns
        self._unix_ns = unix_ns
        self.bracket: Bracket | None = None
        self.is_quiet = True  # nothing recorded is being stored
        self.overhead_ns = 0
        self.asked_overhead_ns = 0

    def warm(self, worker: Any) -> bool:  # noqa: ANN401 - a vLLM worker
        """Warm the profiler; where it brings no record of the device, recording is off."""
        is_warm = self._recorder.warm(worker)
        if not is_warm:
            self._policy.turn_off("no_device_records")
        return is_warm

    def open(
        self,
        worker: Any,  # noqa: ANN401 - a vLLM worker
        scheduled: ScheduledStep | None,
        sample: Sample,
        kind: StepKind,
        detail: Detail,
    ) -> None:
        """Begin a step that was picked, and its recording where that is possible."""
        # all of it before the profiler starts, as what comes after is in the recorded window
        sample.take(1)
        opening_ns = self._now_ns()
        is_warm = self.warm(worker)
        bracket = self.bracket = Bracket(sample, detail, kind, kind, get_ident())
        if not self._works_ahead:
            bracket.step = self._step(worker, scheduled, kind)
        is_on = is_warm and self._recorder.start(worker, self._span(bracket), detail=detail)
        bracket.overhead_ns = self._now_ns() - opening_ns
        if not is_on:
            self._give_up(bracket)

    def go_on(
        self,
        worker: Any,  # noqa: ANN401 - a vLLM worker
        scheduled: ScheduledStep | None,
        kind: StepKind,
        *,
        begun_ns: int,
        ended_ns: int,
    ) -> None:
        """Begin a step that follows a recorded one, which began and ended then."""
        bracket, now_ns = self.bracket, self._now_ns()
        assert bracket is not None
        had_work = now_ns - ended_ns < MAX_WAIT_NS
        iteration_ns = now_ns - begun_ns if had_work else None
        if bracket.step is not None:
            self._close(bracket, iteration_ns)
            return
        self._charge(bracket, bracket.added_ns(iteration_ns if self._works_ahead else None))
        if bracket.num_before == MAX_BEFORE:
            self._stop(bracket)
            self._give_up(bracket)
            return
        if bracket.sample.suits(kind.phase) and had_work:
            bracket.step = self._step(worker, scheduled, kind)
        bracket.kind = kind
        self._recorder.enter(self._span(bracket))

    def end(self, window_ns: int, output: object, *, has_sampled: bool) -> None:
        """End a recorded step."""
        bracket = self.bracket
        assert bracket is not None
        self._recorder.leave()
        bracket.window_ns = window_ns
        step = bracket.step
        if step is None:
            bracket.num_before += 1
            return
        self.let_go()
        step.has_ended = True
        if has_sampled:
            step.tokens = SampledTokens(drafted=step.drafted)
            step.tokens.follow(output)
        else:
            step.tokens = SampledTokens.none(output)

    def abandon(self, reason: str) -> None:
        """Close what is open: a sample that has ended is kept, without the start of the step after it."""
        bracket = self.bracket
        if bracket is None:
            return
        if bracket.step is not None and bracket.step.has_ended:
            self._close(bracket, None)
            return
        closing_ns = self._now_ns()
        self._recorder.discard(reason)
        bracket.overhead_ns += self._now_ns() - closing_ns
        self._give_up(bracket)

    def let_go(self) -> None:
        """Take what vLLM noted of a step being recorded, and have it note no more."""
        step = self.bracket.step if self.bracket is not None else None
        if step is not None and step.graph_mode is not None:
            step.graph_mode.read()
        if step is not None and step.experts is not None:
            step.experts.release()

    def _step(self, worker: Any, scheduled: ScheduledStep | None, kind: StepKind) -> Step:  # noqa: ANN401 - a vLLM worker
        sums = None if scheduled is None else work_of(scheduled, self._model, kind.graph_mode)
        return Step(
            index=self._kinds.num_steps(),
            work=DUMMY_BATCH if scheduled is None else classify(scheduled),
            drafted=() if scheduled is None else tuple(scheduled.scheduled_spec_decode_tokens),
            started_unix_ns=self._unix_ns(),
            graph_mode=GraphModeNote(worker) if self._has_graphs else None,
            sums=sums,
            experts=self._experts(worker, sums),
        )

    def _experts(self, worker: Any, sums: StepWork | None) -> ChosenExperts | None:  # noqa: ANN401 - a vLLM worker
        model = self._model
        if sums is None or model is None or not model.experts or model.uncounted:
            return None
        return ChosenExperts(worker, model.experts[0], sums.queries)

    def _span(self, bracket: Bracket) -> str:
        return BEFORE_ANNOTATION if bracket.step is None else STEP_ANNOTATION + self._step_id(bracket.step)

    def _close(self, bracket: Bracket, iteration_ns: int | None) -> None:
        """Hand over a recording whose sample has ended; `iteration_ns` is None where no step follows it closely."""
        closing_ns = self._now_ns()
        if iteration_ns is not None:
            self._recorder.enter(AFTER_ANNOTATION)
        profile = self._stop(bracket)
        self.bracket = None
        bracket.overhead_ns += self._now_ns() - closing_ns
        self._charge(bracket, bracket.overhead_ns + bracket.added_ns(iteration_ns if self._works_ahead else None))
        step = bracket.step
        assert step is not None
        if profile is None or not self._policy.allows_length(bracket.window_ns):
            bracket.sample.take(-1)
            return
        info = bracket.describe(
            step,
            self._server,
            step_id=self._step_id(step),
            iteration_ns=iteration_ns,
            op_cost_ns=self._recorder.op_cost_ns(bracket.detail),
        )
        self.is_quiet = False
        self._outbox.offer(RecordedStep(info, profile, bracket.sample.progress, step.tokens, step.experts))

    def _stop(self, bracket: Bracket) -> Profile | None:
        profile = self._recorder.stop()
        if profile is not None:
            num_steps = bracket.num_before + (bracket.step is not None)
            self._policy.stalls.learn(bracket.picked, bracket.detail, profile.stop_ns, num_steps)
        return profile

    def _charge(self, bracket: Bracket, cost_ns: int) -> None:
        self.overhead_ns += cost_ns
        if bracket.sample.progress is not None:
            self.asked_overhead_ns += cost_ns

    def _step_id(self, step: Step) -> str:
        return f"{self._server.server_id}.r{self._server.rank}.s{step.index}"

    def _give_up(self, bracket: Bracket) -> None:
        """Let go of a recording that is off, for what it cost."""
        self._charge(bracket, bracket.overhead_ns)
        self.let_go()
        self.bracket = None
        bracket.sample.take(-1)
