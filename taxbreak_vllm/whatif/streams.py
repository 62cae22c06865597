"""The order of the device's work: what came before each activity on its stream, and which call launched it.

In: linked activities. Out: `Streams`, columns in the order of `Activities`.
"""

from dataclasses import dataclass

import numpy as np

from taxbreak_vllm.trace.dispatches import Activities, Bool, Dispatches, Host
from taxbreak_vllm.trace.intervals import Index, Int64

LATE_NS = 1_000  # by so much device and host clocks may disagree
NEVER = np.iinfo(np.int64).min


@dataclass(frozen=True, slots=True)
class Streams:
    """Device work in order; all indices are into Activities, -1 for none.

    `stream` numbers the streams of all devices. `before` is what kept the stream busy longest until then, `previous`
    what began last on it. `call` indexes Host.call_*. `is_first` marks the first activity of its launch, `is_node` the
    others of a graph; `opener` is the first of a node's graph.
    """

    stream: Index
    num_streams: int
    before: Index
    previous: Index
    call: Index
    is_first: Bool
    is_graph: Bool
    is_node: Bool
    opener: Index

    @classmethod
    def of(cls, host: Host, activities: Activities, dispatches: Dispatches) -> "Streams":
        """Order the activities of each stream by their start."""
        count = len(activities.row)
        pairs = np.stack((activities.device, activities.stream))
        _, stream = np.unique(pairs, axis=1, return_inverse=True)
        stream = stream.reshape(-1)
        order = np.lexsort((activities.end_ns, activities.start_ns, stream))
        opens = np.ones(count, dtype=bool)
        opens[1:] = stream[order][1:] != stream[order][:-1]
        before, previous = np.full(count, -1, dtype=np.intp), np.full(count, -1, dtype=np.intp)
        previous[order[1:]] = order[:-1]
        before[order[1:]] = order[_last_to_end(stream[order], activities.end_ns[order])[:-1]]
        before[order[opens]] = previous[order[opens]] = -1

        call_of = np.full(len(dispatches) + 1, -1, dtype=np.intp)
        calls = np.flatnonzero(host.call_dispatch >= 0)
        call_of[host.call_dispatch[calls]] = calls
        is_first = np.zeros(count, dtype=bool)
        is_first[dispatches.first] = True
        linked = activities.dispatch >= 0
        is_graph = np.zeros(count, dtype=bool)
        is_graph[linked] = dispatches.is_graph[activities.dispatch[linked]]
        opener = np.full(count, -1, dtype=np.intp)
        opener[linked] = dispatches.first[activities.dispatch[linked]]
        return cls(
            stream=stream,
            num_streams=int(stream.max(initial=-1)) + 1,
            before=before,
            previous=previous,
            call=call_of[activities.dispatch],
            is_first=is_first,
            is_graph=is_graph,
            is_node=linked & ~is_first,
            opener=opener,
        )


def _last_to_end(stream: Index, end_ns: Int64) -> Index:
    """Return for each place which one so far on its stream ends last; the columns come by stream and start."""
    if not len(end_ns):
        return np.empty(0, dtype=np.intp)
    shifted = end_ns - end_ns.min() + stream * (end_ns.max() - end_ns.min() + 1)
    is_latest = shifted >= np.maximum.accumulate(shifted)
    return np.maximum.accumulate(np.where(is_latest, np.arange(len(end_ns)), 0))


@dataclass(frozen=True, slots=True)
class Launched:
    """What one stream was given: `activity` by launch, `launch_ns` when, `last` which ended last of all up to there."""

    launch_ns: Int64
    activity: Index
    last: Index
    device: int
    stream: int

    def ended(self, latest: Index, by_ns: Int64, end_ns: Int64) -> Index:
        """Return for each the last activity up to `latest` that had ended by then, -1 for none."""
        ends = end_ns[self.last]
        place = np.searchsorted(ends, by_ns, side="right") - 1
        found = np.where(place >= 0, self.last[np.maximum(place, 0)], -1) if len(self.last) else latest
        return np.where((latest >= 0) & (found >= 0) & (end_ns[found] < end_ns[latest]), found, latest)

    def before(self, at_ns: Int64) -> Index:
        """Return for each instant the activity to end last of those launched before it, -1 for none."""
        place = np.searchsorted(self.launch_ns, at_ns, side="left") - 1
        if not len(self.last):
            return np.full(len(at_ns), -1, dtype=np.intp)
        return np.where(place >= 0, self.last[np.maximum(place, 0)], -1)


def launched(streams: Streams, activities: Activities, launch_ns: Int64) -> list[Launched]:
    """Return what each stream was given, from when each activity was launched; those without a launch are left out."""
    found = []
    for number in range(streams.num_streams):
        rows = np.flatnonzero((streams.stream == number) & (streams.call >= 0))
        rows = rows[np.lexsort((activities.start_ns[rows], launch_ns[rows]))]
        ends = activities.end_ns[rows]
        last = rows[_last_to_end(np.zeros(len(rows), dtype=np.intp), ends)] if len(rows) else rows
        # Of a graph's nodes, all launched at once, the last place is what a search for an instant finds.
        device, stream = (int(each[rows[0]]) if len(rows) else -1 for each in (activities.device, activities.stream))
        found.append(Launched(launch_ns=launch_ns[rows], activity=rows, last=last, device=device, stream=stream))
    return found


def last_of_dispatch(activities: Activities, dispatches: Dispatches) -> Index:
    """Return for each dispatch which of its activities ends last."""
    last = np.full(len(dispatches), -1, dtype=np.intp)
    rows = np.flatnonzero(activities.dispatch >= 0)
    rows = rows[np.argsort(activities.end_ns[rows], kind="stable")]
    last[activities.dispatch[rows]] = rows
    return last
