"""Join device activities to the launches that made them and to the ops around those.

In: `Events`. Out: `Host` (ops and runtime calls on their threads), `Activities` and `Dispatches`, as columns. The join
is by correlation id, one sort and one search; nothing is dropped: an activity without a launch has `dispatch` -1, a
launch call without an activity is counted in `Host`.

Threads share one long time line (`Host.key`): thread i owns [i * stride, (i + 1) * stride), so that one sorted array
and one searchsorted serve all threads at once.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from taxbreak_vllm.model.errors import TraceFormatError
from taxbreak_vllm.trace.backend import (
    copies_to_host,
    does_enqueue,
    is_blocking,
    is_copy,
    is_graph_launch,
    is_launch,
    is_wait,
)
from taxbreak_vllm.trace.events import EventKind, Events
from taxbreak_vllm.trace.intervals import Index, Int64
from taxbreak_vllm.trace.queue import FullQueue

Bool = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Host:
    """What the host threads did.

    All ops (`op_*`) in the order of `key`, root ops (`root_*`), disjoint and in that order too, and runtime calls
    (`call_*`), as keys: positions on the shared time line; `*_row` index Events. `call_is_launch` marks kernel and
    graph launches, `call_is_blocking` what made the host wait, `call_dispatch` indexes Dispatches (-1: no activity came
    of the call).
    `unanswered_ns` are the starts of launch calls that left no trace on the device, aside from calls nested in another
    launch call and from those that a stream captured instead of running them; `lost_graph_ns` of those among them that
    replayed a graph. In [`full_start`, `full_end`), keys too, launch calls waited for room in the device's queue.
    """

    stride_ns: int
    origin_ns: int
    op_row: Index
    op_start: Int64
    root_start: Int64
    root_end: Int64
    call_row: Index
    call_start: Int64
    call_end: Int64
    call_is_launch: Bool
    call_is_blocking: Bool
    call_dispatch: Index
    unanswered_ns: Int64
    lost_graph_ns: Int64
    full_start: Int64
    full_end: Int64

    def key(self, thread: NDArray[np.int32], t_ns: Int64) -> Int64:
        """Place instants of threads on the shared time line."""
        return thread.astype(np.int64) * self.stride_ns + (t_ns - self.origin_ns)


@dataclass(frozen=True, slots=True)
class Activities:
    """Device events by start time: `row` into Events, `dispatch` into Dispatches (-1: no launch event)."""

    row: Index
    start_ns: Int64
    end_ns: Int64
    device: Int64
    stream: Int64
    name: NDArray[np.int32]
    is_kernel: Bool
    dispatch: Index


@dataclass(frozen=True, slots=True)
class Dispatches:
    """Launches that produced at least one activity, in the order of their place on the shared time line.

    `launch_key`/`return_key` on that line, `launch_ns`/`return_ns` in trace time; `root` indexes Host.root_* (-1: no op
    around), `leaf_name` the innermost op's name in Events.names (-1). `first` and `first_kernel` index Activities
    (-1: no kernel).
    """

    row: Index
    thread: NDArray[np.int32]
    launch_ns: Int64
    return_ns: Int64
    launch_key: Int64
    return_key: Int64
    root: Index
    leaf_name: NDArray[np.int32]
    is_graph: Bool
    first: Index
    first_kernel: Index
    num_activities: Int64
    num_kernels: Int64

    def __len__(self) -> int:
        return len(self.row)


def link(events: Events) -> tuple[Host, Activities, Dispatches]:
    """Join launches, activities and ops."""
    ops = events.rows(EventKind.OP)
    calls = events.rows(EventKind.RUNTIME)
    device_rows = events.rows(EventKind.KERNEL, EventKind.MEMCPY, EventKind.MEMSET)
    origin, stride = time_line(events)
    call_of_activity = nearest_call(
        events.correlation[device_rows],
        events.start_ns[device_rows],
        np.where(_by_name(events, calls, is_wait), -1, events.correlation[calls]),
        events.start_ns[calls],
        _by_name(events, calls, does_enqueue),
    )
    order = np.argsort(events.start_ns[device_rows], kind="stable")
    device_rows, call_of_activity = device_rows[order], call_of_activity[order]

    def key(rows: Index, t_ns: Int64) -> Int64:
        return events.thread[rows].astype(np.int64) * stride + (t_ns[rows] - origin)

    op_start, op_end = key(ops, events.start_ns), key(ops, events.end_ns)
    op_order = np.lexsort((-op_end, op_start))
    ops, op_start, op_end = ops[op_order], op_start[op_order], op_end[op_order]
    root_start, root_end = find_roots(op_start, op_end)

    call_start, call_end = key(calls, events.start_ns), key(calls, events.end_ns)
    is_launch_name = _by_name(events, calls, is_launch)
    is_graph_name = _by_name(events, calls, is_graph_launch)
    blocks = _by_name(events, calls, is_blocking)

    num_kernels = np.zeros(len(calls), dtype=np.int64)
    is_kernel = events.kind[device_rows] == EventKind.KERNEL
    linked = call_of_activity >= 0
    np.add.at(num_kernels, call_of_activity[linked & is_kernel], 1)
    num_activities = np.zeros(len(calls), dtype=np.int64)
    np.add.at(num_activities, call_of_activity[linked], 1)
    blocks |= ~is_launch_name & _waited_for_own_copy(events, device_rows, call_of_activity, calls)

    answered = num_activities > 0
    is_told = _is_nested(call_start, call_end, answered) | _is_around(call_start, call_end, answered & is_launch_name)
    is_captured = _is_captured(events, calls, call_start, stride)
    missing = is_launch_name & ~answered & ~is_told & ~is_captured
    chosen = np.flatnonzero(num_activities > 0)
    chosen = chosen[np.argsort(call_start[chosen], kind="stable")]
    dispatch_of_call = np.full(len(calls) + 1, -1, dtype=np.intp)
    dispatch_of_call[chosen] = np.arange(len(chosen))
    activities = Activities(
        row=device_rows,
        start_ns=events.start_ns[device_rows],
        end_ns=events.end_ns[device_rows],
        device=events.device[device_rows],
        stream=events.stream[device_rows],
        name=events.name[device_rows],
        is_kernel=is_kernel,
        dispatch=dispatch_of_call[call_of_activity],  # -1 picks the spare last entry, which is -1
    )
    rows = calls[chosen]
    leaf = innermost(op_start, op_end, call_start[chosen])
    dispatches = Dispatches(
        row=rows,
        thread=events.thread[rows],
        launch_ns=events.start_ns[rows],
        return_ns=events.end_ns[rows],
        launch_key=call_start[chosen],
        return_key=call_end[chosen],
        root=containing(root_start, root_end, call_start[chosen]),
        leaf_name=_names_at(events, ops, leaf),
        is_graph=is_graph_name[chosen],
        first=_first_per(activities.dispatch, len(chosen), np.ones(len(device_rows), dtype=bool)),
        first_kernel=_first_per(activities.dispatch, len(chosen), is_kernel),
        num_activities=num_activities[chosen],
        num_kernels=num_kernels[chosen],
    )
    full = queue_full(activities, dispatches, events)
    host = Host(
        stride_ns=stride,
        origin_ns=origin,
        op_row=ops,
        op_start=op_start,
        root_start=root_start,
        root_end=root_end,
        call_row=calls,
        call_start=call_start,
        call_end=call_end,
        call_is_launch=(num_kernels > 0) | (is_launch_name & (num_activities == 0)),
        call_is_blocking=blocks,
        call_dispatch=dispatch_of_call[:-1],
        unanswered_ns=events.start_ns[calls[missing]],
        lost_graph_ns=events.start_ns[calls[missing & is_graph_name]],
        full_start=dispatches.launch_key[full.dispatch],
        full_end=dispatches.launch_key[full.dispatch] + full.wait_ns,
    )
    return host, activities, dispatches


def queue_full(activities: Activities, dispatches: Dispatches, events: Events) -> FullQueue:
    """Find the launches whose call waited for room in the device's queue."""
    return FullQueue.of(
        dispatches.launch_ns,
        dispatches.return_ns,
        activities.start_ns[dispatches.first],
        events.name[dispatches.row],
        activities.device[dispatches.first],
    )


