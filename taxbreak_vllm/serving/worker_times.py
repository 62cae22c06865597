"""What travels between an engine and its worker, as attributes on what vLLM sends anyway: a step's number and times.

The number goes out on a `SchedulerOutput`; the worker's times of that step come back on its `ModelRunnerOutput`, never
on the one that all empty steps share. Both survive pickling. Times are `time.monotonic_ns` of the worker's machine. How
long its device was idle before each of the two calls is asked once the output is fetched: the device is that far then.
"""

from collections.abc import Callable
from functools import partial
from time import monotonic_ns
from typing import Any

from taxbreak_vllm.iterations.rows import UNKNOWN
from taxbreak_vllm.serving.device_idle import DeviceIdle, Gap
from taxbreak_vllm.serving.drops import logger

NUMBER = "taxbreak_number"
TIMES = "taxbreak_times"

Around = Callable[[Callable[[], Any]], Any]
# Server id, number, execute_model begun, ended, sample_tokens begun, ended, the step's place in `PHASES`.
Stamps = tuple[str, int, int, int, int, int, int]
Idle = tuple[int, int]  # of the device, before execute_model and before sample_tokens, ns
Times = tuple[str, int, int, int, int, int, int, int, int]  # both


class StepTimes:
    """Times the calls of one worker for the steps that an engine has numbered, and sends the times back with them.

    It never raises: a fault of ours ends it, and the engine counts the steps that come back without times.
    """

    def __init__(self, device_idle: DeviceIdle | None) -> None:
        self._device_idle = device_idle
        self._number = 0  # of the step whose calls go on; 0 where nobody asks about it
        self._frames: DeviceIdle | None = None  # its calls, where the device is asked about it
        self._begun_ns = 0
        self._phase_index = UNKNOWN
        self._execute_ns = 0, 0
        self._gap: Gap | None = None  # before execute_model
        self._sample_gap: Gap | None = None
        self._is_broken = False

    def begin_execute(self, scheduled: Any, phase_index: int) -> None:  # noqa: ANN401 - a SchedulerOutput
        """Open a step; `phase_index` is its place in `PHASES`, `UNKNOWN` where nobody knows."""
        try:
            self._number = number = 0 if self._is_broken else getattr(scheduled, NUMBER, 0)
            if number:
                self._phase_index = phase_index
                idle = self._device_idle
                if idle is not None:
                    has_work = getattr(scheduled, "num_scheduled_tokens", None)
                    self._frames = idle if has_work and idle.begin_step() else None
                self._gap = self._begin()
        except Exception as error:
            self._break(error)

    def end_execute(self, output: Any, server_id: str) -> None:  # noqa: ANN401 - None where there is more to come
        """Close the first call of a step, and a step that samples nothing."""
        try:
            if self._number:
                self._execute_ns = self._begun_ns, self._end()
                if output is not None:
                    self._begun_ns = self._execute_ns[1]
                    self._answer(output, server_id, self._begun_ns)
        except Exception as error:
            self._break(error)

    def begin_sample(self) -> None:
        """Open the second call of a step."""
        try:
            if self._number:
                self._sample_gap = self._begin()
        except Exception as error:
            self._break(error)

    def end_sample(self, output: Any, server_id: str) -> None:  # noqa: ANN401 - what a worker returns
        """Close a step."""
        try:
            if self._number:
                self._answer(output, server_id, self._end())
        except Exception as error:
            self._break(error)

    def end_other(self) -> None:
        """Take note of work on the device that is no step's."""
        try:
            if self._device_idle is not None and not self._is_broken:
                self._device_idle.end_other()
        except Exception as error:
            self._break(error)

    def _break(self, error: Exception) -> None:
        self._is_broken = True
        self._number = 0
        logger.warning("taxbreak: the times of steps no longer go back to their engine: %r", error)

    def _begin(self) -> Gap | None:
        gap = self._frames.begin() if self._frames is not None else None
        self._begun_ns = monotonic_ns()
        return gap

    def _end(self) -> int:
        ended_ns = monotonic_ns()
        if self._frames is not None:
            self._frames.end()
        return ended_ns

    def _answer(self, output: Any, server_id: str, ended_ns: int) -> None:  # noqa: ANN401 - what a worker returns
        stamps = (server_id, self._number, *self._execute_ns, self._begun_ns, ended_ns, self._phase_index)
        frames, gap, sample_gap = self._frames, self._gap, self._sample_gap
        self._number, self._gap, self._sample_gap = 0, None, None
        untold = UNKNOWN if self._device_idle is None else self._device_idle.untold

        def read_idle() -> Idle:
            return (untold, untold) if frames is None else (frames.read(gap), frames.read(sample_gap))

        try:
            answer(output, stamps, read_idle)
        except Exception as error:
            logger.debug("taxbreak: the times of a step do not go back to its engine: %r", error)


def answer(output: Any, stamps: Stamps, read_idle: Callable[[], Idle]) -> None:  # noqa: ANN401 - what a worker returns
    """Put a step's times on its output, or on what its output will be; raises what vLLM's objects raise."""
    if getattr(output, "get_output", None) is None:
        _put(output, stamps, read_idle)
        return

    def bring(fetch: Callable[[], Any]) -> Any:  # noqa: ANN401 - a ModelRunnerOutput
        fetched = fetch()
        try:
            _put(fetched, stamps, read_idle)
        except Exception as error:
            logger.debug("taxbreak: the times of a step do not go back to its engine: %r", error)
        return fetched

    when_fetched(output, bring)


def when_fetched(output: Any, around: Around) -> None:  # noqa: ANN401 - an AsyncModelRunnerOutput
    """Have `around` call vLLM's own `get_output` once that is asked for; it raises nothing but what that raises."""
    output.get_output = _Fetch(output, around)


class _Fetch:
    """Stands for an output's `get_output`, once: the two hold each other, and an output holds memory of the device."""

    __slots__ = ("_around", "_fetch", "_output")

    def __init__(self, output: Any, around: Around) -> None:  # noqa: ANN401 - an AsyncModelRunnerOutput
        self._output = output
        self._fetch = output.get_output
        self._around = around

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as vLLM calls it
        try:
            return self._around(partial(self._fetch, *args, **kwargs) if args or kwargs else self._fetch)
        finally:
            if vars(self._output).get("get_output") is self:
                del self._output.get_output


def _put(output: Any, stamps: Stamps, read_idle: Callable[[], Idle]) -> None:  # noqa: ANN401 - a ModelRunnerOutput
    if getattr(output, "req_ids", None):
        times: Times = (*stamps, *read_idle())
        setattr(output, TIMES, times)
