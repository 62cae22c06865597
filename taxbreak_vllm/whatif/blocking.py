"""Calls in which the host waits for the device, and what for: told by a recording, or inferred where it is silent.

In: calls, the device's order, what is told. Out: `Blocking`, columns in the order of its calls.
"""

from dataclasses import dataclass

import numpy as np

from taxbreak_vllm.trace.backend import waits_for_device
from taxbreak_vllm.trace.dispatches import Activities, Bool, Dispatches, Host
from taxbreak_vllm.trace.events import Events
from taxbreak_vllm.trace.intervals import Index, Int64, median
from taxbreak_vllm.whatif.awaited_events import UNSEEN_NS, event_waited_for
from taxbreak_vllm.whatif.constants import Calls, median_by
from taxbreak_vllm.whatif.streams import LATE_NS, NEVER, Launched, last_of_dispatch
from taxbreak_vllm.whatif.told import Told

_RETURN_NS = 5_000  # from the end of what a call waits for to its return, where no call of that name ever waited
_IDLE_NS = 2_000  # how long a call takes whose event has passed, where none of that name found it so


@dataclass(frozen=True, slots=True)
class Blocking:
    """Blocking calls (into Host.call_*) and of what each waits for the activity that ended last (-1: not known).

    `also_call` (places in these columns) wait for the activities `also` too. `is_carried` marks waits for work from
    before the recording. `return_ns` is how long after what it waits for such a call returns, `most_ns` how long at
    most, `idle_ns` how long it takes where that has ended before, `unseen_ns` how much of the call neither explains.
    `possible` is what a call may wait for that never did: a recording in which the event had always passed does not
    tell which event it was.
    """

    call: Index
    awaited: Index
    also_call: Index
    also: Index
    is_carried: Bool
    possible: Index
    return_ns: Int64
    most_ns: Int64
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
        told: Told,
    ) -> "Blocking":
        """Find what each blocking call waits for, where that is not told.

        A copy waits for itself, a device's synchronization for all streams, a stream's for what of the last launched on
        each stream had ended by its return. Events are told apart by `event_waited_for`.
        """
        call = np.flatnonzero(host.call_is_blocking)
        start_ns, end_ns, name = calls.start_ns[call], calls.end_ns[call], calls.name[call]
        is_device, is_event = np.zeros(len(call), dtype=bool), np.zeros(len(call), dtype=bool)
        for number in np.unique(name).tolist():
            text = events.names[number]
            is_device[name == number] = waits_for_device(text)
            is_event[name == number] = "Event" in text
        awaited, awaited_end = np.full(len(call), -1, dtype=np.intp), np.full(len(call), NEVER)
        own = host.call_dispatch[call]
        is_told = told.is_told[call] & (own < 0)
        also: list[tuple[Index, Index]] = []
        for queue in queues:
            found = queue.before(start_ns)
            found = np.where(is_event, queue.ended(found, end_ns + LATE_NS // 2, activities.end_ns), found)
            found_end = np.where(found >= 0, activities.end_ns[found], NEVER)
            fits = (found >= 0) & (is_device | (found_end <= end_ns + LATE_NS)) & (found_end > awaited_end)
            awaited[fits], awaited_end[fits] = found[fits], found_end[fits]
            all_of = np.flatnonzero(is_device & (found >= 0) & (own < 0) & ~is_told)
            also.append((all_of, found[all_of]))
        is_event &= own < 0
        last = last_of_dispatch(activities, dispatches)
        awaited = np.where(own >= 0, last[np.maximum(own, 0)] if len(last) else -1, awaited)
        awaited[is_told] = -1
        place = np.full(len(calls.start_ns), -1, dtype=np.intp)
        place[call[is_told]] = np.flatnonzero(is_told)
        by_end = np.argsort(activities.end_ns[told.awaited], kind="stable")
        told_place, told_awaited = place[told.call[by_end]], told.awaited[by_end]
        awaited[told_place[told_place >= 0]] = told_awaited[told_place >= 0]  # the last to end comes last
        also.append((told_place[told_place >= 0], told_awaited[told_place >= 0]))
        is_carried = is_told & (awaited < 0) & is_event
        possible = np.full(len(call), -1, dtype=np.intp)
        group = name * (len(events.threads) + 1) + events.thread[host.call_row[call]]
        for number in np.unique(group[is_event & ~is_told]).tolist():
            rows = np.flatnonzero(is_event & ~is_told & (group == number))
            awaited[rows], possible[rows] = event_waited_for(
                start_ns[rows], end_ns[rows], awaited[rows], queues, activities
            )
        done_ns = np.where(awaited >= 0, activities.end_ns[awaited], NEVER)
        waited = (awaited >= 0) & (done_ns > start_ns)
        late_ns = np.where(waited, end_ns - np.maximum(done_ns, start_ns), end_ns - start_ns)
        explained = late_ns < UNSEEN_NS
        return_ns = _median(name, late_ns, waited & explained, _RETURN_NS)
        never = ~np.isin(name, name[waited & explained])
        possible = np.where(is_told & never, awaited, possible)
        # What ended right before the call may still hold it: only the rest tells what a call takes that need not wait.
        free = ((awaited < 0) & is_event & ~is_carried) | ((awaited >= 0) & (done_ns <= start_ns - return_ns))
        awaited = np.where((awaited >= 0) & explained, awaited, -1)
        also_call, others = (np.concatenate(column) for column in zip(*also, strict=True))
        is_other = (awaited[also_call] >= 0) & (others != awaited[also_call])
        return cls(
            call=call,
            awaited=awaited,
            also_call=also_call[is_other],
            also=others[is_other],
            is_carried=is_carried,
            possible=possible,
            return_ns=return_ns,
            most_ns=np.where(never, UNSEEN_NS, return_ns),
            idle_ns=np.minimum(_median(name, late_ns, free & explained, _IDLE_NS, by_all=False), end_ns - start_ns),
            unseen_ns=np.where((explained & ((awaited >= 0) | is_event)) | is_carried, 0, end_ns - start_ns),
        )


def _median(name: Int64, values: Int64, counted: Bool, otherwise: int, *, by_all: bool = True) -> Int64:
    """Return for each name the median of its counted values, where it has none that of all, if these are alike."""
    known, found = median_by(name[counted], values[counted], name, min_count=1)
    usual = median(values[counted]) if by_all else None
    return np.where(known, found, otherwise if usual is None else usual)
