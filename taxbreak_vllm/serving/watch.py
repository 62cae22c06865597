"""The watch over one worker's steps: when each begins and ends, what it was, and whether to record it.

`begin` and `end` frame a step on the worker's thread and never raise: a fault of ours ends the watch, not the server.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from taxbreak_vllm.model import CaptureRequest, Phase, Server, StepInfo, WorkerState
from taxbreak_vllm.serving.outbox import Outbox
from taxbreak_vllm.serving.recorder import Drops, Recorder, Recording, logger
from taxbreak_vllm.serving.sampler import Sample, Sampler
from taxbreak_vllm.serving.steps import GraphModes, ScheduledStep, StepTimes, Work, classify
from taxbreak_vllm.settings import Settings
from taxbreak_vllm.spool import Spool

# What an engine runs to keep in step with its data-parallel siblings; its size is vLLM's own affair.
_DUMMY_BATCH = Work(Phase.IDLE, 1)


@dataclass(slots=True)
class _Bracket:
    """A step being recorded."""

    index: int
    sample: Sample
    opening_ns: int
    started_unix_ns: int
    read_graph_mode: Callable[[], str | None] | None
    graph_mode: str | None = None


class Watch:
    """Times every step of a worker and records some. It never holds the worker, whose memory must go when vLLM's does.

    `records` is False on the ranks that only time: they leave out the steps that another rank records, as those take
    longer everywhere.
    """

    def __init__(
        self,
        server: Server,
        settings: Settings,
        *,
        graph_modes: GraphModes,
        records: bool = True,
        open_recorder: Callable[[Drops], Recorder] = Recorder,
        now_ns: Callable[[], int] = time.monotonic_ns,
        unix_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._server = server
        self._graph_modes = graph_modes
        self._records = records
        self._now_ns = now_ns
        self._unix_ns = unix_ns
        self._drops = Drops()
        self._times = StepTimes()
        self._sampler = Sampler(settings.sample_every) if settings.enabled else None
        self._recorder = open_recorder(self._drops)
        self.outbox = Outbox(
            Spool(settings.spool, max_bytes=settings.spool_max_bytes, max_captures=settings.spool_max_captures),
            server.server_id,
            self._drops,
            state=self.state,
            follow=self._follow,
            max_trace_bytes=settings.max_trace_bytes,
        )
        self._started_unix_ns = unix_ns()
        self._armed_ns: int | None = None
        self._is_broken = False
        self._num_steps = 0
        self._overhead_ns = 0
        self._is_quiet = True
        self._work: Work | None = None
        self._begun_ns = 0
        self._bracket: _Bracket | None = None

    def start(self, worker: Any) -> None:  # noqa: ANN401 - a vLLM worker
        """Warm the profiler, where this worker records, and start storing."""
        if self._sampler is not None and self._records:
            self._recorder.warm(worker)
        self.outbox.start()

    def arm(self) -> None:
        """Begin to count serving time: the first real request is here."""
        self._armed_ns = self._now_ns()

    def close(self) -> None:
        """Store what was recorded, and end."""
        self.outbox.close()

    def begin(self, worker: Any, scheduled: ScheduledStep | None) -> None:  # noqa: ANN401 - a vLLM worker
        """Open a step's window; `scheduled` is None for a dummy batch."""
        if self._is_broken:
            return
        try:
            if self._work is not None:
                self.abandon("unfinished")
            work = _DUMMY_BATCH if scheduled is None else classify(scheduled)
            self._num_steps += 1
            self._is_quiet = not self.outbox.is_busy
            sample = None if self._sampler is None else self._sampler.decide(work.phase)
            if sample is None or self._open(worker, sample):
                self._work = work
                self._begun_ns = self._now_ns()
        except Exception as error:
            self._break(error)

    def between(self) -> None:
        """Read the graph mode of a step being recorded, which vLLM only knows between the two calls of a step."""
        bracket = self._bracket
        if bracket is None:
            return
        try:
            bracket.graph_mode = _ask(bracket)
        except Exception as error:
            self._break(error)

    def end(self, output: object, *, has_sampled: bool) -> None:
        """Close the step's window; `has_sampled` tells a step that sampled tokens from one that does not."""
        ended_ns = self._now_ns()
        work = self._work
        if work is None:
            return
        self._work = None
        try:
            if self._bracket is not None:
                self._finish(self._bracket, work, output, ended_ns, has_sampled=has_sampled)
            else:
                graph_mode = self._graph_modes.of(work.phase, work.num_tokens)
                self._times.add(work.phase, graph_mode, work.num_tokens, ended_ns - self._begun_ns, self._is_quiet)
        except Exception as error:
            self._break(error)

    def abandon(self, reason: str = "step_failed") -> None:
        """Forget the open step: vLLM raised, or never ended it."""
        self._work = None
        try:
            self._recorder.discard(reason)
            self._forget_bracket()
        except Exception as error:
            self._break(error)

    def state(self) -> WorkerState:
        """Return what the worker publishes about itself; any thread may ask."""
        progress = self._sampler.progress if self._sampler is not None and self._records else None
        return WorkerState(
            server=self._server,
            started_unix_ns=self._started_unix_ns,
            updated_unix_ns=self._unix_ns(),
            enabled=self._sampler is not None and not self._is_broken,
            steps=self._times.histograms(),
            num_samples=self.outbox.num_stored,
            dropped=self._drops.counts(),
            overhead_ns=self._overhead_ns + self.outbox.export_ns,
            serving_ns=0 if self._armed_ns is None else self._now_ns() - self._armed_ns,
            capture_id=None if progress is None else progress.request.capture_id,
            capture_recorded=0 if progress is None else progress.num_recorded,
        )

    def _open(self, worker: Any, sample: Sample) -> bool:  # noqa: ANN401 - a vLLM worker
        """Start recording a step, if possible; False for one that another rank records."""
        if not self._records:
            sample.take(1)
            return False
        if not self._is_quiet:
            if sample.progress is None:
                self._drops.add("backlog", "as the one before is still being stored")
            return True
        # all of it before the profiler starts, as what comes after is in the recorded window
        sample.take(1)
        self._bracket = _Bracket(
            index=self._num_steps,
            sample=sample,
            opening_ns=self._now_ns(),
            started_unix_ns=self._unix_ns(),
            read_graph_mode=_request_graph_mode(worker) if self._graph_modes.has_graphs else None,
        )
        if not self._recorder.start(worker, self._step_id(), stacks=sample.stacks):
            self._forget_bracket()
        return True

    def _finish(self, bracket: _Bracket, work: Work, output: object, ended_ns: int, *, has_sampled: bool) -> None:
        profile = self._recorder.stop()
        closed_ns = self._now_ns()
        graph_mode = bracket.graph_mode or _ask(bracket)
        self._bracket = None
        usual_mode = self._graph_modes.of(work.phase, work.num_tokens)
        plain_window_ns, num_plain = self._times.median(work.phase, usual_mode, work.num_tokens)
        window_ns = ended_ns - self._begun_ns
        overhead_ns = closed_ns - bracket.opening_ns - window_ns
        self._overhead_ns += overhead_ns
        if plain_window_ns is not None:
            self._overhead_ns += max(0, window_ns - plain_window_ns)
        if profile is None:
            bracket.sample.take(-1)
            return
        info = StepInfo(
            step_id=self._step_id(),
            step_index=bracket.index,
            server=self._server,
            phase=work.phase,
            batch=work.batch(output_tokens=_count_sampled(output, work) if has_sampled else 0),
            graph_mode=graph_mode or usual_mode,
            started_unix_ns=bracket.started_unix_ns,
            window_ns=window_ns,
            plain_window_ns=plain_window_ns,
            num_plain=num_plain,
            overhead_ns=overhead_ns,
            op_cost_ns=self._recorder.op_cost_ns,
            async_output=hasattr(output, "get_output"),
            capture_id=bracket.sample.capture_id,
        )
        self.outbox.offer(Recording(info, profile, bracket.sample.progress))

    def _step_id(self) -> str:
        return f"{self._server.server_id}.r{self._server.rank}.s{self._num_steps}"

    def _forget_bracket(self) -> None:
        bracket, self._bracket = self._bracket, None
        if bracket is not None:
            bracket.sample.take(-1)
            _ask(bracket)

    def _follow(self, request: CaptureRequest | None) -> None:
        if self._sampler is not None:
            self._sampler.follow(request, now_unix_ns=self._unix_ns())

    def _break(self, error: Exception) -> None:
        self._is_broken = True
        self._work = self._bracket = None
        self._drops.add("hook", repr(error))
        self._recorder.discard("hook")
        logger.warning("taxbreak: steps are no longer timed or recorded; vLLM goes on", exc_info=error)


