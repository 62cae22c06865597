"""Calls in which the host waits for the device, and what for: told by a recording, or inferred where it is silent.

In: calls, the device's order, what is told. Out: `Blocking`, columns in the order of its calls.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from taxbreak_vllm.trace.backend import waits_for_device
from taxbreak_vllm.trace.dispatches import Activities, Bool, Dispatches, Host
from taxbreak_vllm.trace.events import Events
from taxbreak_vllm.trace.intervals import Index, Int64, median
from taxbreak_vllm.whatif.awaited_events import UNSEEN_NS, Waits, events_waited_for
from taxbreak_vllm.whatif.constants import Calls, median_by
from taxbreak_vllm.whatif.polls import Polls
from taxbreak_vllm.whatif.streams import LATE_NS, NEVER, Launched, last_of_dispatch
from taxbreak_vllm.whatif.told import Told

_RETURN_NS = 5_000  # from the end of what a call waits for to its return, where no call of that name ever waited
_IDLE_NS = 2_000  # how long a call takes whose event has passed, where none of that name found it so
_MAX_RIVALS = 4


@dataclass(frozen=True, slots=True)
class Blocking:
    """Waits of the host, and of what each waits for the activity that ended last (-1: not known).

    `call` (into Host.call_*) is a blocking call, or the last query of a loop that begins with `first`, else the same.
    The waits `also_call` (places in these columns) are for the activities `also` too. `is_carried` marks waits for work
    from before the recording. `return_ns` is how long after what it waits for a call returns, `most_ns` how long at
    most, `idle_ns` how long it takes where that has ended before, `unseen_ns` how much of it neither explains.
    `is_poll` marks loops, `pause_ns` is the longest from one query of such a loop to the next. `possible` is what a
    call may wait for that never did: a recording in which the event had always passed does not tell which it was.
    """

    call: Index
    first: Index
    awaited: Index
    also_call: Index
    also: Index
    is_carried: Bool
    possible: Index
    return_ns: Int64
    most_ns: Int64
    idle_ns: Int64
    unseen_ns: Int64
    is_poll: Bool
    pause_ns: Int64

    @classmethod
    def of(
        cls,
        events: Events,
        host: Host,
        calls: Calls,
        activities: Activities,
        dispatches: Dispatches,
        queues: list[Launched],
        told: Told,
        polls: Polls,
    ) -> "list[Blocking]":
        """Find what each waits for, where that is not told: the likeliest, then others that fit as well.

        A copy waits for itself, a device's synchronization for all streams, a stream's for what of the last launched on
        each stream had ended by its return. Events are told apart by `events_waited_for`.
        """
        found = _Found.of(events, host, calls, activities, polls)
        own = host.call_dispatch[found.call]
        is_told = told.is_told[found.call] & (own < 0)
        latest, also = found.latest(activities, queues)
        also = [(rows[(own < 0)[rows] & ~is_told[rows]], each[(own < 0)[rows] & ~is_told[rows]]) for rows, each in also]
        last = last_of_dispatch(activities, dispatches)
        awaited = np.where(own >= 0, last[np.maximum(own, 0)] if len(last) else -1, latest)
        awaited[is_told] = -1
        place = np.full(len(calls.start_ns), -1, dtype=np.intp)
        place[found.call[is_told]] = np.flatnonzero(is_told)
        by_end = np.argsort(activities.end_ns[told.awaited], kind="stable")
        told_place, told_awaited = place[told.call[by_end]], told.awaited[by_end]
        awaited[told_place[told_place >= 0]] = told_awaited[told_place >= 0]  # the last to end comes last
        also.append((told_place[told_place >= 0], told_awaited[told_place >= 0]))

        possible = np.full(len(found.call), -1, dtype=np.intp)
        rivals: list[tuple[Index, Index]] = []
        is_guessed = found.is_event & (own < 0) & ~is_told
        group = found.name * (len(events.threads) + 1) + events.thread[host.call_row[found.call]]
        for number in np.unique(group[is_guessed]).tolist():
            rows = np.flatnonzero(is_guessed & (group == number))
            guesses, possible[rows] = events_waited_for(found.waits.chosen(rows), awaited[rows], queues, activities)
            awaited[rows] = guesses[0]
            rivals.extend((rows, guess) for guess in guesses[1:])
        is_free = ~found.is_event & ~found.is_device & (own < 0) & ~is_told
        rivals.extend(found.on_other_streams(awaited, is_free, activities, queues))
        found = replace(found, is_event=found.is_event & (own < 0))
        every = (awaited, *(_replaced(awaited, *rival) for rival in rivals[:_MAX_RIVALS]))
        return [found.explained(each, also, possible, is_told, activities) for each in every]


@dataclass(frozen=True, slots=True)
class _Found:
    """Waits, whatever they are for."""

    call: Index
    first: Index
    name: Int64
    waits: Waits
    own_ns: Int64  # of the first query of a loop
    pause_ns: Int64
    is_device: Bool
    is_event: Bool

    @classmethod
    def of(cls, events: Events, host: Host, calls: Calls, activities: Activities, polls: Polls) -> "_Found":
        blocking = np.flatnonzero(host.call_is_blocking)
        call = np.concatenate((blocking, polls.last))
        order = np.argsort(call, kind="stable")
        first, before = (np.concatenate((blocking, each))[order] for each in (polls.first, polls.before))
        call = call[order]
        is_poll = order >= len(blocking)
        start_ns, end_ns = calls.start_ns[first], calls.end_ns[call]
        has_asked_twice = is_poll & (first != call)
        since_ns = np.where(is_poll, start_ns - 1, end_ns - UNSEEN_NS)
        since_ns[has_asked_twice] = calls.start_ns[before[has_asked_twice]]
        name = calls.name[call]
        is_device, is_event = np.zeros(len(call), dtype=bool), is_poll.copy()
        for number in np.unique(name).tolist():
            text = events.names[number]
            is_device[name == number] = waits_for_device(text)
            is_event[name == number] |= "Event" in text
        return cls(
            call=call,
            first=first,
            name=name,
            waits=Waits(start_ns, end_ns, since_ns, is_poll),
            own_ns=calls.end_ns[first] - start_ns,
            pause_ns=np.where(has_asked_twice, calls.start_ns[call] - calls.end_ns[before], 0),
            is_device=is_device,
            is_event=is_event,
        )

    def latest(self, activities: Activities, queues: list[Launched]) -> tuple[Index, list[tuple[Index, Index]]]:
        """Return what was launched before each and ended last, by its return; of a device all that was launched."""
        start_ns, end_ns = self.waits.start_ns, self.waits.end_ns
        latest, latest_end = np.full(len(self.call), -1, dtype=np.intp), np.full(len(self.call), NEVER)
        also: list[tuple[Index, Index]] = []
        for queue in queues:
            found = queue.before(start_ns)
            found = np.where(self.is_event, queue.ended(found, end_ns + LATE_NS // 2, activities.end_ns), found)
            found_end = np.where(found >= 0, activities.end_ns[found], NEVER)
            fits = (found >= 0) & (self.is_device | (found_end <= end_ns + LATE_NS)) & (found_end > latest_end)
            latest[fits], latest_end[fits] = found[fits], found_end[fits]
            rows = np.flatnonzero(self.is_device & (found >= 0))
            also.append((rows, found[rows]))
        return latest, also

    def on_other_streams(
        self, awaited: Index, is_free: Bool, activities: Activities, queues: list[Launched]
    ) -> Iterator[tuple[Index, Index]]:
        """Give calls that wait for some stream with what they wait for if that is another than the last to end."""
        waits = self.waits
        for queue in queues:
            found = queue.before(waits.start_ns)
            done_ns = np.where(found >= 0, activities.end_ns[found], NEVER)
            fits = is_free & waits.has_waited & (done_ns > waits.start_ns) & (done_ns > waits.since_ns)
            fits &= (done_ns <= waits.end_ns + LATE_NS) & (found != awaited)
            if fits.any():
                yield np.flatnonzero(fits), found[fits]

    def explained(
        self,
        awaited: Index,
        also: list[tuple[Index, Index]],
        possible: Index,
        is_told: Bool,
        activities: Activities,
    ) -> Blocking:
        """Say how long after these activities the waits end."""
        start_ns, end_ns, name = self.waits.start_ns, self.waits.end_ns, self.name
        done_ns = np.where(awaited >= 0, activities.end_ns[awaited], NEVER)
        waited = (awaited >= 0) & (done_ns > start_ns)
        late_ns = np.where(waited, end_ns - np.maximum(done_ns, start_ns), end_ns - start_ns)
        is_loop = self.waits.is_poll & self.waits.has_waited
        explained = np.where(is_loop, waited & (done_ns > self.waits.since_ns), late_ns < UNSEEN_NS)
        return_ns = _median(name, late_ns, waited & explained, _RETURN_NS)
        never = ~np.isin(name, name[waited & explained])
        is_carried = is_told & (awaited < 0) & self.is_event
        # What ended right before the call may still hold it: only the rest tells what a call takes that need not wait.
        free = ((awaited < 0) & self.is_event & ~is_carried) | ((awaited >= 0) & (done_ns <= start_ns - return_ns))
        idle_ns = _median(name, late_ns, free & explained, _IDLE_NS, by_all=False)
        known = np.where((awaited >= 0) & explained, awaited, -1)
        also_call, others = (np.concatenate(column) for column in zip(*also, strict=True))
        is_other = (known[also_call] >= 0) & (others != known[also_call])
        return Blocking(
            call=self.call,
            first=self.first,
            awaited=known,
            also_call=also_call[is_other],
            also=others[is_other],
            is_carried=is_carried,
            possible=np.where(is_told & never, awaited, possible),
            return_ns=return_ns,
            most_ns=np.where(never, UNSEEN_NS, return_ns),
            idle_ns=np.where(self.waits.is_poll, self.own_ns, np.minimum(idle_ns, end_ns - start_ns)),
            unseen_ns=np.where((explained & ((known >= 0) | self.is_event)) | is_carried, 0, end_ns - start_ns),
            is_poll=self.waits.is_poll,
            pause_ns=_longest(name, self.pause_ns),
        )


def _replaced(awaited: Index, rows: Index, others: Index) -> Index:
    found = awaited.copy()
    found[rows] = others
    return found


def _median(name: Int64, values: Int64, counted: Bool, otherwise: int, *, by_all: bool = True) -> Int64:
    """Return for each name the median of its counted values, where it has none that of all, if these are alike."""
    known, found = median_by(name[counted], values[counted], name, min_count=1)
    usual = median(values[counted]) if by_all else None
    return np.where(known, found, otherwise if usual is None else usual)


def _longest(name: Int64, values: Int64) -> Int64:
    """Return for each name the largest of its values."""
    most = np.zeros(int(name.max(initial=0)) + 1, dtype=np.int64)
    np.maximum.at(most, name, values)
    return most[name]
