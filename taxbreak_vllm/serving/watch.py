"""The watch over one worker's steps: when each begins and ends, what it was, and whether to record it.

`begin` and `end` frame a step on the worker's thread and never raise: a fault of ours ends the watch, not the server.
"""

import time
from collections.abc import Callable, Mapping
from threading import get_ident, get_native_id
from typing import Any

from taxbreak_vllm.machine.host import ThisHost
from taxbreak_vllm.machine.run_queue import RunQueueWait
from taxbreak_vllm.model import cupti
from taxbreak_vllm.model.ceilings import DeviceProperties
from taxbreak_vllm.model.host import HostFacts
from taxbreak_vllm.model.shape import ModelShape
from taxbreak_vllm.model.step import Server
from taxbreak_vllm.model.worker import CaptureRequest, Control, WorkerState
from taxbreak_vllm.serving.bracket import MAX_WAIT_NS
from taxbreak_vllm.serving.drops import Drops, logger
from taxbreak_vllm.serving.outbox import Outbox
from taxbreak_vllm.serving.recorder import ENGINE_ANNOTATION, Recorder
from taxbreak_vllm.serving.recordings import DUMMY_BATCH, Recordings
from taxbreak_vllm.serving.sampling.kinds import PlainTimes, StepKind, StepKinds
from taxbreak_vllm.serving.sampling.picks import Picks
from taxbreak_vllm.serving.sampling.policy import Policy
from taxbreak_vllm.serving.sampling.sampler import Draws
from taxbreak_vllm.serving.steps import GraphModes, ScheduledStep
from taxbreak_vllm.settings import Settings
from taxbreak_vllm.spool.spool import Spool

_UNKNOWN = -1


