"""What the events being measured are told of the rest of their trace.

A trace is measured in parts, and a whole trace is one part of one: `WholeTrace` answers from the part itself,
`parts.PartOfTrace` from what was read of the other parts before.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from taxbreak_vllm.taxes import equations
from taxbreak_vllm.taxes.equations import Spans
from taxbreak_vllm.trace.backend import Backend
from taxbreak_vllm.trace.dispatches import Activities, Dispatches, Host
from taxbreak_vllm.trace.intervals import Int64
from taxbreak_vllm.trace.steps import StepWindow
from taxbreak_vllm.trace.timeline import main_device

Estimate = Callable[[], int | None]  # from the events at hand, in ns


class Surroundings(Protocol):
    """What a part must know to be measured like the whole; an estimate is of the whole trace, `here` of the part."""

    @property
    def backend(self) -> Backend: ...
    @property
    def is_live(self) -> bool:
        """Whether the trace was recorded on a live server, whose launches queue behind work that was not recorded."""
        ...

    def starts(self, host: Host, dispatches: Dispatches) -> Int64:
        """Return where T_py begins anew beside ops and calls: the starts of steps, as keys."""
        ...

    def pauses(self, host: Host) -> Sequence[tuple[int, int]]:
        """Return when steps paused for their engine, as keys: that is no T_py."""
        ...

    def completed(self, spans: Spans, host: Host, dispatches: Dispatches) -> Spans:
        """Add to the first spans what passed before the part."""
        ...

    def device(self, activities: Activities) -> int:
        """Return the device with most activities."""
        ...

    def t_base(self, here: Estimate) -> int | None: ...
    def t_sys(self, here: Estimate) -> int | None: ...
    def free_dispatch(self, here: Estimate) -> int | None: ...


@dataclass(frozen=True, slots=True)
class WholeTrace:
    """Nothing surrounds a whole trace; `windows` are its steps, or the one it is.

    `engine` is what of the steps was the engine's: thread, start and end.
    """

    backend: Backend
    windows: Sequence[StepWindow]
    engine: Sequence[tuple[int, int, int]] = ()
    is_live: bool = False

    def starts(self, host: Host, dispatches: Dispatches) -> Int64:
        return equations.step_starts(host, dispatches, self.windows)

    def pauses(self, host: Host) -> Sequence[tuple[int, int]]:
        return [
            (thread * host.stride_ns + start_ns - host.origin_ns, thread * host.stride_ns + end_ns - host.origin_ns)
            for thread, start_ns, end_ns in self.engine
        ]

    def completed(self, spans: Spans, host: Host, dispatches: Dispatches) -> Spans:
        return spans

    def device(self, activities: Activities) -> int:
        return main_device(activities)

    def t_base(self, here: Estimate) -> int | None:
        return here()

    def t_sys(self, here: Estimate) -> int | None:
        return None if self.is_live else here()

    def free_dispatch(self, here: Estimate) -> int | None:
        return here()
