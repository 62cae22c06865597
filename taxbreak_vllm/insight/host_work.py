"""The host's work of a step as a whole, and the part of it that the device waited for.

In: a step, or a sum of steps. Out: `HostWork` by layer, the sum first. The whole is the time of the thread, so the part
never exceeds it; a tax is not such a whole, for it is only the time that leads up to launches.
"""

from dataclasses import dataclass

from taxbreak_vllm.model.breakdown import StepBreakdown, sum_or_none


@dataclass(frozen=True, slots=True, kw_only=True)
class HostWork:
    """What the host's thread did in one layer, and how long the device stood idle for it; None is not known."""

    layer: str
    work_ns: int
    waited_ns: int | None

    @property
    def hidden_ns(self) -> int:
        """Return what of it went on behind a busy device."""
        return max(0, self.work_ns - (self.waited_ns or 0))

    @property
    def waited_ratio(self) -> float | None:
        """Return the part that the device waited for, of the whole."""
        return None if self.waited_ns is None or not self.work_ns else min(1.0, self.waited_ns / self.work_ns)


def host_work(step: StepBreakdown) -> tuple[HostWork, ...]:
    """Name all of it, then Python and op dispatch, vendor library, launch calls, other runtime calls."""
    host, exposed = step.host, step.exposed
    layers = (
        HostWork(layer="python", work_ns=host.python_ns + host.dispatch_ns, waited_ns=exposed.delta_ft_ns),
        HostWork(layer="library", work_ns=host.library_ns, waited_ns=exposed.delta_ct_ns),
        HostWork(layer="launch", work_ns=host.launch_ns, waited_ns=exposed.delta_kt_ns),
        HostWork(layer="runtime", work_ns=host.runtime_ns, waited_ns=exposed.other_ns),
    )
    waited_ns = sum_or_none(one.waited_ns for one in layers)
    return HostWork(layer="all", work_ns=sum(one.work_ns for one in layers), waited_ns=waited_ns), *layers
