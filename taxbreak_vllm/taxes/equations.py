"""The methodology's equations over columns of dispatches: T_py, T_dispatch, T_base, ΔCT, ΔFT, ΔKT, T_sys.

In: the columns of `trace`. Out: one value a dispatch, int64 ns. Each function is named after its symbol and cites its
equation of TaxBreak (arXiv 2603.12465); `decompose` puts them together. Nothing here reads files or prints.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from taxbreak_vllm.trace.dispatches import Activities, Bool, Dispatches, Host
from taxbreak_vllm.trace.intervals import Int64, Partition, median
from taxbreak_vllm.trace.steps import StepWindow
from taxbreak_vllm.trace.timeline import HostClass

# Of the launches that found their stream idle, this share is quicker than what we take for T_sys from a trace alone.
FLOOR_PERCENTILE = 5


@dataclass(frozen=True, slots=True)
class Edges:
    """Where the spans of each dispatch begin and end, as keys: T_py is the Python in [since, root), T_dispatch the
    dispatch in [begin, launch_key). Only the first launch under a root op (`is_first`) has a T_py.
    """

    since: Int64
    root: Int64
    begin: Int64
    is_first: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Spans:
    """T_py and T_dispatch of each dispatch (methodology section 2), int64 ns, and how many ops began within them."""

    t_py: Int64
    t_dispatch: Int64
    num_ops: Int64


def spans(
    host: Host,
    dispatches: Dispatches,
    partition: Partition,
    step_start: Int64,
    pauses: Sequence[tuple[int, int]] = (),
) -> Spans:
    """Measure the raw host spans of every dispatch, exclusively: no instant counts for two of them.

    `step_start` (of `step_starts`) are boundaries of T_py like the end of a root op, of a launch or of a blocking call;
    before a thread's first event or own step nothing is known of it. What passes in `pauses` (start and end as keys) is
    the engine's and in no span.
    """
    has_root = dispatches.root >= 0
    edges = span_edges(host, dispatches, step_start)
    t_dispatch = partition.between(edges.begin, dispatches.launch_key)[HostClass.DISPATCH]
    python = partition.between(edges.since, edges.root)[HostClass.PYTHON]
    python -= _python_within(partition, pauses, edges.since, edges.root)
    t_py = np.where(edges.is_first, python, 0)
    num_ops = np.where(has_root, ops_between(host, edges.begin, dispatches.launch_key), 0)
    return Spans(t_py=t_py, t_dispatch=np.where(has_root, t_dispatch, 0), num_ops=num_ops)


def span_edges(host: Host, dispatches: Dispatches, step_start: Int64) -> Edges:
    """Find the edges of the spans of every dispatch."""
    has_root = dispatches.root >= 0
    previous = np.concatenate(([-1], dispatches.root[:-1])) if len(dispatches) else dispatches.root
    is_first = ~has_root | (dispatches.root != previous)
    t_root = dispatches.launch_key.copy()
    t_root[has_root] = host.root_start[dispatches.root[has_root]]
    # A later launch under the same root op starts where the one before it returned.
    previous_return = np.concatenate(([0], dispatches.return_key[:-1])) if len(dispatches) else dispatches.return_key
    begin = np.where(is_first, t_root, np.minimum(previous_return, dispatches.launch_key))

    known_from = _first_per_thread(host, step_start)
    is_boundary = (host.call_is_launch | host.call_is_blocking) & (host.call_dispatch < 0)
    boundary = np.sort(np.concatenate((host.root_end, host.call_end[is_boundary], step_start, known_from)))
    t_boundary = boundary[np.searchsorted(boundary, t_root, side="right") - 1]
    # A launch is a boundary for those after it, never for itself, though its call may have no length.
    returned = np.concatenate(([0], np.maximum.accumulate(dispatches.return_key)))[: len(dispatches)]
    return Edges(
        since=np.maximum(t_boundary, np.minimum(returned, t_root)), root=t_root, begin=begin, is_first=is_first
    )


def cpu_spans(
    host: Host,
    dispatches: Dispatches,
    partition: Partition,
    step_start: Int64,
    pauses: Sequence[tuple[int, int]] = (),
) -> Spans:
    """Share all Python and dispatch time among the computing ops of the CPU backend (methodology section 7).

    Each gets what passed since the last one computed on its thread, or the step began: ops that compute nothing too.
    """
    known_from = _first_per_thread(host, step_start)
    boundary = np.sort(np.concatenate((dispatches.return_key, step_start, known_from)))
    since = boundary[np.searchsorted(boundary, dispatches.launch_key, side="right") - 1]
    shares = partition.between(since, dispatches.launch_key)
    num_ops = ops_between(host, since, dispatches.launch_key)
    t_py = shares[HostClass.PYTHON] - _python_within(partition, pauses, since, dispatches.launch_key)
    return Spans(t_py=t_py, t_dispatch=shares[HostClass.DISPATCH], num_ops=num_ops)


def _python_within(
    partition: Partition, pauses: Sequence[tuple[int, int]], start: Int64, end: Int64
) -> NDArray[np.int64]:
    """Return how much Python of each [start, end) ran in pauses, all given as keys: that was the engine's."""
    total = np.zeros_like(start)
    for pause_start, pause_end in pauses:
        begin = np.maximum(start, pause_start)
        total += partition.between(begin, np.minimum(end, pause_end))[HostClass.PYTHON]
    return total


