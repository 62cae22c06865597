"""Streams that wait for one another, as far as that is inferred: a recording that tells them needs none of this.

In: calls, the device's order. Out: pairs of what is waited for and what waits, as columns of indices.
"""

from dataclasses import dataclass

import numpy as np

from taxbreak_vllm.trace.dispatches import Activities, Host
from taxbreak_vllm.trace.events import Events
from taxbreak_vllm.trace.intervals import Index
from taxbreak_vllm.whatif.constants import Calls
from taxbreak_vllm.whatif.streams import LATE_NS, Launched, Streams


@dataclass(frozen=True, slots=True)
class Pairs:
    """Activities that wait for the end of others: `awaited` and `waiting`, into Activities."""

    awaited: Index
    waiting: Index


NO_PAIRS = Pairs(np.empty(0, dtype=np.intp), np.empty(0, dtype=np.intp))


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
        return NO_PAIRS
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
            fits = (found >= 0) & (activities.end_ns[found] <= activities.start_ns[own] + LATE_NS)
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
