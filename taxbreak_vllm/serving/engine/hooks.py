"""Hooks on the objects of one engine: each turn of its loop leaves a row of stamps.

Every hook stands on an instance, calls the original exactly once and returns its result, or lets its exception pass,
unchanged. What an engine lacks is not stamped: its time is `loop` then. Read in vllm/v1/engine/core.py
(`run_busy_loop`, `step`, `step_with_batch_queue`) and vllm/v1/executor/{uniproc,multiproc}_executor.py of 0.26 to 0.33.
"""

from collections.abc import Callable
from itertools import count
from time import monotonic_ns, thread_time_ns
from typing import Any

from taxbreak_vllm.iterations.rows import NUM_COLUMNS, UNKNOWN, Column
from taxbreak_vllm.serving.drops import logger
from taxbreak_vllm.serving.engine.queueing import QueueWaits
from taxbreak_vllm.serving.engine.traffic import STEP, UPDATE, Traffic
from taxbreak_vllm.serving.worker_times import NUMBER, TIMES, when_fetched

_ZEROS = [0] * NUM_COLUMNS


class LoopHooks:
    """The stamps of one engine's thread; `write` takes each turn's row."""

    def __init__(
        self,
        engine: Any,  # noqa: ANN401 - an EngineCoreProc
        write: Callable[[list[int]], None],
        *,
        keeps_traffic: bool = False,
    ) -> None:
        self._engine = engine
        self._write = write
        self._keeps_traffic = keeps_traffic
        self._row = list(_ZEROS)
        self.waits: QueueWaits | None = None
        self.traffic: Traffic | None = None
        self.server_id = ""  # as the workers have it: an engine's own instance id has changed by now
        self.fault: str | None = None
        self.stamps_cpu = False  # any thread may set it

    @property
    def queue_off_reason(self) -> str | None:
        """Why requests do not tell what they waited for in the engine's queue; None where they do."""
        if self.waits is None:
            return "scheduler"
        return "hook" if self.waits.fault else None

    def attach(self) -> None:
        """Put the hooks on the engine, its scheduler and its executor."""
        engine, scheduler, executor = self._engine, self._engine.scheduler, self._engine.model_executor
        self.waits = _queue_waits(scheduler)
        self.traffic = _traffic(scheduler) if self._keeps_traffic else None
        engine._process_input_queue = self._beginning(engine._process_input_queue)
        engine.input_queue.get = self._waiting(engine.input_queue.get)
        scheduler.schedule = self._numbering(scheduler.schedule)
        scheduler.get_grammar_bitmask = self._timed(scheduler.get_grammar_bitmask, Column.GRAMMAR0, Column.GRAMMAR1)
        scheduler.update_from_output = self._joining(scheduler.update_from_output)
        executor.execute_model = self._timed(executor.execute_model, Column.EXECUTE0, Column.EXECUTE1)
        executor.sample_tokens = self._following(executor.sample_tokens)
        self._attach_queues(executor)
        engine.step_fn = self._ending(engine.step_fn)
        engine._process_engine_step = self._finishing(engine._process_engine_step)

    def _attach_queues(self, executor: Any) -> None:  # noqa: ANN401 - an executor, with workers of its own or without
        calls = getattr(executor, "rpc_broadcast_mq", None)
        if calls is None:
            return
        calls.enqueue = self._sending(calls.enqueue)
        results = executor.response_mqs[getattr(executor, "output_rank", 0) or 0]
        results.dequeue = self._receiving(results.dequeue)

    def _timed(self, call: Callable[..., Any], begin: Column, end: Column) -> Callable[..., Any]:
        row, first, last = self._row, int(begin), int(end)

        def timed(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as vLLM calls it
            try:
                row[first] = monotonic_ns()
            except Exception as error:
                self._fail(error)
            result = call(*args, **kwargs)
            try:
                row[last] = monotonic_ns()
            except Exception as error:
                self._fail(error)
            return result

        return timed

    def _numbering(self, call: Callable[..., Any]) -> Callable[..., Any]:
        row, number, waits, traffic = self._row, int(Column.SCHEDULED), self.waits, self.traffic
        first, last, numbers = int(Column.SCHEDULE0), int(Column.SCHEDULE1), count(1)

        def schedule(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as vLLM calls it
            try:
                begun_ns = row[first] = monotonic_ns()
                if waits is not None and waits.fault is None:
                    waits.begin_schedule(begun_ns)
            except Exception as error:
                self._fail(error)
            scheduled = call(*args, **kwargs)
            try:
                ended_ns = monotonic_ns()
                row[number] = number_of_step = next(numbers)
                setattr(scheduled, NUMBER, number_of_step)
                row[last] = ended_ns
            except Exception as error:
                self._fail(error)
            if waits is not None and waits.fault is None:
                waits.end_schedule(scheduled)
            if traffic is not None:
                traffic.note(STEP, scheduled, bool(kwargs or (args and args[0])))
            return scheduled

        return schedule

    def _joining(self, call: Callable[..., Any]) -> Callable[..., Any]:
        row, updated, waits, traffic = self._row, int(Column.UPDATED), self.waits, self.traffic
        first, last = int(Column.UPDATE0), int(Column.UPDATE1)
        worker, behind = int(Column.WORKER_EXECUTE0), int(Column.DEVICE_IDLE_SAMPLE) + 1

        def update_from_output(scheduled: Any, output: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            try:
                row[first] = monotonic_ns()
            except Exception as error:
                self._fail(error)
            # put together anew, arguments cost 0.1 µs
            result = call(scheduled, output, *args, **kwargs) if args or kwargs else call(scheduled, output)
            try:
                row[last] = monotonic_ns()
                row[updated] = number = getattr(scheduled, NUMBER, 0)
                times = getattr(output, TIMES, None)
                if times is not None and times[1] == number:
                    self.server_id = times[0]
                    row[worker:behind] = times[2:]
                elif getattr(output, "req_ids", None):
                    row[worker] = UNKNOWN
            except Exception as error:
                self._fail(error)
            if waits is not None and waits.fault is None:
                waits.take_output(output)
            if traffic is not None:
                traffic.note(UPDATE, scheduled, 0)
            return result

        return update_from_output

    def _following(self, call: Callable[..., Any]) -> Callable[..., Any]:
        row, first, last = self._row, int(Column.SAMPLE0), int(Column.SAMPLE1)
        fetched = self._timed(lambda fetch: fetch(), Column.WAIT0, Column.WAIT1)

        def sample_tokens(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as vLLM calls it
            try:
                row[first] = monotonic_ns()
            except Exception as error:
                self._fail(error)
            future = call(*args, **kwargs)
            try:
                row[last] = monotonic_ns()
                # a worker in this process: its tokens are waited for in the future's own result
                output = getattr(future, "async_output", None)
                if output is not None:
                    when_fetched(output, fetched)
            except Exception as error:
                self._fail(error)
            return future

        return sample_tokens

    def _beginning(self, call: Callable[..., Any]) -> Callable[..., Any]:
        row, first, last = self._row, int(Column.INPUT0), int(Column.INPUT1)

        def process_input_queue(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as vLLM calls it
            try:
                row[:] = _ZEROS
                row[first] = monotonic_ns()
            except Exception as error:
                self._fail(error)
            result = call(*args, **kwargs)
            try:
                row[last] = monotonic_ns()
            except Exception as error:
                self._fail(error)
            return result

        return process_input_queue

    def _waiting(self, call: Callable[..., Any]) -> Callable[..., Any]:
        row, begin, end = self._row, int(Column.IDLE0), int(Column.IDLE1)

        def get(block: bool = True, timeout: float | None = None) -> Any:  # noqa: ANN401 - queue.Queue.get
            if not block:
                return call(block, timeout)
            try:
                row[begin] = row[begin] or monotonic_ns()
            except Exception as error:
                self._fail(error)
            try:
                return call(block, timeout)
            finally:
                try:
                    row[end] = monotonic_ns()
                except Exception as error:
                    self._fail(error)

        return get

    def _sending(self, call: Callable[..., Any]) -> Callable[..., Any]:
        row = self._row
        columns = {"execute_model": int(Column.EXECUTE_SENT), "sample_tokens": int(Column.SAMPLE_SENT)}

        def enqueue(message: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as vLLM calls it
            result = call(message, *args, **kwargs) if args or kwargs else call(message)
            try:
                name = message[0] if type(message) is tuple and message else None
                if isinstance(name, str) and name in columns:
                    row[columns[name]] = monotonic_ns()
            except Exception as error:
                self._fail(error)
            return result

        return enqueue

    def _receiving(self, call: Callable[..., Any]) -> Callable[..., Any]:
        row, first, again = self._row, int(Column.WAIT0), int(Column.WAIT_AGAIN0)
        in_step, after = int(Column.INPUT1), int(Column.STEP1)

        def dequeue(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as vLLM calls it
            begin = again if row[first] else first
            if row[begin] or row[after] or not row[in_step]:  # of a call that is no step's
                return call(*args, **kwargs)
            try:
                row[begin] = monotonic_ns()
            except Exception as error:
                self._fail(error)
            result = call(*args, **kwargs)
            try:
                row[begin + 1] = monotonic_ns()
            except Exception as error:
                self._fail(error)
            return result

        return dequeue

    def _ending(self, call: Callable[..., Any]) -> Callable[..., Any]:
        row, end = self._row, int(Column.STEP1)

        def step(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as vLLM calls it
            result = call(*args, **kwargs)
            try:
                row[end] = monotonic_ns()
            except Exception as error:
                self._fail(error)
            return result

        return step

    def _finishing(self, call: Callable[..., Any]) -> Callable[..., Any]:
        row, end, cpu = self._row, int(Column.END), int(Column.THREAD_CPU)

        def process_engine_step(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as vLLM calls it
            result = call(*args, **kwargs)
            try:
                if self.fault is None:
                    row[end] = monotonic_ns()
                    if self.stamps_cpu:
                        row[cpu] = thread_time_ns()
                    self._write(row)
            except Exception as error:
                self._fail(error)
            return result

        return process_engine_step

    def _fail(self, error: Exception) -> None:
        if self.fault is None:
            self.fault = repr(error)
            logger.warning("taxbreak: an engine's loop is no longer timed: %r", error)


def _queue_waits(scheduler: Any) -> QueueWaits | None:  # noqa: ANN401 - a Scheduler
    try:
        waits = QueueWaits(scheduler)
        waits.attach()
    except Exception as error:
        logger.warning("taxbreak: requests do not tell what they wait for: %r", error)
        return None
    return waits


def _traffic(scheduler: Any) -> Traffic | None:  # noqa: ANN401 - a Scheduler
    try:
        traffic = Traffic(scheduler)
        traffic.attach()
    except Exception as error:
        logger.warning("taxbreak: an engine's traffic is not kept: %r", error)
        return None
    return traffic