def lost_copies(events: Events, host: Host) -> Int64:
    """Return the starts of copy calls that left no trace on the device. Fills are not missed: some profilers leave all
    of them out.
    """
    answered = host.call_dispatch >= 0
    is_told = _is_nested(host.call_start, host.call_end, answered) | _is_around(
        host.call_start, host.call_end, answered
    )
    is_captured = _is_captured(events, host.call_row, host.call_start, host.stride_ns)
    is_lost = ~answered & ~is_told & ~is_captured & _by_name(events, host.call_row, is_copy)
    return events.start_ns[host.call_row[is_lost]]


def time_line(events: Events) -> tuple[int, int]:
    """Return (origin, stride) in ns of the shared time line: every thread's events fit into one stride."""
    origin = events.first_ns
    stride = events.last_ns - origin + 2
    if (len(events.threads) + 1) * stride >= 2**62:
        raise TraceFormatError(f"{events.path}: {len(events.threads)} threads over {stride} ns do not fit 64 bits")
    return origin, stride


def require(path: str, num_ops_and_activities: int) -> None:
    """Raise TraceFormatError for a trace that has neither."""
    if not num_ops_and_activities:
        raise TraceFormatError(f"{path}: a trace with neither device activities nor ops; nothing to decompose")


def find_roots(start: Int64, end: Int64) -> tuple[Int64, Int64]:
    """Return start and end of the outermost of nested intervals, given in the order (start, longest first).

    Intervals that cross, as rounding to µs makes them, are one.
    """
    if not len(start):
        return start, end
    covered_to = np.maximum.accumulate(end)
    first = np.flatnonzero(np.concatenate(([True], start[1:] >= covered_to[:-1])))
    return start[first], covered_to[np.concatenate((first[1:] - 1, [len(end) - 1]))]


