"""Who waits for whom between host and device, and between streams: told by a recording, or inferred where it is silent.

In: calls, the device's order. Out: pairs of what is waited for and what waits, as columns of indices.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from taxbreak_vllm.trace.backend import waits_for_device
from taxbreak_vllm.trace.dispatches import Activities, Bool, Dispatches, Host
from taxbreak_vllm.trace.events import Events
from taxbreak_vllm.trace.intervals import Index, Int64, median
from taxbreak_vllm.whatif.constants import Calls, median_by
from taxbreak_vllm.whatif.streams import Launched, Streams

UNSEEN_NS = 50_000  # a call that blocks for longer than what it waits for explains waits for something unseen
_LATE_NS = 1_000  # by so much device and host clocks may disagree
_INSTANT_NS = 5_000  # a call that returns within this has not waited
_NEVER = np.iinfo(np.int64).min
_RETURN_NS = 5_000  # from the end of what a call waits for to its return, where no call of that name ever waited
_IDLE_NS = 2_000  # how long a call takes whose event has passed, where none of that name found it so


@dataclass(frozen=True, slots=True)
class Blocking:
    """Blocking calls (into Host.call_*) and the activity each waits for (-1: not known).

    `return_ns` is how long after that one's end such calls return (at most, where none ever waited), `idle_ns` how long
    they take when it has ended before, `unseen_ns` how much of the call neither explains. `possible` is what a call may
    wait for that never did: a recording in which the event had always passed does not tell which event it was.
    """

    call: Index
    awaited: Index
    possible: Index
    return_ns: Int64
    idle_ns: Int64
    unseen_ns: Int64

    @classmethod
    def of(
        cls,
        events: Events,
        host: Host,
        calls: Calls,
        activities: Activities,
        dispatches: Dispatches,
        queues: list[Launched],
    ) -> "Blocking":
        """Find what each blocking call waits for.

        A copy waits for itself, a device's synchronization for all streams, a stream's for what of the last launched on
        each stream had ended by its return. Events are told apart by `_event_waited_for`.
        """
        call = np.flatnonzero(host.call_is_blocking)
        start_ns, end_ns, name = calls.start_ns[call], calls.end_ns[call], calls.name[call]
        is_device, is_event = np.zeros(len(call), dtype=bool), np.zeros(len(call), dtype=bool)
        for number in np.unique(name).tolist():
            text = events.names[number]
            is_device[name == number] = waits_for_device(text)
            is_event[name == number] = "Event" in text
        awaited, awaited_end = np.full(len(call), -1, dtype=np.intp), np.full(len(call), _NEVER)
        for queue in queues:
            found = queue.before(start_ns)
            found = np.where(is_event, queue.ended(found, end_ns + _LATE_NS // 2, activities.end_ns), found)
            found_end = np.where(found >= 0, activities.end_ns[found], _NEVER)
            fits = (found >= 0) & (is_device | (found_end <= end_ns + _LATE_NS)) & (found_end > awaited_end)
            awaited[fits], awaited_end[fits] = found[fits], found_end[fits]
        own = host.call_dispatch[call]
        is_event &= own < 0
        last = _last_of_dispatch(activities, len(dispatches))
        awaited = np.where(own >= 0, last[np.maximum(own, 0)] if len(last) else -1, awaited)
        possible = np.full(len(call), -1, dtype=np.intp)
        group = name * (len(events.threads) + 1) + events.thread[host.call_row[call]]
        for number in np.unique(group[is_event]).tolist():
            rows = np.flatnonzero(is_event & (group == number))
            awaited[rows], possible[rows] = _event_waited_for(
                start_ns[rows], end_ns[rows], awaited[rows], queues, activities
            )
        done_ns = np.where(awaited >= 0, activities.end_ns[awaited], _NEVER)
        waited = (awaited >= 0) & (done_ns > start_ns)
        late_ns = np.where(waited, end_ns - np.maximum(done_ns, start_ns), end_ns - start_ns)
        explained = late_ns < UNSEEN_NS
        return_ns = _median(name, late_ns, waited & explained, _RETURN_NS)
        return_ns = np.where((possible >= 0) & ~np.isin(name, name[waited & explained]), UNSEEN_NS, return_ns)
        # What ended right before the call may still hold it: only the rest tells what a call takes that need not wait.
        free = ((awaited < 0) & is_event) | ((awaited >= 0) & (done_ns <= start_ns - return_ns))
        return cls(
            call=call,
            awaited=np.where((awaited >= 0) & explained, awaited, -1),
            possible=possible,
            return_ns=return_ns,
            idle_ns=np.minimum(_median(name, late_ns, free & explained, _IDLE_NS, by_all=False), end_ns - start_ns),
            unseen_ns=np.where(explained & ((awaited >= 0) | is_event), 0, end_ns - start_ns),
        )


def _event_waited_for(
    start_ns: Int64, end_ns: Int64, latest: Index, queues: list[Launched], activities: Activities
) -> tuple[Index, Index]:
    """Return what calls of one name and thread wait for that wait for events, and what they may wait for.

    Their events are most often of one stream: that after whose activities they return most regularly. Those that had
    to wait tell how many launches back the event lies. Where none had to, the last launch may be what they wait for.
    """
    is_long = end_ns - start_ns > _INSTANT_NS
    best: tuple[float, Index, NDArray[np.intp], Launched] | None = None
    for queue in queues:
        if not len(queue.activity):
            continue
        ends = activities.end_ns[queue.last]
        before = np.searchsorted(queue.launch_ns, start_ns, side="left") - 1
        place = np.minimum(before, np.searchsorted(ends, end_ns + _LATE_NS // 2, side="right") - 1)
        done_ns = np.where(place >= 0, ends[np.maximum(place, 0)], _NEVER)
        waits = np.flatnonzero(is_long & (done_ns > start_ns) & (end_ns - done_ns < UNSEEN_NS))
        if not len(waits):
            continue
        # No call returns before its event: where one lies further back than the last to end, all may.
        furthest = before - int((before - place).max())
        furthest_ns = ends[np.maximum(furthest[waits], 0)]
        if ((furthest[waits] >= 0) & (furthest_ns > start_ns[waits]) & (end_ns[waits] - furthest_ns < UNSEEN_NS)).all():
            place, done_ns[waits] = furthest, furthest_ns
        late = np.sort(end_ns[waits] - done_ns[waits])
        spread = float(late[(3 * len(late)) // 4] - late[0]) + UNSEEN_NS / len(waits)
        if not activities.is_kernel[queue.last[place[waits]]].all():
            spread /= 2  # a host mostly waits for what was copied to it
        if best is None or spread < best[0]:
            best = spread, before - place, waits, queue
    if best is None:
        return np.full(len(start_ns), -1, dtype=np.intp), _newest_passed(start_ns, queues, activities)
    _, back, waits, queue = best
    usual = np.full(len(start_ns), int(np.sort(back[waits])[len(waits) // 2]))
    usual[waits] = back[waits]
    place = np.searchsorted(queue.launch_ns, start_ns, side="left") - 1 - usual
    found = np.where(place >= 0, queue.last[np.maximum(place, 0)], -1)
    done_ns = np.where(found >= 0, activities.end_ns[found], _NEVER)
    found = np.where(done_ns > end_ns + _LATE_NS, -1, found)
    unseen = (found < 0) | ((end_ns - np.maximum(done_ns, start_ns) >= UNSEEN_NS) & (latest >= 0))
    return np.where(unseen, latest, found), np.full(len(start_ns), -1, dtype=np.intp)


def _newest_passed(at_ns: Int64, queues: list[Launched], activities: Activities) -> Index:
    """Return for each instant the activity to have ended last of all before it, -1 for none."""
    newest, newest_end = np.full(len(at_ns), -1, dtype=np.intp), np.full(len(at_ns), _NEVER)
    for queue in queues:
        found = queue.ended(queue.before(at_ns), at_ns, activities.end_ns)
        end_ns = np.where(found >= 0, activities.end_ns[found], _NEVER)
        later = (end_ns > newest_end) & (end_ns <= at_ns)
        newest[later], newest_end[later] = found[later], end_ns[later]
    return newest


def _median(name: Int64, values: Int64, counted: Bool, otherwise: int, *, by_all: bool = True) -> Int64:
    """Return for each name the median of its counted values, where it has none that of all, if these are alike."""
    known, found = median_by(name[counted], values[counted], name, min_count=1)
    usual = median(values[counted]) if by_all else None
    return np.where(known, found, otherwise if usual is None else usual)


def _last_of_dispatch(activities: Activities, count: int) -> Index:
    """Return for each dispatch which of its activities ends last."""
    last = np.full(count, -1, dtype=np.intp)
    rows = np.flatnonzero(activities.dispatch >= 0)
    rows = rows[np.argsort(activities.end_ns[rows], kind="stable")]
    last[activities.dispatch[rows]] = rows
    return last


@dataclass(frozen=True, slots=True)
class Pairs:
    """Activities that wait for the end of others: `awaited` and `waiting`, into Activities."""

    awaited: Index
    waiting: Index


def event_waits(
    events: Events,
    host: Host,
    calls: Calls,
    activities: Activities,
    streams: Streams,
    queues: list[Launched],
) -> Pairs:
    """Return which launches wait for other streams: those after a call that makes a stream wait for an event.

    Which stream and which event a recording does not say. So the wait holds the first launch after it on each stream,
    made by the same thread, for the last one launched before it on every other, unless that ended later.
    """
    is_wait = np.array(["StreamWaitEvent" in name for name in events.names] or [False])
    rows = np.flatnonzero(is_wait[calls.name])
    if not len(rows) or len(queues) < 2:
        return Pairs(np.empty(0, dtype=np.intp), np.empty(0, dtype=np.intp))
    wait_key = np.sort(host.call_start[rows])
    awaited: list[Index] = []
    waiting: list[Index] = []
    for queue in queues:
        own = queue.activity[streams.is_first[queue.activity]]
        launch = streams.call[own]
        place = np.searchsorted(wait_key, host.call_start[launch], side="left") - 1
        key = wait_key[np.maximum(place, 0)]
        wait_ns = key % host.stride_ns + host.origin_ns
        launched_before = np.concatenate(([np.iinfo(np.int64).min], calls.start_ns[launch][:-1]))[: len(own)]
        waits = (place >= 0) & (key // host.stride_ns == host.call_start[launch] // host.stride_ns)
        waits &= wait_ns >= launched_before
        own, wait_ns = own[waits], wait_ns[waits]
        for other in queues:
            if other is queue or other.device != queue.device or not len(own):
                continue
            found = other.before(wait_ns)
            fits = (found >= 0) & (activities.end_ns[found] <= activities.start_ns[own] + _LATE_NS)
            awaited.append(found[fits])
            waiting.append(own[fits])
    return Pairs(_joined(awaited), _joined(waiting))


def ended_just_before(activities: Activities, stream: Index, late: Index, within_ns: int) -> Pairs:
    """Return for activities that nothing explains what ended on another stream right before each began, if anything."""
    order = np.argsort(activities.end_ns, kind="stable")
    ends = activities.end_ns[order]
    place = np.searchsorted(ends, activities.start_ns[late], side="right") - 1
    for _ in range(8):
        is_own = (place >= 0) & (stream[order[np.maximum(place, 0)]] == stream[late])
        place = np.where(is_own, place - 1, place)
    found = order[np.maximum(place, 0)]
    is_near = (place >= 0) & (activities.end_ns[found] >= activities.start_ns[late] - within_ns)
    is_near &= (stream[found] != stream[late]) & (activities.start_ns[found] < activities.start_ns[late])
    return Pairs(found[is_near], late[is_near])


def _joined(parts: list[Index]) -> Index:
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.intp)
