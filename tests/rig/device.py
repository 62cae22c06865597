"""A device made of a clock: work runs in the order in which it is launched, and events tell when it was done.

In: launches of so many nanoseconds. Out: when each ran, exactly. Whoever waits for the device waits for the clock.
"""

from collections.abc import Callable
from time import monotonic_ns

import numpy as np

_NEVER = 2**62


class Device:
    """One stream of a device; the host goes on while it works."""

    def __init__(self, now_ns: Callable[[], int] = monotonic_ns) -> None:
        self.now_ns = now_ns
        self.done_ns = 0  # when all that was launched will be done
        self.num_events_recorded = 0

    def launch(self, work_ns: int) -> tuple[int, int]:
        """Launch work; return when it starts and ends."""
        start_ns = max(self.now_ns(), self.done_ns)
        self.done_ns = start_ns + work_ns
        return start_ns, self.done_ns

    def event(self) -> "Event":
        """Make an event of this device."""
        return Event(self)


class Event:
    """What `torch.cuda.Event(enable_timing=True)` is, with what it raises and how it rounds."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self.at_ns = _NEVER

    def record(self) -> None:
        """Pass once all that was launched by now is done."""
        self._device.num_events_recorded += 1
        self.at_ns = max(self._device.now_ns(), self._device.done_ns)

    def query(self) -> bool:
        """Tell whether it has passed."""
        return self._device.now_ns() >= self.at_ns

    def elapsed_time(self, end: "Event") -> float:
        """Return the time between two that have passed, ms."""
        if not (self.query() and end.query()):
            raise RuntimeError("Both events must be completed before calculating elapsed time.")
        return float(np.float32((end.at_ns - self.at_ns) / 1e6))
