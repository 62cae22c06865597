"""The CPU backend seen as a device (methodology section 7): ops compute where they are dispatched.

In: `Events` without device activities. Out: the same columns as `dispatches.link`, so that all that follows is one
path: an op's compute is an activity, its start a launch of no length, and its span a call that blocks the host.

Few compute ops are leaves to the letter: `_C::onednn_mm` reads a scalar first, `aten::add` converts one. So an op's
compute is what remains of it after its last child returned and its dispatch and a library's front-end were paid. Ops
that only change shapes never compute, nor does an op outside `aten::` around others that do
(`vllm::unified_attention` is Python inside).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from taxbreak_vllm.trace.dispatches import (
    Activities,
    Bool,
    Dispatches,
    Host,
    containing,
    find_roots,
    next_outer,
    time_line,
)
from taxbreak_vllm.trace.events import EventKind, Events
from taxbreak_vllm.trace.intervals import Index, Int64, median


@dataclass(frozen=True, slots=True)
class OpCosts:
    """What replay says of each op, in the order of `Events.rows(Kind.OP)`, ns: its dispatch and, of a library's, the
    front-end; -1 where it does not say.
    """

    dispatch_ns: Int64
    library_ns: Int64


@dataclass(frozen=True, slots=True)
class BeforeCompute:
    """What comes before compute: the `dispatch_ns` taken for ops of unknown cost, and where libraries' front-ends lie.

    `library_start`, `library_end` are keys, one a dispatch, alike where there is none.
    """

    dispatch_ns: int
    library_start: Int64
    library_end: Int64


def link_cpu(
    events: Events,
    is_metadata_op: Callable[[str], bool],
    costs: OpCosts | None = None,
    *,
    dispatch_ns: int | None = None,
) -> tuple[Host, Activities, Dispatches, BeforeCompute]:
    """Split every op into dispatch, library front-end and compute; return the columns and what came before compute.

    An op that `costs` does not know has no front-end, and its dispatch is `dispatch_ns`; without that the trace tells:
    the median of the leaf ops that never compute (view, slice, empty, …), which are dispatch entirely.
    """
    ops, start, end, order = _in_order(events)
    is_metadata = _is_metadata(events, ops, is_metadata_op)
    aten_name = np.array([name.startswith("aten::") for name in events.names])
    if dispatch_ns is None:
        dispatch_ns = median(free_ns(events, is_metadata_op)) or 0
    own_ns, library_ns = _ordered(costs, order, dispatch_ns)
    outer = next_outer(end)
    library_from = np.maximum(start, _last_child_end(outer, end)) + own_ns
    computes = _outermost_custom(outer, ~is_metadata & (library_from < end), aten_name[events.name[ops]])
    compute_from = np.minimum(library_from + library_ns, end)
    chosen = np.flatnonzero(computes)
    chosen = chosen[np.argsort(compute_from[chosen], kind="stable")]

    root_start, root_end = find_roots(start, end)
    rows, begin, finish = ops[chosen], compute_from[chosen], end[chosen]
    origin, stride = time_line(events)
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
        op_start=start,
        root_start=root_start,
        root_end=root_end,
        call_row=rows,
        call_start=begin,
        call_end=finish,
        call_is_launch=nothing,
        call_is_blocking=~nothing,
        call_dispatch=np.arange(count),
        unanswered_ns=np.empty(0, dtype=np.int64),
        lost_graph_ns=np.empty(0, dtype=np.int64),
        full_start=np.empty(0, dtype=np.int64),
        full_end=np.empty(0, dtype=np.int64),
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
    return host, activities, dispatches, BeforeCompute(dispatch_ns, library_from[chosen], begin)


def _ordered(costs: OpCosts | None, order: Index, otherwise_ns: int) -> tuple[Int64, Int64]:
    """Return dispatch and front-end of the ops in this order, with what stands for the unknown."""
    if costs is None:
        return np.full(len(order), otherwise_ns, dtype=np.int64), np.zeros(len(order), dtype=np.int64)
    dispatch_ns = np.where(costs.dispatch_ns < 0, otherwise_ns, costs.dispatch_ns)[order]
    return dispatch_ns, np.maximum(costs.library_ns, 0)[order]


def free_ns(events: Events, is_metadata_op: Callable[[str], bool]) -> Int64:
    """Return how long each leaf op took that never computes, in ns: its dispatch and nothing else."""
    ops, start, end, _ = _in_order(events)
    is_leaf = np.concatenate((start[1:] >= end[:-1], [True]))[: len(ops)]
    return np.asarray((end - start)[is_leaf & _is_metadata(events, ops, is_metadata_op)])


def _in_order(events: Events) -> tuple[Index, Int64, Int64, Index]:
    """Return the ops in the order (start, longest first) with their starts and ends as keys, and the order itself."""
    ops = events.rows(EventKind.OP)
    origin, stride = time_line(events)
    thread = events.thread[ops].astype(np.int64)
    start = thread * stride + (events.start_ns[ops] - origin)
    end = thread * stride + (events.end_ns[ops] - origin)
    order = np.lexsort((-end, start))
    return ops[order], start[order], end[order], order


def _is_metadata(events: Events, ops: Index, is_metadata_op: Callable[[str], bool]) -> Bool:
    return np.array([is_metadata_op(name) for name in events.names])[events.name[ops]]


def _last_child_end(outer: Index, end: Int64) -> Int64:
    """Return when the last child of each op returned, -1 for a leaf; `outer` is of `next_outer`."""
    last = np.full(len(end), -1, dtype=np.int64)
    has_outer = outer >= 0
    np.maximum.at(last, outer[has_outer], end[has_outer])
    return last


def _outermost_custom(outer_op: Index, candidate: Bool, is_aten: Bool) -> Bool:
    """Drop the ops outside `aten::` that have a computing op below them: they are glue around it."""
    outer = outer_op.tolist()
    computes = candidate.tolist()
    has_computing_child = [False] * len(outer)
    aten = is_aten.tolist()
    for index in range(len(outer) - 1, -1, -1):  # children come after their parents
        if has_computing_child[index] and not aten[index]:
            computes[index] = False
        if outer[index] >= 0 and (computes[index] or has_computing_child[index]):
            has_computing_child[outer[index]] = True
    return np.array(computes, dtype=bool)
