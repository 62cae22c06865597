"""How long a worker's device was idle before each call of a step: events on the device in, nanoseconds out.

A call is framed by two events on the current stream. The device passes the one at its start at once where it is idle,
and after the work before it where it is not: from the event at the end of the call before to that one it was idle, and
up to the very time at which the host recorded it. Nothing waits for an event, and what is not over is unknown.

The device's clock tells the time between two events in steps of about half a microsecond. Torch hands it on as a 32-bit
float (milliseconds), so that 6e-8 of it may be lost: 60 ns of a second, 0.25 ms of an hour. In so long a time the
clocks of device and machine run further apart than that.
"""

from collections.abc import Callable
from typing import Any, Protocol

from taxbreak_vllm.serving.drops import logger
from taxbreak_vllm.serving.torch_profile import device_type

UNKNOWN = -1
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


class DeviceIdle:
    """Frames the calls of one worker; one thread does, any may read."""

    def __init__(self, new_event: Callable[[], Event]) -> None:
        self._events = [new_event() for _ in range(_NUM_EVENTS)]
        self._num_recorded = 0
        self._end = _NEVER  # of the call before
        self._is_broken = False

    def begin(self) -> Gap | None:
        """Open a call; the gap before it can be read once the device is that far."""
        end, self._end = self._end, _NEVER
        start = self._record()
        return None if end == _NEVER or start == _NEVER else (end, start)

    def end(self) -> None:
        """Close a call; one that is never closed, as it raised, leaves the gap after it unknown."""
        self._end = self._record()

    def read(self, gap: Gap | None) -> int:
        """Return how long the device was idle in a gap; `UNKNOWN` where it cannot tell (yet)."""
        if gap is None or self._is_broken or self._num_recorded - gap[0] > _MAX_AGE:
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
            self._events[number % _NUM_EVENTS].record()
        except Exception as error:
            self._break(error)
            return _NEVER
        self._num_recorded = number + 1
        return number

    def _break(self, error: Exception) -> None:
        if not self._is_broken:
            self._is_broken = True
            logger.warning("taxbreak: the device no longer tells when it is idle: %r", error)


def open_device_idle(worker: Any) -> DeviceIdle | None:  # noqa: ANN401 - a vLLM worker that has its device
    """Prepare the events of a worker's device; None where it has none, as the CPU."""
    kind = device_type(worker)
    if kind not in ("cuda", "xpu"):
        return None
    try:
        import torch

        event = torch.get_device_module(kind).Event
        return DeviceIdle(lambda: event(enable_timing=True))
    except Exception as error:
        logger.warning("taxbreak: the device does not tell when it is idle: %r", error)
        return None