def ops_between(host: Host, start: Int64, end: Int64) -> Int64:
    """Count the ops that begin in each [start, end), given as keys."""
    return np.searchsorted(host.op_start, end, side="left") - np.searchsorted(host.op_start, start, side="left")


def step_starts(host: Host, dispatches: Dispatches, windows: Sequence[StepWindow]) -> Int64:
    """Place the steps' starts on the threads that launch: what a thread did before a step is not the step's.

    A step's own thread is known from its start on, any other from its first event.
    """
    threads = np.unique(dispatches.thread)
    start_ns = np.array([window.start_ns for window in windows], dtype=np.int64)
    own_thread = np.array([window.thread for window in windows], dtype=np.int32)
    known_from = _first_per_thread(host, host.key(own_thread, start_ns))
    thread = np.repeat(threads, len(windows))
    keys = host.key(thread, np.tile(start_ns, len(threads)))
    return np.asarray(keys[keys >= known_from[np.searchsorted(known_from // host.stride_ns, thread)]])


def _first_per_thread(host: Host, others: Int64) -> Int64:
    """The key of the first op, call or other instant of each thread that has one."""
    keys = np.sort(np.concatenate((host.root_start, host.call_start, others)))
    thread = keys // host.stride_ns
    return np.asarray(keys[np.concatenate(([True], thread[1:] != thread[:-1]))[: len(keys)]])


def t_base(t_dispatch: Int64, i_lib: Bool, is_kernel_launch: Bool) -> int | None:
    """T_base: the median T_dispatch of kernel launches that go through no vendor library (Eq. 2); None without any."""
    return median(t_dispatch[is_kernel_launch & ~i_lib])


def delta_ct(t_dispatch: Int64, i_lib: Bool, base_ns: int, replayed: Int64 | None = None) -> Int64:
    """ΔCT = I_lib · max(0, T_dispatch,replayed - T_base) (Eq. 2), never more than the T_dispatch it is a part of.

    Where a dispatch was not `replayed` (None, or -1), its T_dispatch in the trace stands for that.
    """
    alone = t_dispatch if replayed is None else np.where(replayed < 0, t_dispatch, replayed)
    return np.where(i_lib, np.clip(alone - base_ns, 0, t_dispatch), 0)


def delta_ft(spans: Spans, ct_ns: Int64 | None) -> Int64:
    """ΔFT = T_py + T_dispatch - ΔCT (Eq. 1); an unknown ΔCT is not taken off."""
    return spans.t_py + spans.t_dispatch - (0 if ct_ns is None else ct_ns)


def delta_ft_cpu(host_ns: NDArray[np.int64], num_ops: Int64, op_cost_ns: int) -> Int64:
    """ΔFT of windows on the CPU backend: all their Python and dispatch, also after the last op that computes.

    `host_ns` is int64[HostClass, windows] (methodology section 7).
    """
    return observed(host_ns[HostClass.PYTHON] + host_ns[HostClass.DISPATCH], num_ops, op_cost_ns)


def observed(tax_ns: Int64, num_ops: Int64, op_cost_ns: int) -> Int64:
    """Take the profiler's own cost off a tax that holds `num_ops` recorded ops (methodology section 5), down to 0."""
    return np.asarray(np.maximum(tax_ns - num_ops * op_cost_ns, 0))


def delta_kt(is_kernel_launch: Bool, floor_ns: int | Int64) -> Int64:
    """ΔKT = T_sys per kernel launch, none for copies and fills (Eq. 3)."""
    return np.where(is_kernel_launch, floor_ns, 0)


def t_sys_graph(num_nodes: Int64, measured: Sequence[tuple[int, int]]) -> Int64:
    """T_sys_graph(n), from graphs of empty nodes as (nodes, ns), at least two, by nodes: straight lines between them.

    Beyond the largest goes on the line through the last two.
    """
    nodes, ns = np.array(measured, dtype=np.float64).T
    beyond = np.maximum(num_nodes - nodes[-1], 0) * (ns[-1] - ns[-2]) / (nodes[-1] - nodes[-2])
    return np.asarray(np.rint(np.interp(num_nodes, nodes, ns) + beyond), dtype=np.int64)


def delta_kt_excess(t_launch_replayed: Int64, floor_ns: int) -> Int64 | None:
    """ΔKT_excess = max(0, T_launch,replayed - T_sys); 0 for a launch never replayed (-1), None where none was."""
    known = t_launch_replayed >= 0
    return np.where(known, np.maximum(t_launch_replayed - floor_ns, 0), 0) if known.any() else None


def t_sys(activities: Activities, dispatches: Dispatches) -> int | None:
    """Estimate T_sys from a trace: a low percentile of launch to start over plain launches that found an idle stream.

    A launch behind other work measures queueing, so it has no say; None where no launch found its stream idle.
    """
    latency = idle_latencies(activities, dispatches)
    valid = latency[latency > 0]
    return int(np.percentile(valid, FLOOR_PERCENTILE, method="lower")) if len(valid) else None


def idle_latencies(activities: Activities, dispatches: Dispatches) -> Int64:
    """Return launch to start of each plain launch that found its stream idle, 0 for all others."""
    chosen = np.flatnonzero((dispatches.num_kernels == 1) & (dispatches.num_activities == 1) & ~dispatches.is_graph)
    latency = np.zeros(len(dispatches), dtype=np.int64)
    if len(chosen):
        first = dispatches.first[chosen]
        idle = dispatches.launch_ns[chosen] >= _stream_busy_until(activities)[first]
        latency[chosen] = np.where(idle, activities.start_ns[first] - dispatches.launch_ns[chosen], 0)
    return np.maximum(latency, 0)


def _stream_busy_until(activities: Activities) -> Int64:
    """For each activity, until when the earlier ones on its stream kept that busy; the minimum int64 for the first."""
    order = np.lexsort((activities.start_ns, activities.stream, activities.device))
    stream, device, end_ns = activities.stream[order], activities.device[order], activities.end_ns[order]
    opens = np.concatenate(([True], (stream[1:] != stream[:-1]) | (device[1:] != device[:-1])))
    # Each stream on a stretch of its own, so that one running maximum serves all (ROCm overlaps work on one stream).
    shift = np.cumsum(opens) * (int(end_ns.max() - end_ns.min()) + 1) - end_ns.min()
    busy_until = np.concatenate(([0], (np.maximum.accumulate(end_ns + shift) - shift)[:-1]))
    busy_until[opens] = np.iinfo(np.int64).min
    result = np.empty_like(busy_until)
    result[order] = busy_until
    return result


def library_spans(partition: Partition, dispatches: Dispatches, ct_ns: Int64) -> tuple[Int64, Int64]:
    """Place each ΔCT on the time line: the last part of its dispatch before the launch, where the front-end works."""
    chosen = ct_ns > 0
    end = dispatches.launch_key[chosen]
    return partition.back_from(end, HostClass.DISPATCH, ct_ns[chosen]), end