def _ask(bracket: _Bracket) -> str | None:
    read, bracket.read_graph_mode = bracket.read_graph_mode, None
    return None if read is None else read()


def _request_graph_mode(worker: Any) -> Callable[[], str | None]:  # noqa: ANN401 - a vLLM worker
    """Have vLLM note the graph mode of the coming step; the function returned reads it and restores the setting.

    vLLM reads the setting at every step (0.26 to 0.32, both model runners) and forgets the note when it samples. A
    vLLM that knows neither costs the label its certainty, not the recording.
    """
    config = getattr(worker.vllm_config, "observability_config", None)
    previous = getattr(config, "cudagraph_metrics", None)
    if config is not None and previous is False:
        config.cudagraph_metrics = True

    def read() -> str | None:
        if config is not None and previous is False:
            config.cudagraph_metrics = False
        state = getattr(getattr(worker, "model_runner", None), "execute_model_state", None)
        mode = getattr(getattr(state, "cudagraph_stats", None), "runtime_mode", None)
        return None if mode is None else str(mode).lower()

    return read


def _count_sampled(output: object, work: Work) -> int | None:
    """Count the tokens sampled, which are at hand unless they are still on their way from the device."""
    sampled = getattr(output, "sampled_token_ids", None)
    return sum(map(len, sampled)) if sampled else work.output_tokens
