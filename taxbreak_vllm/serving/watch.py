"""The watch over one worker's steps: when each begins and ends, what it was, and whether to record it.

`begin` and `end` frame a step on the worker's thread and never raise: a fault of ours ends the watch, not the server.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from taxbreak_vllm.model.step import Phase, Server, StepInfo
from taxbreak_vllm.model.worker import CaptureRequest, Control, WorkerState
from taxbreak_vllm.serving.drops import Drops, logger
from taxbreak_vllm.serving.graph_mode import GraphModeNote
from taxbreak_vllm.serving.outbox import Outbox
from taxbreak_vllm.serving.recorder import RecordedStep, Recorder
from taxbreak_vllm.serving.sampling.kinds import StepKind, StepKinds
from taxbreak_vllm.serving.sampling.picks import Picks
from taxbreak_vllm.serving.sampling.policy import Policy
from taxbreak_vllm.serving.sampling.sampler import Draws, Sample
from taxbreak_vllm.serving.steps import GraphModes, ScheduledStep, Work, classify
from taxbreak_vllm.serving.tokens import SampledTokens
from taxbreak_vllm.settings import Settings
from taxbreak_vllm.spool.spool import Spool

# What an engine runs to keep in step with its data-parallel siblings; its size is vLLM's own affair.
_DUMMY_BATCH = Work(Phase.IDLE, 1)


@dataclass(slots=True)
class _Bracket:
    """A step being recorded."""

    index: int
    sample: Sample
    work: Work
    drafted: tuple[str, ...]
    opening_ns: int
    started_unix_ns: int
    graph_mode: GraphModeNote | None


class Watch:
    """Times every step of a worker and records some. It never holds the worker, whose memory must go when vLLM's does.

    `records` is False on the ranks that only time: they leave out the steps that another rank may record, as those
    take longer everywhere. With an `off_reason` no rank records the steps of this engine, and none is left out.
    """

    def __init__(
        self,
        server: Server,
        settings: Settings,
        *,
        graph_modes: GraphModes,
        records: bool = True,
        off_reason: str | None = None,
        open_recorder: Callable[[Drops], Recorder] = Recorder,
        now_ns: Callable[[], int] = time.monotonic_ns,
        unix_ns: Callable[[], int] = time.time_ns,
        cpu_ns: Callable[[], int] = time.thread_time_ns,
        draw: Callable[[str, int], Draws] = Picks,
    ) -> None:
        self._server = server
        self._graph_modes = graph_modes
        self._records = records
        self._max_capture_steps = settings.max_capture_steps
        self._now_ns = now_ns
        self._unix_ns = unix_ns
        self._drops = Drops()
        self._kinds = StepKinds(graph_modes)
        self._policy = Policy(
            settings,
            self._kinds,
            self._drops,
            seed=server.engine,  # all that the ranks of an engine surely share, on whatever nodes they are
            adapts=records,
            off_reason=off_reason,
            now_ns=now_ns,
            draw=draw,
        )
        self._recorder = open_recorder(self._drops)
        self.outbox = Outbox(
            Spool(settings.spool, max_bytes=settings.spool_max_bytes, max_captures=settings.spool_max_captures),
            server.server_id,
            self._drops,
            state=self.state,
            follow=self._follow,
            max_trace_bytes=settings.max_trace_bytes,
            now_ns=now_ns,
            cpu_ns=cpu_ns,
        )
        self._started_unix_ns = unix_ns()
        self._armed_ns: int | None = None
        self._cost_before_ns = 0
        self._overhead_ns = 0
        self._asked_overhead_ns = 0
        self._num_settled = 0
        self._is_broken = False
        self._is_quiet = True
        self._kind: StepKind | None = None
        self._begun_ns = 0
        self._bracket: _Bracket | None = None

    @property
    def is_recording(self) -> bool:
        """Whether the open step is being recorded."""
        return self._bracket is not None

    def start(self, worker: Any) -> None:  # noqa: ANN401 - a vLLM worker
        """Warm the profiler, where this worker records, and start storing."""
        if self._policy.off_reason is None and self._records:
            self._recorder.warm(worker)
        self.outbox.start()

    def arm(self) -> None:
        """Begin to count serving time, and what recording takes of it: the first real request is here."""
        self._armed_ns = self._now_ns()
        self._cost_before_ns = self.outbox.cost_ns

    def close(self) -> None:
        """Store what was recorded, and end."""
        self.outbox.close()

    def begin(self, worker: Any, scheduled: ScheduledStep | None) -> None:  # noqa: ANN401 - a vLLM worker
        """Open a step's window; `scheduled` is None for a dummy batch."""
        if self._is_broken:
            return
        try:
            if self._kind is not None:
                self.abandon("unfinished")
            kinds = self._kinds
            kind = kinds.of(_DUMMY_BATCH.phase, 1) if scheduled is None else kinds.of_step(scheduled)
            kind.num_steps += 1
            if not self._is_quiet:
                self._is_quiet = not self.outbox.is_busy
            if kind.num_steps < kind.due or self._record_if_picked(worker, scheduled, kind):
                self._kind = kind
                self._begun_ns = self._now_ns()
        except Exception as error:
            self._break(error)

    def between(self) -> None:
        """Read the graph mode of a step being recorded, which vLLM only knows between the two calls of a step."""
        if self._bracket is not None and self._bracket.graph_mode is not None:
            self._bracket.graph_mode.read()

    def end(self, output: object, *, has_sampled: bool) -> None:
        """Close the step's window; `has_sampled` tells a step that sampled tokens from one that does not."""
        ended_ns = self._now_ns()
        kind = self._kind
        if kind is None:
            return
        self._kind = None
        try:
            if self._bracket is None:
                kind.add(ended_ns - self._begun_ns, self._is_quiet)
            else:
                self._finish(self._bracket, kind, output, ended_ns, has_sampled=has_sampled)
        except Exception as error:
            self._break(error)

    def abandon(self, reason: str = "step_failed") -> None:
        """Forget the open step: vLLM raised, never ended it, or starts a profiler of its own."""
        self._kind = None
        if self._bracket is None:
            return
        try:
            closing_ns = self._now_ns()
            self._recorder.discard(reason)
            self._charge(self._bracket, self._begun_ns - self._bracket.opening_ns + self._now_ns() - closing_ns)
            self._forget_bracket()
        except Exception as error:
            self._break(error)

    def state(self) -> WorkerState:
        """Return what the worker publishes about itself; any thread may ask."""
        policy = self._policy
        progress = policy.sampler.progress if self._records else None
        return WorkerState(
            server=self._server,
            started_unix_ns=self._started_unix_ns,
            updated_unix_ns=self._unix_ns(),
            enabled=policy.off_reason is None,
            records=self._records,
            max_capture_steps=self._max_capture_steps,
            steps=self._kinds.histograms(),
            num_samples=self.outbox.num_stored,
            dropped=self._drops.counts(),
            overhead_ns=self._overhead_ns + self.outbox.cost_ns - self._cost_before_ns,
            serving_ns=0 if self._armed_ns is None else self._now_ns() - self._armed_ns,
            capture_id=None if progress is None else progress.request.capture_id,
            capture_recorded=0 if progress is None else progress.num_recorded,
            off_reason=policy.off_reason,
            sample_every=policy.sampler.sample_every,
            overhead_budget_ratio=policy.budget_ratio,
            slowdown=policy.sampler.slowdown,
            control_id=policy.control_id,
        )

    def _record_if_picked(self, worker: Any, scheduled: ScheduledStep | None, kind: StepKind) -> bool:  # noqa: ANN401 - a vLLM worker
        """Have a step recorded, if it is picked and that is possible; False for one that another rank may record."""
        sample = self._policy.sampler.decide(kind)
        if sample is None:
            return True
        if not self._records:
            sample.take(1)
            return False
        if self._policy.allows(sample, kind, is_quiet=self._is_quiet):
            self._open(worker, scheduled, sample)
        return True

    def _open(self, worker: Any, scheduled: ScheduledStep | None, sample: Sample) -> None:  # noqa: ANN401
        # all of it before the profiler starts, as what comes after is in the recorded window
        sample.take(1)
        opening_ns = self._now_ns()
        self._recorder.warm(worker)
        self._bracket = _Bracket(
            index=self._kinds.num_steps(),
            sample=sample,
            work=_DUMMY_BATCH if scheduled is None else classify(scheduled),
            drafted=() if scheduled is None else tuple(scheduled.scheduled_spec_decode_tokens),
            opening_ns=opening_ns,
            started_unix_ns=self._unix_ns(),
            graph_mode=GraphModeNote(worker) if self._graph_modes.has_graphs else None,
        )
        if not self._recorder.start(worker, self._step_id(self._bracket), stacks=sample.stacks):
            self._charge(self._bracket, self._now_ns() - opening_ns)
            self._forget_bracket()

    def _finish(self, bracket: _Bracket, kind: StepKind, output: object, ended_ns: int, *, has_sampled: bool) -> None:
        profile = self._recorder.stop()
        closed_ns = self._now_ns()
        self.between()
        self._bracket = None
        plain_window_ns, num_plain = kind.median()
        window_ns = ended_ns - self._begun_ns
        overhead_ns = closed_ns - bracket.opening_ns - window_ns
        # without a plain step to compare with, all of it may be dilation
        self._charge(bracket, overhead_ns + max(0, window_ns - (plain_window_ns or 0)))
        if profile is None or not self._policy.allows_length(window_ns):
            bracket.sample.take(-1)
            return
        if has_sampled:
            tokens = SampledTokens(drafted=bracket.drafted)
            tokens.follow(output)
        else:
            tokens = SampledTokens.none(output)
        info = StepInfo(
            step_id=self._step_id(bracket),
            step_index=bracket.index,
            server=self._server,
            phase=bracket.work.phase,
            batch=bracket.work.batch(),
            graph_mode=(bracket.graph_mode and bracket.graph_mode.mode) or kind.graph_mode,
            started_unix_ns=bracket.started_unix_ns,
            window_ns=window_ns,
            plain_window_ns=plain_window_ns,
            num_plain=num_plain,
            overhead_ns=overhead_ns,
            op_cost_ns=self._recorder.op_cost_ns,
            async_output=tokens.is_async,
            capture_id=bracket.sample.capture_id,
        )
        self._is_quiet = False
        self.outbox.offer(RecordedStep(info, profile, bracket.sample.progress, tokens))

    def _charge(self, bracket: _Bracket, cost_ns: int) -> None:
        self._overhead_ns += cost_ns
        if bracket.sample.progress is not None:
            self._asked_overhead_ns += cost_ns

    def _step_id(self, bracket: _Bracket) -> str:
        return f"{self._server.server_id}.r{self._server.rank}.s{bracket.index}"

    def _forget_bracket(self) -> None:
        self.between()
        bracket, self._bracket = self._bracket, None
        if bracket is not None:
            bracket.sample.take(-1)

    def _follow(self, request: CaptureRequest | None, control: Control | None) -> bool:
        """Settle the account and take what the spool says, on the storing thread; True for news to be told at once."""
        was_off, policy = self._policy.off_reason, self._policy
        num_steps = sum(kind.num_steps for kind in self._kinds)
        is_serving, self._num_settled = num_steps > self._num_settled or self._kind is not None, num_steps
        policy.settle(
            spent_ns=self._overhead_ns + self.outbox.cost_ns,
            asked_ns=self._asked_overhead_ns + self.outbox.asked_cost_ns,
            is_serving=is_serving,
        )
        if control is not None and control.enabled and was_off and self._records:
            self._recorder.load()
        return policy.follow(request, control, now_unix_ns=self._unix_ns()) or policy.off_reason != was_off

    def _break(self, error: Exception) -> None:
        self._is_broken = True
        self.between()
        self._kind = self._bracket = None
        self._drops.add("hook", repr(error))
        self._policy.turn_off("hook")
        self._recorder.discard("hook")
        logger.warning("taxbreak: steps are no longer timed or recorded; vLLM goes on", exc_info=error)
