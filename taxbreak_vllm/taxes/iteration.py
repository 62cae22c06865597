"""A recorded step from its start to the start of the next one on its worker: the unit of a live recording.

In: `Measured` events of a live recording and the window of its sample. Out: the device's time in the iteration and the
idle part of it by cause, exact to the nanosecond; what of the step's window was the engine's.

An idle gap is the host's until the call that launched its end began, even where that lies beyond the iteration. A gap
that nothing recorded ends was ended by what was launched later still, so that all of it is the host's.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from taxbreak_vllm.model.breakdown import EnginePart, ExposedTax, IdleTime, Iteration
from taxbreak_vllm.taxes.measured import Measured
from taxbreak_vllm.trace.dispatches import Bool
from taxbreak_vllm.trace.intervals import Int64, union_by_group
from taxbreak_vllm.trace.steps import StepWindow, engine_spans
from taxbreak_vllm.trace.timeline import HostClass

Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class MeasuredIteration:
    """An iteration, and its idle time and exposed taxes in the words of a step."""

    iteration: Iteration
    idle: IdleTime
    exposed: ExposedTax


def host_without_engine(
    m: Measured, windows: Sequence[StepWindow], thread: NDArray[np.int32], host_ns: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Take what was the engine's off the host time of steps, int64[HostClass, windows]."""
    result = host_ns.copy()
    for index, window in enumerate(windows):
        spans = engine_spans(m.events, window)
        if spans:
            result[:, index] -= _classes(m, int(thread[index]), spans).sum(axis=1)
    return result


def measure_iteration(m: Measured, window: StepWindow, thread: int, is_own: Bool) -> MeasuredIteration:
    """Cut the device's time in the iteration of a step; `is_own` marks the activities that it launched."""
    assert window.next_ns is not None
    start_ns, end_ns = window.start_ns, window.next_ns
    engine = [*engine_spans(m.events, window), (window.end_ns, end_ns)]
    engine_ns = _classes(m, thread, engine).sum(axis=1)

    shown = m.activities.device == m.device
    busy_ns, active_ns = (_union(m, chosen, start_ns, end_ns) for chosen in (shown, shown & is_own))
    by_class, in_engine, queue_ns = _gaps(m, thread, engine, start_ns, end_ns)
    host = by_class - in_engine
    blocked_ns = int(host[HostClass.BLOCKED])
    host[HostClass.BLOCKED] = 0
    idle = {
        "host": int(host.sum()),
        "blocked": blocked_ns,
        "queue": queue_ns,
        "engine": int(in_engine.sum()),
    }
    assert sum(idle.values()) + busy_ns == end_ns - start_ns
    return MeasuredIteration(
        Iteration(
            window_ns=end_ns - start_ns,
            active_ns=active_ns,
            other_active_ns=busy_ns - active_ns,
            idle_ns=sum(idle.values()),
            idle=idle,
            engine=_parts(engine_ns, in_engine, does_wait=m.backend.has_launches),
        ),
        IdleTime(host_ns=idle["host"], blocked_ns=blocked_ns, queue_ns=queue_ns, edge_ns=idle["engine"]),
        ExposedTax(
            delta_ft_ns=int(host[HostClass.PYTHON] + host[HostClass.DISPATCH]),
            delta_ct_ns=int(host[HostClass.LIBRARY]),
            delta_kt_ns=int(host[HostClass.LAUNCH]),
            other_ns=int(host[HostClass.RUNTIME]),
        ),
    )


def _parts(busy_ns: Int64, exposed_ns: Int64, *, does_wait: bool) -> dict[str, EnginePart]:
    """Name what the thread did for the engine: it blocks to wait for a step's tokens, of the rest nothing is known."""
    loop = EnginePart(busy_ns=int(busy_ns.sum()), exposed_ns=int(exposed_ns.sum()))
    if not does_wait:
        return {"loop": loop}
    output = EnginePart(busy_ns=int(busy_ns[HostClass.BLOCKED]), exposed_ns=int(exposed_ns[HostClass.BLOCKED]))
    return {
        "output": output,
        "loop": EnginePart(busy_ns=loop.busy_ns - output.busy_ns, exposed_ns=loop.exposed_ns - output.exposed_ns),
    }


def _gaps(m: Measured, thread: int, engine: Sequence[Span], start_ns: int, end_ns: int) -> tuple[Int64, Int64, int]:
    """Cut the idle gaps of [start, end): by HostClass, of that within the engine's time, and queue."""
    begins, host_ends, ends, on_thread = iteration_gaps(m, thread, start_ns, end_ns)
    by_class = m.partition.between(m.host.key(on_thread, begins), m.host.key(on_thread, host_ends)).sum(axis=1)
    in_engine = np.zeros_like(by_class)
    mine = on_thread == thread
    for span_start, span_end in engine:
        lo, hi = np.maximum(begins[mine], span_start), np.minimum(host_ends[mine], span_end)
        some = lo < hi
        in_engine += _between(m, thread, lo[some], hi[some]).sum(axis=1)
    return by_class, in_engine, int((ends - host_ends).sum())


def iteration_gaps(
    m: Measured, thread: int, start_ns: int, end_ns: int
) -> tuple[Int64, Int64, Int64, NDArray[np.int32]]:
    """Return the idle gaps of [start, end): where each begins, is no longer the host's and ends, and its thread."""
    busy = m.timeline.busy
    begins = np.concatenate(([start_ns], busy.end_ns)).clip(start_ns, end_ns)
    ends = np.concatenate((busy.start_ns, [end_ns])).clip(start_ns, end_ns)
    dispatch = np.append(m.activities.dispatch[m.timeline.opener], -1)
    is_launched = dispatch >= 0
    launched_ns = begins.copy()  # what nobody is known to have launched waits for no host
    launched_ns[-1] = end_ns
    launched_ns[is_launched] = m.dispatches.launch_ns[dispatch[is_launched]]
    on_thread = np.full(len(begins), thread, dtype=np.int32)
    on_thread[is_launched] = m.dispatches.thread[dispatch[is_launched]]
    host_ends = launched_ns.clip(begins, np.maximum(begins, ends))

    keep = ends > begins
    return begins[keep], host_ends[keep], ends[keep], on_thread[keep]


def _union(m: Measured, chosen: Bool, start_ns: int, end_ns: int) -> int:
    a = m.activities
    chosen = chosen & (a.start_ns < end_ns) & (a.end_ns > start_ns)
    begins, ends = a.start_ns[chosen].clip(start_ns, end_ns), a.end_ns[chosen].clip(start_ns, end_ns)
    return int(union_by_group(np.zeros(len(begins), dtype=np.int64), begins, ends, 1)[0])


def _classes(m: Measured, thread: int, spans: Sequence[Span]) -> NDArray[np.int64]:
    starts, ends = np.array(spans, dtype=np.int64).T
    return _between(m, thread, starts, ends)


def _between(m: Measured, thread: int, start_ns: Int64, end_ns: Int64) -> NDArray[np.int64]:
    threads = np.full(len(start_ns), thread, dtype=np.int32)
    return m.partition.between(m.host.key(threads, start_ns), m.host.key(threads, end_ns))