def containing(start: Int64, end: Int64, at: Int64) -> Index:
    """Return for each instant the index of the disjoint, sorted interval [start, end) it lies in, else -1."""
    index = np.searchsorted(start, at, side="right") - 1
    if not len(start):
        return np.full(len(at), -1, dtype=np.intp)
    return np.where((index >= 0) & (at < end[np.maximum(index, 0)]), index, -1)


def innermost(start: Int64, end: Int64, at: Int64) -> Index:
    """Return for each instant the index of the innermost nested interval [start, end) around it, else -1.

    The intervals come in the order (start, longest first). Of those that hold any instant, from the last one begun,
    step outwards to the next earlier that ends later; a round moves all instants not there yet: as many as they nest.
    """
    instants = np.sort(at)
    holding = np.flatnonzero(np.searchsorted(instants, start) < np.searchsorted(instants, end))
    if not len(holding):
        return np.full(len(at), -1, dtype=np.intp)
    end = end[holding]
    index = np.searchsorted(start[holding], at, side="right") - 1
    outer = next_outer(end)
    while True:
        outside = (index >= 0) & (at >= end[np.maximum(index, 0)])
        if not outside.any():
            return np.where(index >= 0, holding[np.maximum(index, 0)], -1)
        index[outside] = outer[index[outside]]


def next_outer(end: Int64) -> Index:
    """For each interval the nearest earlier one that ends later (-1: none): a stack, popped once per interval."""
    outer = np.full(len(end), -1, dtype=np.intp)
    stack: list[int] = []
    ends = end.tolist()
    for index, this_end in enumerate(ends):
        while stack and ends[stack[-1]] <= this_end:
            stack.pop()
        if stack:
            outer[index] = stack[-1]
        stack.append(index)
    return outer


def nearest_call(wanted: Int64, at_ns: Int64, ids: Int64, start_ns: Int64, enqueues: Bool) -> Index:
    """Return for each wanted correlation id, of an activity that began `at_ns`, the index of its call, -1 for none.

    Where several calls carry one id, those that enqueue by their name go before the others, then the one nearest in
    time (ids begin anew where recordings are joined), of two as near the earlier, of two at once the last in the file.
    Runtimes count from 1: 0 is what an activity or call without an id is written with, unless a launch bears it.
    """
    calls = np.flatnonzero((ids > 0) | ((ids == 0) & enqueues))
    calls = calls[np.argsort(ids[calls], kind="stable")]
    if not len(calls):
        return np.full(len(wanted), -1, dtype=np.intp)
    if np.all(ids[calls[1:]] != ids[calls[:-1]]):  # nearly always, and much faster
        at = np.maximum(np.searchsorted(ids[calls], wanted, side="right") - 1, 0)
        return np.where(ids[calls[at]] == wanted, calls[at], -1)
    calls = calls[enqueues[calls] | ~np.isin(ids[calls], ids[calls[enqueues[calls]]])]
    calls = calls[np.lexsort((start_ns[calls], ids[calls]))]
    is_same = (ids[calls[1:]] == ids[calls[:-1]]) & (start_ns[calls[1:]] == start_ns[calls[:-1]])
    calls = calls[np.concatenate((~is_same, [True]))]
    ids, start_ns = ids[calls], start_ns[calls]
    # The last call at or before each activity: sort both together, then count the calls.
    key = np.concatenate((ids, wanted)), np.concatenate((start_ns, at_ns))
    order = np.lexsort((np.arange(len(key[0])) >= len(calls), key[1], key[0]))
    before = np.empty(len(key[0]), dtype=np.intp)
    before[order] = np.cumsum(order < len(calls)) - 1
    before = before[len(calls) :]
    after = np.minimum(before + 1, len(calls) - 1)
    has_before = (before >= 0) & (ids[before] == wanted)
    has_after = ids[after] == wanted
    is_after_nearer = start_ns[after] - at_ns < at_ns - start_ns[before]
    chosen = np.where(has_after & (~has_before | is_after_nearer), after, before)
    return np.where(has_before | has_after, calls[chosen], -1)