class Watch:
    """Times every step of a worker and records some. It never holds the worker, whose memory must go when vLLM's does.

    `records` is False on the ranks that only time: they leave out the steps that another rank may record, as those
    take longer everywhere. With an `off_reason` no rank records the steps of this engine, and none is left out.
    `works_ahead` tells a server whose device is still at work on one step when the next one begins. `model` is the
    shape of its model, or why that is not known; `device` is what its device says of itself.
    """

    def __init__(
        self,
        server: Server,
        settings: Settings,
        *,
        graph_modes: GraphModes,
        records: bool = True,
        off_reason: str | None = None,
        works_ahead: bool = False,
        server_settings: Mapping[str, str] | None = None,
        model: ModelShape | str = "its model was not looked at",
        device: DeviceProperties | None = None,
        open_recorder: Callable[[Drops], Recorder] = Recorder,
        now_ns: Callable[[], int] = time.monotonic_ns,
        unix_ns: Callable[[], int] = time.time_ns,
        cpu_ns: Callable[[], int] = time.thread_time_ns,
        draw: Callable[[str, int], Draws] = Picks,
    ) -> None:
        self._server = server
        self.server_id = server.server_id
        self._records = records
        self._works_ahead = works_ahead
        self._max_capture_steps = settings.max_capture_steps
        self._server_settings = server_settings or {}
        self._model = model if isinstance(model, ModelShape) else None
        self._model_reason = model if isinstance(model, str) else None
        self._device = device
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
            looks_ahead=works_ahead,
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
            facts=self._facts,
            now_ns=now_ns,
            cpu_ns=cpu_ns,
        )
        self._recordings = Recordings(
            server,
            self._recorder,
            self.outbox,
            self._policy,
            self._kinds,
            has_graphs=graph_modes.has_graphs,
            works_ahead=works_ahead,
            model=self._model,
            now_ns=now_ns,
            unix_ns=unix_ns,
        )
        self._started_unix_ns = unix_ns()
        self._armed_ns: int | None = None
        self._run_queue: RunQueueWait | None = None
        self._host = ThisHost()
        self._cost_before_ns = 0
        self._num_settled = 0
        self._is_broken = False
        self._kind: StepKind | None = None
        self._begun_ns = 0
        self._ended_ns = 0
        self._paused_ns = 0
        self._plain: PlainTimes | None = None  # for the iteration of the step before this one, unless that was recorded
        self._num_passed = 0
        self._has_more = False  # a recording goes on or is being stored, or a step is to be passed over
        self.is_recording = False  # whether the profiler is on; read on every step, like the next one
        self.is_paused = False
        self.phase_index = _UNKNOWN  # of the step begun last, in `PHASES`; unknown once a fault has ended the watch

    def start(self, worker: Any) -> None:  # noqa: ANN401 - a vLLM worker
        """Warm the profiler, where this worker records, and start storing."""
        if self._policy.off_reason is None and self._records:
            self._recordings.warm(worker)
        self.outbox.start()

    def arm(self) -> None:
        """Begin to count serving time, and what recording takes of it: this thread has the first real request."""
        self._run_queue = RunQueueWait(get_native_id())
        self._armed_ns = self._now_ns()
        self._cost_before_ns = self.outbox.cost_ns

    def close(self) -> None:
        """Store what was recorded, and end."""
        bracket = self._recordings.bracket
        if bracket is not None and bracket.thread == get_ident():
            self.abandon("unfinished")
        self.outbox.close()

    def begin(self, worker: Any, scheduled: ScheduledStep | None) -> None:  # noqa: ANN401 - a vLLM worker
        """Open a step's window; `scheduled` is None for a dummy batch."""
        if self._is_broken:
            return
        try:
            if self._kind is not None:
                self.abandon("unfinished")
            kinds = self._kinds
            kind = kinds.of(DUMMY_BATCH.phase, 1) if scheduled is None else kinds.of_step(scheduled)
            self.phase_index = kind.phase_index
            kind.num_steps = num_steps = kind.num_steps + 1
            if (num_steps >= kind.due or self._has_more) and not self._look(worker, scheduled, kind):
                self._plain = None
                return
            begun_ns = self._now_ns()
            plain = self._plain
            if plain is not None and begun_ns - self._ended_ns < MAX_WAIT_NS:
                plain.add(begun_ns - self._begun_ns, self._recordings.is_quiet)
            self._begun_ns = begun_ns
            self._kind = kind
        except Exception as error:
            self._break(error)

    def pause(self) -> None:
        """Between the two calls of a step the engine has the thread, if it likes; read what vLLM tells only then."""
        if self._kind is None:
            return
        try:
            self._recordings.let_go()
            self._recorder.enter(ENGINE_ANNOTATION)
            self.is_paused = True
            self._ended_ns = self._now_ns()
        except Exception as error:
            self._break(error)

    def resume(self) -> None:
        """Go on with a step: the second of its calls begins."""
        self.is_paused = False
        try:
            self._paused_ns += self._now_ns() - self._ended_ns
            self._recorder.leave()
        except Exception as error:
            self._break(error)

    def end(self, output: object, *, has_sampled: bool) -> None:
        """Close the step's window; `has_sampled` tells a step that sampled tokens from one that does not."""
        ended_ns = self._now_ns()
        kind = self._kind
        if kind is None:
            return
        self._kind = None
        self._ended_ns = ended_ns
        try:
            window_ns = ended_ns - self._begun_ns
            if self._paused_ns:
                window_ns, self._paused_ns = window_ns - self._paused_ns, 0
            if not self.is_recording:
                kind.add(window_ns, self._recordings.is_quiet)
                self._plain = kind.iterations
            else:
                self._recordings.end(window_ns, output, has_sampled=has_sampled)
        except Exception as error:
            self._break(error)

    def abandon(self, reason: str = "step_failed") -> None:
        """Forget the open step: vLLM raised, never ended it, or starts a profiler of its own.

        A sample that has ended is kept, without the start of the step after it.
        """
        self._kind = self._plain = None
        self.is_paused = False
        self._paused_ns = 0
        if not self.is_recording:
            return
        try:
            self._recordings.abandon(reason)
            self.is_recording = False
        except Exception as error:
            self._break(error)

    def state(self) -> WorkerState:
        """Return what the worker publishes about itself; any thread may ask."""
        policy, recorder = self._policy, self._recorder
        progress = policy.sampler.progress if self._records else None
        return WorkerState(
            server=self._server,
            started_unix_ns=self._started_unix_ns,
            updated_unix_ns=self._unix_ns(),
            enabled=policy.off_reason is None,
            records=self._records,
            max_capture_steps=self._max_capture_steps,
            steps=self._kinds.histograms(),
            iterations=self._kinds.iteration_histograms(),
            num_sampled=self._kinds.num_sampled(),
            num_samples=self.outbox.num_stored,
            dropped=self._drops.counts(),
            overhead_ns=self._recordings.overhead_ns + self.outbox.cost_ns - self._cost_before_ns,
            serving_ns=0 if self._armed_ns is None else self._now_ns() - self._armed_ns,
            capture_id=None if progress is None else progress.request.capture_id,
            capture_recorded=0 if progress is None else progress.num_recorded,
            capture_refusal=None if progress is None else progress.refusal,
            off_reason=policy.off_reason,
            sample_every=policy.sampler.sample_every,
            overhead_budget_ratio=policy.budget_ratio,
            slowdown=policy.sampler.slowdown,
            control_id=policy.control_id,
            num_sessions=recorder.num_sessions,
            num_device_records=self.outbox.num_device_records,
            cupti_attached=recorder.is_cupti_attached,
            cupti_version=recorder.cupti_version,
            runqueue_wait_ratio=None if self._run_queue is None else self._run_queue.ratio(),
            settings=self._server_settings,
            model=self._model,
            model_reason=self._model_reason,
            device=self._device,
            notes=recorder.notes(self._server.device_type) if self._records else (),
        )

    def _facts(self) -> HostFacts:
        return self._host.facts(runqueue_wait_ratio=None if self._run_queue is None else self._run_queue.ratio())

    def _look(self, worker: Any, scheduled: ScheduledStep | None, kind: StepKind) -> bool:  # noqa: ANN401 - a vLLM worker
        """Do what the beginning of few steps needs; False for one that another rank may record."""
        recordings = self._recordings
        if not recordings.is_quiet:
            recordings.is_quiet = not self.outbox.is_busy
        self._has_more = self.is_recording or not recordings.is_quiet or self._num_passed > 0
        if self.is_recording:
            recordings.go_on(worker, scheduled, kind, begun_ns=self._begun_ns, ended_ns=self._ended_ns)
            self.is_recording = recordings.bracket is not None
            return True
        is_due = kind.num_steps >= kind.due or self._num_passed
        return not is_due or self._open_if_picked(worker, scheduled, kind)

    def _open_if_picked(self, worker: Any, scheduled: ScheduledStep | None, kind: StepKind) -> bool:  # noqa: ANN401 - a vLLM worker
        """Begin a step and have it recorded, if it is picked and that is possible.

        False for one that another rank may record, or may be recording still.
        """
        if self._num_passed:
            self._num_passed -= 1
            return False
        sample = self._policy.sampler.decide(kind)
        if sample is None:
            pass
        elif not self._records:
            sample.take(1)
            self._num_passed = int(self._works_ahead)
            self._has_more = True
            return False
        elif (
            self._policy.allows(sample, self._plain_ns(kind), is_quiet=self._recordings.is_quiet)
            and (detail := self._policy.detail(sample, kind)) is not None
        ):
            self._plain = None
            self._has_more = True
            self._recordings.open(worker, scheduled, sample, kind, detail)
            self.is_recording = self._recordings.bracket is not None
        return True

    def _plain_ns(self, kind: StepKind) -> int | None:
        return (kind.iterations if self._works_ahead else kind).median()[0]

    def _follow(self, request: CaptureRequest | None, control: Control | None) -> bool:
        """Settle the account and take what the spool says, on the storing thread; True for news to be told at once."""
        was_off, policy = self._policy.off_reason, self._policy
        num_steps = sum(kind.num_steps for kind in self._kinds)
        is_serving, self._num_settled = num_steps > self._num_settled or self._kind is not None, num_steps
        policy.settle(
            spent_ns=self._recordings.overhead_ns + self.outbox.cost_ns,
            asked_ns=self._recordings.asked_overhead_ns + self.outbox.asked_cost_ns,
            is_serving=is_serving,
        )
        if control is not None and control.enabled and was_off and self._records:
            self._recorder.load()
        if policy.off_reason is None and self._has_leaked():
            policy.turn_off("cupti_records")
            logger.warning("taxbreak: recording is off: this CUPTI has recorded all it may in one process")
        has_changed = policy.follow(request, control, now_unix_ns=self._unix_ns())
        if was_off and policy.off_reason is None and self._records:
            for note in self._recorder.notes(self._server.device_type):
                logger.warning("taxbreak: %s", note)
        return has_changed or policy.off_reason != was_off

    def _has_leaked(self) -> bool:
        return cupti.leaks(self._recorder.cupti_version) and self.outbox.num_device_records >= cupti.MAX_RECORDS

    def _break(self, error: Exception) -> None:
        self._is_broken = True
        self.phase_index = _UNKNOWN
        self.is_paused = False
        self._recordings.let_go()
        self._kind = self._recordings.bracket = None
        self.is_recording = False
        self._drops.add("hook", repr(error))
        self._policy.turn_off("hook")
        self._recorder.discard("hook")
        logger.warning("taxbreak: steps are no longer timed or recorded; vLLM goes on", exc_info=error)
