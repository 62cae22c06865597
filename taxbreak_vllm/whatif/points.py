"""The instants of the host that a dependency graph is made of.

In: the columns of a recording and its steps. Out: `Points`: starts and ends of calls, of steps, of what the engine does
within them, and of bursts, by thread and time; between two neighbours on a thread nothing happens that anybody waits
for.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from taxbreak_vllm.trace.dispatches import Host
from taxbreak_vllm.trace.events import EventKind, Events
from taxbreak_vllm.trace.intervals import Index, Int64
from taxbreak_vllm.trace.steps import StepWindow
from taxbreak_vllm.whatif.polls import WAITER_QUIET_NS, Polls

QUIET_NS = 100_000  # a thread without any op or call for longer waits for something, or works unseen


class PointKind(IntEnum):
    """What a point is. Of several at one instant the lower goes first: what ends there, ends before what begins."""

    CALL_END = 0
    BURST_END = 1
    STEP_END = 2
    STEP_START = 3
    BURST_START = 4
    CALL_START = 5


@dataclass(frozen=True, slots=True)
class Bursts:
    """Stretches of a thread with no long pause: first and last point of each, in order of time."""

    thread: NDArray[np.int32]
    start_ns: Int64
    end_ns: Int64


@dataclass(frozen=True, slots=True)
class Points:
    """Instants of host threads, by thread and time.

    `rank` is the order of points at one instant. `previous` indexes the point before on the same thread (-1: the
    first). `call_start` and `call_end` lead from Host.call_* to points, `step_start`, `step_end` and `next_step` from
    the steps (`next_step` -1: what came after it is not known), `burst_start` and `burst_end` from `bursts`.
    """

    at_ns: Int64
    thread: NDArray[np.int32]
    kind: NDArray[np.int8]
    rank: Int64
    previous: Index
    call_start: Index
    call_end: Index
    step_start: Index
    step_end: Index
    next_step: Index
    bursts: Bursts
    burst_start: Index
    burst_end: Index

    @classmethod
    def of(cls, events: Events, host: Host, windows: Sequence[StepWindow], polls: Polls) -> "Points":
        """Collect and order all instants."""
        calls, bursts = host.call_row, find_bursts(events, host, windows, polls)
        window_thread = np.array([window.thread for window in windows], dtype=np.int32)
        starts = np.array([window.start_ns for window in windows], dtype=np.int64)
        ends = np.array([window.end_ns for window in windows], dtype=np.int64)
        after = _next_starts(windows)
        has_next = (after >= 0) & ~np.isin(after, starts)
        groups = (
            (PointKind.CALL_START, events.thread[calls], events.start_ns[calls], events.end_ns[calls]),
            (PointKind.CALL_END, events.thread[calls], events.end_ns[calls], events.start_ns[calls]),
            (PointKind.STEP_START, window_thread, starts, ends),
            (PointKind.STEP_END, window_thread, ends, starts),
            (PointKind.STEP_START, window_thread[has_next], after[has_next], after[has_next]),
            (PointKind.BURST_START, bursts.thread, bursts.start_ns, bursts.end_ns),
            (PointKind.BURST_END, bursts.thread, bursts.end_ns, bursts.start_ns),
        )
        thread = np.concatenate([group[1] for group in groups])
        at_ns = np.concatenate([group[2] for group in groups])
        other_ns = np.concatenate([group[3] for group in groups])
        kind = np.repeat(np.array([group[0] for group in groups], dtype=np.int8), [len(group[1]) for group in groups])
        rank = _rank(kind, at_ns, other_ns)
        order = np.lexsort((-other_ns, rank, at_ns, thread))
        place = np.empty(len(order), dtype=np.intp)
        place[order] = np.arange(len(order))
        bounds = np.cumsum([len(group[1]) for group in groups])[:-1]
        call_start, call_end, step_start, step_end, next_step, burst_start, burst_end = np.split(place, bounds)
        followed = np.full(len(windows), -1, dtype=np.intp)
        followed[has_next] = next_step
        by_start = np.argsort(starts, kind="stable")
        is_step = (after >= 0) & ~has_next
        followed[is_step] = step_start[by_start[np.searchsorted(starts[by_start], after[is_step])]]
        thread = thread[order]
        previous = np.arange(-1, len(order) - 1)
        previous[1:][thread[1:] != thread[:-1]] = -1
        return cls(
            at_ns=at_ns[order],
            thread=thread,
            kind=kind[order],
            rank=rank[order],
            previous=previous,
            call_start=call_start,
            call_end=call_end,
            step_start=step_start,
            step_end=step_end,
            next_step=followed,
            bursts=bursts,
            burst_start=burst_start,
            burst_end=burst_end,
        )


def find_bursts(events: Events, host: Host, windows: Sequence[StepWindow], polls: Polls) -> Bursts:
    """Return the stretches in which each thread does something that is seen, as a step's start or a loop that waits."""
    rows = events.rows(EventKind.OP, EventKind.RUNTIME)
    first, last = host.call_row[polls.first], host.call_row[polls.last]
    steps, starts, ends = [w.thread for w in windows], [w.start_ns for w in windows], [w.end_ns for w in windows]
    thread = np.concatenate((events.thread[rows], events.thread[first], steps, steps))
    start = np.concatenate((events.start_ns[rows], events.start_ns[first], starts, ends))
    end = np.concatenate((events.end_ns[rows], events.end_ns[last], starts, ends))
    thread, start, end = thread.astype(np.int32), start.astype(np.int64), end.astype(np.int64)
    order = np.lexsort((start, thread))
    thread, start, end = thread[order], start[order], end[order]
    # Each thread on a stretch of its own, so that one running maximum serves all.
    stretch = (events.last_ns - events.first_ns + QUIET_NS + 1) * thread.astype(np.int64) - events.first_ns
    covered = np.maximum.accumulate(end + stretch) if len(end) else end
    opens = np.ones(len(start), dtype=bool)
    works = np.union1d(events.thread[host.call_row[host.call_is_launch]], [w.thread for w in windows])
    quiet_ns = np.where(np.isin(thread, works), QUIET_NS, WAITER_QUIET_NS)
    opens[1:] = (start + stretch)[1:] - covered[:-1] > quiet_ns[1:]
    first = np.flatnonzero(opens)
    last = np.append(first[1:], len(start)) - 1
    return Bursts(thread=thread[first], start_ns=start[first], end_ns=(covered - stretch)[last])


def _next_starts(windows: Sequence[StepWindow]) -> Int64:
    """Return when the step after each one began, -1 where that was not recorded."""
    after = [window.next_ns for window in windows]
    for number in range(len(windows) - 1):
        if after[number] is None and windows[number + 1].thread == windows[number].thread:
            after[number] = windows[number + 1].start_ns
    return np.array([-1 if ns is None else ns for ns in after], dtype=np.int64)


def _rank(kind: NDArray[np.int8], at_ns: Int64, other_ns: Int64) -> Int64:
    """Rank points of one instant: what ends, what begins; in between, calls without length begin, then end."""
    rank = kind.astype(np.int64) * 2
    is_empty = at_ns == other_ns
    rank[is_empty & (kind == PointKind.CALL_START)] = PointKind.CALL_START * 2 - 2
    rank[is_empty & (kind == PointKind.CALL_END)] = PointKind.CALL_START * 2 - 1
    return rank