def _by_name(events: Events, rows: Index, rule: Callable[[str], bool]) -> Bool:
    """Apply a rule to the names of rows, once per distinct name."""
    holds = np.zeros(len(events.names) or 1, dtype=bool)
    for name in np.unique(events.name[rows]).tolist():
        holds[name] = rule(events.names[name])
    return holds[events.name[rows]]


def _waited_for_own_copy(events: Events, device_rows: Index, call_of_activity: Index, calls: Index) -> Bool:
    """Mark the calls that copied to the host and returned only after the copy had ended."""
    waited = np.zeros(len(calls), dtype=bool)
    copies = np.flatnonzero((events.kind[device_rows] == EventKind.MEMCPY) & (call_of_activity >= 0))
    copies = copies[_by_name(events, device_rows[copies], copies_to_host)]
    own_calls = call_of_activity[copies]
    returned_after = events.end_ns[calls[own_calls]] >= events.end_ns[device_rows[copies]]
    waited[own_calls[returned_after]] = True
    return waited


def _is_nested(start: Int64, end: Int64, outer: Bool) -> Bool:
    """Mark the calls that lie inside another call of the `outer` ones."""
    begin, finish = start[outer], end[outer]
    order = np.argsort(begin, kind="stable")
    begin, finish = begin[order], np.maximum.accumulate(finish[order]) if len(order) else finish
    index = np.searchsorted(begin, start, side="right") - 1
    if not len(begin):
        return np.zeros(len(start), dtype=bool)
    return np.asarray((index >= 0) & (end <= finish[np.maximum(index, 0)]) & ~outer)


def _is_around(start: Int64, end: Int64, inner: Bool) -> Bool:
    """Mark the calls in which another call of the `inner` ones began, as a runtime's call has those of the driver."""
    begins = np.sort(start[inner])
    return np.asarray(np.searchsorted(begins, end) - np.searchsorted(begins, start) - inner > 0)


def _is_captured(events: Events, calls: Index, start: Int64, stride_ns: int) -> Bool:
    """Mark the calls between the begin and the end of a stream's capture on their thread: they run nothing."""
    begins = np.sort(start[_by_name(events, calls, lambda name: "BeginCapture" in name)])
    ends = np.sort(start[_by_name(events, calls, lambda name: "EndCapture" in name)])
    if not len(begins) or not len(ends):
        return np.zeros(len(calls), dtype=bool)
    index = np.searchsorted(begins, start, side="right") - 1
    until = np.searchsorted(ends, start, side="left")
    begin, end = begins[np.maximum(index, 0)], ends[np.minimum(until, len(ends) - 1)]
    has_both = (index >= 0) & (until < len(ends)) & (begin // stride_ns == end // stride_ns)
    is_open = np.searchsorted(ends, begin, side="left") == until  # no end in between
    return np.asarray(has_both & is_open & (begin // stride_ns == start // stride_ns))


def _names_at(events: Events, rows: Index, index: Index) -> NDArray[np.int32]:
    if not len(rows):
        return np.full(len(index), -1, dtype=np.int32)
    return np.where(index >= 0, events.name[rows[index]], -1).astype(np.int32)


def _first_per(dispatch: Index, num_dispatches: int, chosen: Bool) -> Index:
    """Return the first chosen activity of each dispatch (activities come in time order), -1 for none."""
    first = np.full(num_dispatches, -1, dtype=np.intp)
    rows = np.flatnonzero(chosen & (dispatch >= 0))[::-1]
    first[dispatch[rows]] = rows
    return first
