"""A trace in parts: the stretches of it that are measured one after another.

A small trace is one part. A large one (`spill.py`) is cut where nothing is open on the host.
"""

from dataclasses import dataclass

import numpy as np

from taxbreak_vllm.trace.dispatches import Activities, Bool, Dispatches
from taxbreak_vllm.trace.events import Events
from taxbreak_vllm.trace.steps import StepWindow


@dataclass(frozen=True, slots=True)
class Part:
    """What was launched, and what began without a launch event, in [start_ns, end_ns), with the steps in there.

    `events` may hold more: what ran late into the part, and what was launched after it but began before its own work
    had ended. That is needed to cut the device's time; it is measured along and counted elsewhere.
    """

    events: Events
    windows: tuple[StepWindow, ...]
    start_ns: int
    end_ns: int

    @classmethod
    def all_of(cls, events: Events, windows: tuple[StepWindow, ...]) -> "Part":
        """Make a whole trace one part."""
        return cls(events, windows, events.first_ns, events.last_ns + 1)

    def owned(self, activities: Activities, dispatches: Dispatches) -> tuple[Bool, Bool]:
        """Mark the part's own activities and dispatches."""
        own_dispatch = (dispatches.launch_ns >= self.start_ns) & (dispatches.launch_ns < self.end_ns)
        own_activity = (activities.start_ns >= self.start_ns) & (activities.start_ns < self.end_ns)
        linked = activities.dispatch >= 0
        own_activity[linked] = own_dispatch[activities.dispatch[linked]]
        return np.asarray(own_activity), np.asarray(own_dispatch)
