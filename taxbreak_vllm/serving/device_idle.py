"""How long a worker's device was idle before the calls of some steps: events on the device in, nanoseconds out.

Recording an event takes the host a microsecond, so they are recorded in bursts of consecutive steps: `BURST` iterations
at a time, each as likely as any other, one in `ONE_IN`. A call of such a step is framed by two events on the current
stream. The device passes the one at its start at once where it is idle, and after the work before it where it is not:
from the event at the end of the call before to that one it was idle, and up to the very time at which the host recorded
it. Nothing waits for an event, and what is not over is unknown.

The device's clock tells the time between two events in steps of about half a microsecond. Torch hands it on as a 32-bit
float (milliseconds), so that 6e-8 of it may be lost: 60 ns of a second, 0.25 ms of an hour. In so long a time the
clocks of device and machine run further apart than that.
"""

from collections.abc import Callable
from random import randrange
from typing import Any, Protocol

from taxbreak_vllm.iterations.rows import UNASKED, UNKNOWN
from taxbreak_vllm.serving.drops import logger
from taxbreak_vllm.serving.torch_profile import device_type

BURST = 8
ONE_IN = 16
_NUM_EVENTS = 256  # of 64 steps; an engine has two under way, or as many as a pipeline has stages
_MAX_AGE = _NUM_EVENTS // 2  # so that none is read while another thread comes round to record it anew
_NEVER = -1

Gap = tuple[int, int]  # two events by their numbers: the end of a call and the start of the next


class Event(Protocol):
    """The part of torch's events that is used; each of these may raise (c10/cuda/CUDAEvent.h, c10/xpu/XPUEvent.h)."""

    def record(self) -> None:
        """Have the device note the time once it has done all work of the current stream."""

    def query(self) -> bool:
        """Tell whether it has."""

    def elapsed_time(self, end_event: Any, /) -> float:  # noqa: ANN401 - an event of the same kind
        """Return the milliseconds from this event to another; raises where either is not over."""


def steps_between() -> int:
    """Draw how many steps pass without events before the next burst and the step that ends it."""
    mean = (ONE_IN - 1) * BURST - 1
    return randrange(2 * mean + 1)


class DeviceIdle:
    """Frames the calls of one worker; one thread does, any may read.

    Nothing is recorded while the stream is being captured into a graph: the event would be of the graph.
    """

    def __init__(
        self,
        new_event: Callable[[], Event],
        *,
        is_capturing: Callable[[], bool] = lambda: False,
        steps_between: Callable[[], int] = steps_between,
    ) -> None:
        self._events = [new_event() for _ in range(_NUM_EVENTS)]
        self._is_capturing = is_capturing
        self._steps_between = steps_between
        self._num_to_pass = steps_between()
        self._num_left = BURST  # iterations of a burst
        self._is_ending = False  # the step goes on behind the last of them
        self._num_recorded = 0
        self._end = _NEVER  # of the call before
        self._is_broken = False
        self.untold = UNASKED  # what there is to read where there is no gap

    def begin_step(self) -> bool:
        """Count a step; True for one whose calls are to be framed."""
        if self._num_to_pass > 0:
            self._num_to_pass -= 1
            return False
        self._is_ending = False
        if self._num_left == 0:
            self._num_left = BURST
            self._num_to_pass = self._steps_between()
            self._is_ending = self._num_to_pass > 0
        self._num_left -= not self._is_ending
        return not self._is_broken

    def begin(self) -> Gap | None:
        """Open a call; the gap before it, if it has a beginning, can be read once the device is that far."""
        end, self._end = self._end, _NEVER
        if end == _NEVER:
            return None
        start = self._record()
        return None if start == _NEVER else (end, start)

    def end(self) -> None:
        """Close a call; one that is never closed, as it raised, leaves the gap after it unknown."""
        if not self._is_ending:
            self._end = self._record()

    def end_other(self) -> None:
        """Have a gap begin anew, behind work that is no step's."""
        if self._end != _NEVER:
            self._end = self._record()

    def read(self, gap: Gap | None) -> int:
        """Return how long the device was idle in a gap; `UNKNOWN` where it cannot tell (yet), `UNASKED` without one."""
        if gap is None or self._is_broken:
            return self.untold
        if self._num_recorded - gap[0] > _MAX_AGE:
            return UNKNOWN
        end, start = self._events[gap[0] % _NUM_EVENTS], self._events[gap[1] % _NUM_EVENTS]
        try:
            if not (end.query() and start.query()):
                return UNKNOWN
            return max(0, round(end.elapsed_time(start) * 1e6))
        except Exception as error:
            self._break(error)
            return UNKNOWN

    def _record(self) -> int:
        if self._is_broken:
            return _NEVER
        number = self._num_recorded
        try:
            if self._is_capturing():
                return _NEVER
            self._events[number % _NUM_EVENTS].record()
        except Exception as error:
            self._break(error)
            return _NEVER
        self._num_recorded = number + 1
        return number

    def _break(self, error: Exception) -> None:
        if not self._is_broken:
            self._is_broken, self.untold = True, UNKNOWN
            logger.warning("taxbreak: the device no longer tells when it is idle: %r", error)


def open_device_idle(worker: Any) -> DeviceIdle | None:  # noqa: ANN401 - a vLLM worker that has its device
    """Prepare the events of a worker's device; None where it has none, as the CPU."""
    kind = device_type(worker)
    if kind not in ("cuda", "xpu"):
        return None
    try:
        import torch

        device = torch.get_device_module(kind)
        return DeviceIdle(
            lambda: device.Event(enable_timing=True),
            is_capturing=getattr(device, "is_current_stream_capturing", lambda: False),
        )
    except Exception as error:
        logger.warning("taxbreak: the device does not tell when it is idle: %r", error)
        return None
