"""The CPU backend seen as a device (methodology section 7): leaf ops compute where they are dispatched.

In: `Events` without device activities. Out: the same columns as `dispatches.link`, so that all that follows is one
path: a leaf op's compute is an activity, its start a launch of no length, and its span a call that blocks the host.
"""

from collections.abc import Callable

import numpy as np

from taxbreak_vllm.trace.dispatches import Activities, Dispatches, Host, containing, find_roots, time_line
from taxbreak_vllm.trace.kineto import Events, Kind


def link_cpu(
    events: Events, is_metadata_op: Callable[[str], bool], dispatch_ns: int | None = None
) -> tuple[Host, Activities, Dispatches, int]:
    """Split every leaf op into dispatch and compute; return the columns and the dispatch cost that was used.

    `dispatch_ns` is what the dispatch of an op costs here (measured by replay); without it the trace tells: the median
    of the leaf ops that never compute (view, slice, empty, …), which are dispatch entirely.
    """
    ops = events.rows(Kind.OP)
    origin, stride = time_line(events)
    thread = events.thread[ops].astype(np.int64)
    start = thread * stride + (events.start_ns[ops] - origin)
    end = thread * stride + (events.end_ns[ops] - origin)
    order = np.lexsort((-end, start))
    ops, start, end = ops[order], start[order], end[order]

    is_leaf = np.concatenate((start[1:] >= end[:-1], [True]))
    metadata_name = np.array([is_metadata_op(name) for name in events.names])
    is_metadata = metadata_name[events.name[ops]]
    free = (end - start)[is_leaf & is_metadata]
    cost_ns = dispatch_ns if dispatch_ns is not None else int(np.median(free)) if len(free) else 0
    compute_from = np.minimum(start + cost_ns, end)
    chosen = np.flatnonzero(is_leaf & ~is_metadata & (compute_from < end))

    is_root = find_roots(start, end)
    rows, begin, finish = ops[chosen], compute_from[chosen], end[chosen]
    begin_ns = begin - events.thread[rows].astype(np.int64) * stride + origin
    finish_ns = events.end_ns[rows]
    count = len(chosen)
    by_time = np.argsort(begin_ns, kind="stable")
    position = np.empty(count, dtype=np.intp)
    position[by_time] = np.arange(count)
    ones = np.ones(count, dtype=np.int64)
    nothing = np.zeros(count, dtype=bool)
    host = Host(
        stride_ns=stride,
        origin_ns=origin,
        op_row=ops,
        root_start=start[is_root],
        root_end=end[is_root],
        call_start=begin,
        call_end=finish,
        call_is_launch=nothing,
        call_is_blocking=~nothing,
        num_launches_without_activity=0,
        lost_graph_ns=np.empty(0, dtype=np.int64),
    )
    activities = Activities(
        row=rows[by_time],
        start_ns=begin_ns[by_time],
        end_ns=finish_ns[by_time],
        device=np.zeros(count, dtype=np.int64),
        stream=events.thread[rows][by_time].astype(np.int64),
        name=events.name[rows][by_time],
        is_kernel=~nothing,
        dispatch=by_time,
    )
    dispatches = Dispatches(
        row=rows,
        thread=events.thread[rows],
        launch_ns=begin_ns,
        return_ns=begin_ns,
        launch_key=begin,
        return_key=finish,
        root=containing(host.root_start, host.root_end, begin),
        leaf_name=events.name[rows],
        is_graph=nothing,
        first=position,
        first_kernel=position,
        num_activities=ones,
        num_kernels=ones,
    )
    return host, activities, dispatches, cost_ns
