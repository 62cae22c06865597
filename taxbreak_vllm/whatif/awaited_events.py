"""Which event a call waits for, where the recording does not tell: of the work launched before, what it returns after.

In: the waits of one name and thread, the device's order. Out: the activity that each waits for.
"""

import numpy as np
from numpy.typing import NDArray

from taxbreak_vllm.trace.dispatches import Activities
from taxbreak_vllm.trace.intervals import Index, Int64
from taxbreak_vllm.whatif.streams import LATE_NS, NEVER, Launched

UNSEEN_NS = 50_000  # a call that blocks for longer than what it waits for explains waits for something unseen
INSTANT_NS = 5_000  # a call that returns within this has not waited


def event_waited_for(
    start_ns: Int64, end_ns: Int64, latest: Index, queues: list[Launched], activities: Activities
) -> tuple[Index, Index]:
    """Return what calls of one name and thread wait for that wait for events, and what they may wait for.

    Their events are most often of one stream: that after whose activities they return most regularly. Those that had
    to wait tell how many launches back the event lies. Where none had to, the last launch may be what they wait for.
    """
    is_long = end_ns - start_ns > INSTANT_NS
    best: tuple[float, Index, NDArray[np.intp], Launched] | None = None
    for queue in queues:
        if not len(queue.activity):
            continue
        ends = activities.end_ns[queue.last]
        before = np.searchsorted(queue.launch_ns, start_ns, side="left") - 1
        place = np.minimum(before, np.searchsorted(ends, end_ns + LATE_NS // 2, side="right") - 1)
        done_ns = np.where(place >= 0, ends[np.maximum(place, 0)], NEVER)
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
    done_ns = np.where(found >= 0, activities.end_ns[found], NEVER)
    found = np.where(done_ns > end_ns + LATE_NS, -1, found)
    unseen = (found < 0) | ((end_ns - np.maximum(done_ns, start_ns) >= UNSEEN_NS) & (latest >= 0))
    return np.where(unseen, latest, found), np.full(len(start_ns), -1, dtype=np.intp)


def _newest_passed(at_ns: Int64, queues: list[Launched], activities: Activities) -> Index:
    """Return for each instant the activity to have ended last of all before it, -1 for none."""
    newest, newest_end = np.full(len(at_ns), -1, dtype=np.intp), np.full(len(at_ns), NEVER)
    for queue in queues:
        found = queue.ended(queue.before(at_ns), at_ns, activities.end_ns)
        end_ns = np.where(found >= 0, activities.end_ns[found], NEVER)
        later = (end_ns > newest_end) & (end_ns <= at_ns)
        newest[later], newest_end[later] = found[later], end_ns[later]
    return newest
