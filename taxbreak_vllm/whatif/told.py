"""Who waits for whom, where the recording tells: which event, which stream, and on which stream work was held.

In: the runtime's own records of waits (`trace.syncs`), calls, the device's order. Out: `Told`: pairs of what is waited
for and what waits. An event holds what its stream was given before it was recorded, and what that stream waited for
itself.
"""

from bisect import bisect_left, bisect_right
from dataclasses import dataclass

import numpy as np

from taxbreak_vllm.trace.dispatches import Activities, Bool, Dispatches, Host, nearest_call
from taxbreak_vllm.trace.events import Events
from taxbreak_vllm.trace.intervals import Index, Int64
from taxbreak_vllm.trace.syncs import SyncKind
from taxbreak_vllm.whatif.constants import Calls
from taxbreak_vllm.whatif.streams import LATE_NS, NEVER, Launched, last_of_dispatch
from taxbreak_vllm.whatif.waits import NO_PAIRS, Pairs


@dataclass(frozen=True, slots=True)
class Told:
    """`is_told` marks calls (of Host.call_*) of which it is known what the host waits for in them.

    That are the activities `awaited` of each `call`, several or none; with none it waits for work from before the
    recording. `waits` are those of streams, None where the recording tells of none.
    """

    is_told: Bool
    call: Index
    awaited: Index
    waits: Pairs | None

    @classmethod
    def of(
        cls,
        events: Events,
        host: Host,
        calls: Calls,
        activities: Activities,
        dispatches: Dispatches,
        queues: list[Launched],
    ) -> "Told":
        """Join the records to their calls; what contradicts the calls or the work is not believed."""
        is_told = np.zeros(len(host.call_row), dtype=bool)
        syncs = events.syncs
        if not len(syncs) or not len(is_told):
            return cls(is_told, NO_PAIRS.waiting, NO_PAIRS.awaited, None)
        ids = events.correlation[host.call_row]
        call = nearest_call(syncs.correlation, syncs.start_ns, ids, calls.start_ns, np.zeros(len(ids), dtype=bool))
        kind, start_ns = syncs.kind, calls.start_ns[call]
        is_event = (kind == SyncKind.EVENT) | (kind == SyncKind.STREAM_WAIT)
        at_ns = np.where(is_event, _called_ns(syncs.record, syncs.start_ns, ids, calls.start_ns), start_ns)
        is_known = (call >= 0) & (at_ns <= start_ns)
        has_record = ~is_event | (syncs.record >= 0)
        rows = np.flatnonzero(is_known & has_record)
        stream = np.where(is_event, syncs.record_stream, syncs.stream)
        given = _Given(queues, activities, last_of_dispatch(activities, dispatches))

        is_wait = kind[rows] == SyncKind.STREAM_WAIT
        waits = rows[is_wait]
        waits = waits[np.argsort(start_ns[waits], kind="stable")]
        awaited: list[int] = []
        waiting: list[int] = []
        for device, on, recorded, since_ns, at in zip(
            syncs.device[waits].tolist(),
            syncs.stream[waits].tolist(),
            stream[waits].tolist(),
            at_ns[waits].tolist(),
            start_ns[waits].tolist(),
            strict=True,
        ):
            held_by = given.before(device, recorded, since_ns)
            given.hold(device, on, at, held_by)
            if (first := given.after(device, on, at)) >= 0:
                awaited.extend(held_by)
                waiting.extend([first] * len(held_by))

        others = rows[~is_wait]
        pairs: list[tuple[int, int]] = []
        for own, device, on, at, what, until_ns in zip(
            call[others].tolist(),
            syncs.device[others].tolist(),
            stream[others].tolist(),
            at_ns[others].tolist(),
            kind[others].tolist(),
            calls.end_ns[call[others]].tolist(),
            strict=True,
        ):
            streams = [on] if what != SyncKind.CONTEXT else given.streams(device)
            found = [each for one in streams for each in given.before(device, one, at)]
            if all(activities.end_ns[each] <= until_ns + LATE_NS for each in found):
                is_told[own] = True
                pairs.extend((own, each) for each in found)
        is_told[call[(call >= 0) & ~has_record & (kind == SyncKind.EVENT)]] = True
        found_pairs = np.array(pairs, dtype=np.intp).reshape(-1, 2)
        return cls(
            is_told=is_told,
            call=found_pairs[:, 0],
            awaited=found_pairs[:, 1],
            waits=Pairs(np.array(awaited, dtype=np.intp), np.array(waiting, dtype=np.intp))
            if (kind == SyncKind.STREAM_WAIT).any()
            else None,
        )


def _called_ns(wanted: Int64, near_ns: Int64, ids: Int64, start_ns: Int64) -> Int64:
    """Return when the calls with these ids were made.

    Kineto leaves out some calls that record events. As ids count calls, that is when the next one after them began.
    """
    order = np.argsort(ids, kind="stable")
    place = np.searchsorted(ids[order], wanted, side="left")
    never = np.iinfo(np.int64).max
    later_ns = np.where(place < len(ids), start_ns[order[np.minimum(place, len(ids) - 1)]], never)
    own = nearest_call(wanted, near_ns, ids, start_ns, np.zeros(len(ids), dtype=bool))
    return np.where(own >= 0, start_ns[own], later_ns)


_NOTHING: tuple[list[int], list[int], list[int]] = ([], [], [])


class _Given:
    """What each stream was given, and what it was made to wait for, in the order of the program."""

    def __init__(self, queues: list[Launched], activities: Activities, last: Index) -> None:
        # As lists, in which one search takes a fifth of what it takes in an array.
        self._queues = {
            (queue.device, queue.stream): (queue.launch_ns.tolist(), queue.last.tolist(), queue.activity.tolist())
            for queue in queues
        }
        self._dispatch, self._last = activities.dispatch.tolist(), last.tolist()
        self._held: dict[tuple[int, int], tuple[list[int], list[list[int]]]] = {}  # when, and by which activities

    def streams(self, device: int) -> list[int]:
        """Return the streams of a device."""
        return [stream for of, stream in self._queues if of == device]

    def before(self, device: int, stream: int, at_ns: int) -> list[int]:
        """Return the activities that a stream is done after with all it was given before: its own last, and others."""
        launch_ns, lasts, _ = self._queues.get((device, stream), _NOTHING)
        place = bisect_left(launch_ns, at_ns) - 1
        since_ns, found = NEVER, list[int]()
        if place >= 0:
            last = lasts[place]
            dispatch = self._dispatch[last]
            since_ns = launch_ns[place]
            found.append(self._last[dispatch] if dispatch >= 0 else last)
        times_ns, held_by = self._held.get((device, stream), ([], []))
        for number in reversed(range(bisect_right(times_ns, since_ns), bisect_left(times_ns, at_ns))):
            found.extend(held_by[number])
        return found

    def after(self, device: int, stream: int, at_ns: int) -> int:
        """Return the activity that a stream was given next, -1 for none."""
        launch_ns, _, activity = self._queues.get((device, stream), _NOTHING)
        place = bisect_right(launch_ns, at_ns)
        return activity[place] if place < len(activity) else -1

    def hold(self, device: int, stream: int, at_ns: int, held_by: list[int]) -> None:
        """Let what a stream is given from now on wait for these too."""
        times_ns, held = self._held.setdefault((device, stream), ([], []))
        times_ns.append(at_ns)
        held.append(held_by)
