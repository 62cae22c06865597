"""From a recording's columns to the edges of its dependency graph, one function for each kind of edge.

| edge | from | to | weight |
| --- | --- | --- | --- |
| HOST | point | next point of the thread | what the thread did, by class; a wait that is explained counts 0 |
| LAUNCH | call's start | activity | length of the call, then the latency from its return |
| STREAM | end of what came before | activity | the gap of such a pair |
| NODE | end of a graph's node on another stream, else its first node | node | what was observed |
| EVENT | end of an activity | activity on another stream | a latency |
| WAIT | end of an activity | end of the blocking call | how late such calls return |
| ROOM | start of an activity | end of the launch call | how late such calls return |
| HANDOFF | point of another thread | point | how late it goes on |
| QUERY | point before | query in a loop that waits, but the last | none: nobody waits for it |
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from taxbreak_vllm.taxes.measured import Measured
from taxbreak_vllm.trace.dispatches import queue_full
from taxbreak_vllm.trace.intervals import Index, Int64, median
from taxbreak_vllm.trace.timeline import HostClass
from taxbreak_vllm.whatif.awaited_events import INSTANT_NS
from taxbreak_vllm.whatif.blocking import Blocking
from taxbreak_vllm.whatif.constants import UNEXPLAINED_NS, Calls, Constants
from taxbreak_vllm.whatif.graph import EdgeKind, Edges, make_edges
from taxbreak_vllm.whatif.handoffs import Handoffs
from taxbreak_vllm.whatif.points import Points
from taxbreak_vllm.whatif.streams import Streams
from taxbreak_vllm.whatif.waits import Pairs, ended_just_before
from taxbreak_vllm.whatif.wakes import Wakes

_EVENT_NS, _ROOM_NS = 2_000, 4_500  # where a recording shows none
_GRAPH_NS, _MOST_GAP_NS = 2_000, 2_000  # after the call, after what came before: at most, where it shows none
_HIDDEN_NS = 1_000
_EVENT_NEAR_NS = 300_000


@dataclass(frozen=True, slots=True)
class Sources:
    """What the edges are made of: a recording's columns in the shape of the graph."""

    measured: Measured
    points: Points
    calls: Calls
    streams: Streams
    constants: Constants
    blocking: Blocking
    handoffs: Handoffs
    wakes: Wakes

    @property
    def waits_for_events(self) -> bool:
        """Whether calls make the host or a stream wait for an event."""
        names = [self.measured.events.names[number] for number in np.unique(self.calls.name).tolist()]
        return any(name.endswith(("EventSynchronize", "StreamWaitEvent")) for name in names)


def host_edges(s: Sources) -> Edges:
    """What each thread did between two points, by class.

    A blocking call that waits for a known activity takes on its own what such calls take that need not wait, and a
    launch call that waits for room what such calls take else; a thread that waits for another takes nothing. A loop
    that waits is one call: nobody waits for what is in between.
    """
    points, host, blocking = s.points, s.measured.host, s.blocking
    known = (blocking.awaited >= 0) | (blocking.possible >= 0) | blocking.is_carried
    loops = np.flatnonzero(known & blocking.is_poll)
    asked, passed = points.call_start[blocking.first[loops]], points.call_end[blocking.call[loops]]
    is_query = _between(asked, passed, len(points.at_ns))
    to = np.flatnonzero((points.previous >= 0) & ~is_query)
    previous = points.previous.copy()
    previous[passed] = asked
    before = previous[to]
    host_ns = s.measured.partition.between(
        host.key(points.thread[to], points.at_ns[before]), host.key(points.thread[to], points.at_ns[to])
    )
    place = np.full(len(points.at_ns), -1, dtype=np.intp)
    place[to] = np.arange(len(to))
    ends = place[points.call_end[blocking.call[known]]]
    host_ns[HostClass.BLOCKED, ends] = 0
    host_ns[:, place[passed]] = 0
    host_ns[HostClass.RUNTIME, ends] += blocking.idle_ns[known]
    host_ns[HostClass.BLOCKED, place[points.call_end[_full(s)[0]]]] = 0
    taken = place[s.handoffs.waiting]
    host_ns[:, taken[taken >= 0]] = 0
    host_ns[:, place[s.wakes.silent]] = _as_python(s.wakes.own_ns)
    fixed_ns = host_ns[HostClass.BLOCKED].copy()
    host_ns[HostClass.BLOCKED] = 0
    is_guess = (blocking.possible >= 0) & (blocking.awaited < 0)
    long = blocking.call[is_guess & (blocking.idle_ns > INSTANT_NS)]
    is_doubtful = np.isin(to, np.concatenate((s.wakes.unexplained, points.call_end[long])))
    queries = np.flatnonzero(is_query)
    return make_edges(before, to, EdgeKind.HOST, fixed_ns=fixed_ns, host_ns=host_ns, is_doubtful=is_doubtful).plus(
        make_edges(points.previous[queries], queries, EdgeKind.QUERY)
    )


def _between(first: Index, last: Index, count: int) -> NDArray[np.bool_]:
    """Mark the points between two of a thread, for each pair."""
    inside = np.zeros(count + 1, dtype=np.int64)
    np.add.at(inside, first + 1, 1)
    np.add.at(inside, last, -1)
    return np.cumsum(inside[:-1]) > 0


def launch_edges(s: Sources) -> Edges:
    """From a call's start to what it launched: the call's length is the host's, the latency after it is not."""
    points, calls, streams = s.points, s.calls, s.streams
    activity = np.flatnonzero(streams.is_first & (streams.call >= 0))
    call = streams.call[activity]
    host = s.measured.host
    host_ns = s.measured.partition.between(host.call_start[call], host.call_end[call])
    host_ns[HostClass.BLOCKED] = 0
    staged = s.constants.is_staged[activity]
    start_ns = s.measured.activities.start_ns[activity]
    host_ns[:, staged] = 0
    host_ns[HostClass.RUNTIME, staged] = np.minimum(calls.typical_ns[call], start_ns - calls.start_ns[call])[staged]
    return make_edges(
        points.call_start[call],
        len(points.at_ns) + activity,
        EdgeKind.LAUNCH,
        fixed_ns=s.constants.latency_ns[activity],
        host_ns=np.maximum(host_ns, 0),
        is_doubtful=np.isin(activity, _hidden_launches(s, s.streams.is_graph | s.constants.is_staged)),
    )


def stream_edges(s: Sources) -> Edges:
    """From the end of what kept the stream busy to the next."""
    activity = np.flatnonzero(s.streams.before >= 0)
    shift = len(s.points.at_ns)
    before = s.streams.before[activity]
    return make_edges(
        shift + before,
        shift + activity,
        EdgeKind.STREAM,
        fixed_ns=s.constants.gap_ns[activity],
        from_end=True,
        is_doubtful=~s.constants.has_gap[activity],
    )


def node_edges(s: Sources) -> Edges:
    """From one stream of a graph to another: after its node that ended last before, else after its first one began."""
    streams, activities, shift = s.streams, s.measured.activities, len(s.points.at_ns)
    opens = streams.is_node & streams.is_graph
    same = streams.before >= 0
    same &= activities.dispatch[streams.before] == activities.dispatch if len(same) else same
    node = np.flatnonzero(opens & ~same)
    opener = streams.opener[node]
    found = ended_just_before(activities, streams.stream, node, UNEXPLAINED_NS)
    fits = activities.dispatch[found.awaited] == activities.dispatch[found.waiting]
    awaited, waiting = found.awaited[fits], found.waiting[fits]
    rest = ~np.isin(node, waiting)
    later_ns = activities.start_ns[node] - activities.start_ns[opener]
    after = make_edges(shift + awaited, shift + waiting, EdgeKind.NODE, from_end=True)
    return after.plus(
        make_edges(shift + opener[rest], shift + node[rest], EdgeKind.NODE, fixed_ns=np.maximum(later_ns[rest], 0))
    )


def led_until(s: Sources, parts: tuple[Edges, ...]) -> Int64:
    """Return until when the edges hold each activity, by what was observed; the least int64 where there is none."""
    activities, shift = s.measured.activities, len(s.points.at_ns)
    at_ns = np.concatenate((s.points.at_ns, activities.start_ns))
    end_ns = np.concatenate((s.points.at_ns, activities.end_ns))
    led = np.full(len(at_ns), np.iinfo(np.int64).min)
    for edges in parts:
        since = np.where(edges.from_end, end_ns[edges.source], at_ns[edges.source])
        np.maximum.at(led, edges.target, since + edges.host_ns.sum(axis=0) + edges.fixed_ns)
    return led[shift:]


def event_edges(s: Sources, pairs: Pairs, led: Int64, *, is_told: bool) -> tuple[Edges, Int64]:
    """From another stream to what was launched after a wait for its event; also, until when that holds each.

    Of inferred waits those are doubtful that did not decide when their work began.
    """
    activities, shift = s.measured.activities, len(s.points.at_ns)
    ended, start_ns = activities.end_ns[pairs.awaited], activities.start_ns[pairs.waiting]
    decides = (start_ns - led[pairs.waiting] > UNEXPLAINED_NS // 10) & (ended > led[pairs.waiting])
    decides &= start_ns - ended < UNEXPLAINED_NS
    latency_ns = (start_ns - ended)[decides]
    fitted = median(latency_ns) if len(latency_ns) > 2 else None
    fixed_ns = _EVENT_NS if fitted is None else fitted
    explained = np.full(len(led), np.iinfo(np.int64).min)
    near = start_ns - ended < (UNEXPLAINED_NS if is_told else _EVENT_NEAR_NS)
    np.maximum.at(explained, pairs.waiting[near], np.maximum(ended + fixed_ns, start_ns)[near & (ended > 0)])
    edges = make_edges(
        shift + pairs.awaited,
        shift + pairs.waiting,
        EdgeKind.EVENT,
        fixed_ns=fixed_ns,
        from_end=True,
        is_doubtful=~decides & (not is_told),
    )
    return edges, explained


def guessed_edges(s: Sources, pairs: Pairs) -> Edges:
    """From what ended on another stream right before an activity that nothing else explains."""
    shift = len(s.points.at_ns)
    return make_edges(shift + pairs.awaited, shift + pairs.waiting, EdgeKind.EVENT, from_end=True)


def wait_edges(s: Sources) -> Edges:
    """From what a blocking call waits for to its return."""
    blocking = s.blocking
    known = np.flatnonzero(blocking.awaited >= 0)
    waiting = np.concatenate((known, blocking.also_call))
    return make_edges(
        len(s.points.at_ns) + np.concatenate((blocking.awaited[known], blocking.also)),
        s.points.call_end[blocking.call[waiting]],
        EdgeKind.WAIT,
        fixed_ns=blocking.return_ns[waiting],
        from_end=True,
        is_doubtful=blocking.is_poll[waiting],
    )


def slowest_edges(s: Sources) -> Edges:
    """From what a loop of queries waits for to its end, where the event passes right after a query."""
    blocking = s.blocking
    loops = np.flatnonzero((blocking.awaited >= 0) & blocking.is_poll)
    host_ns = _as_python(blocking.pause_ns[loops])
    host_ns[HostClass.RUNTIME] = blocking.idle_ns[loops]
    return make_edges(
        len(s.points.at_ns) + blocking.awaited[loops],
        s.points.call_end[blocking.call[loops]],
        EdgeKind.WAIT,
        host_ns=host_ns,
        from_end=True,
    )


def possible_edges(s: Sources) -> Edges:
    """Waits that never held anybody, so that the recording does not tell whether they are there."""
    known = s.blocking.possible >= 0
    call = s.blocking.call[known]
    done_ns = s.measured.activities.end_ns[s.blocking.possible[known]]
    waits = make_edges(
        len(s.points.at_ns) + s.blocking.possible[known],
        s.points.call_end[call],
        EdgeKind.WAIT,
        fixed_ns=np.minimum(s.blocking.most_ns[known], s.calls.end_ns[call] - done_ns),
        from_end=True,
    )
    return waits.plus(_possible_starts(s)).plus(
        make_edges(
            s.wakes.possible_awaited,
            s.wakes.possible_waiting,
            EdgeKind.HANDOFF,
            host_ns=_as_python(s.wakes.possible_delay_ns),
        )
    )


def _hidden_launches(s: Sources, chosen: NDArray[np.bool_]) -> Index:
    """Return those launched work whose stream was busy until it began: when else it would have, is not shown.

    A graph begins within its call or after it, a copy that its call waits for within it.
    """
    streams, activities = s.streams, s.measured.activities
    first = np.flatnonzero(chosen & streams.is_first & (streams.call >= 0) & (streams.before >= 0))
    behind_ns = activities.end_ns[streams.before[first]] + s.constants.gap_ns[first]
    return first[activities.start_ns[first] - behind_ns <= _HIDDEN_NS]


def _possible_starts(s: Sources) -> Edges:
    """From a graph's launch and from what a stream did before to what began later than either would have held it."""
    activities, shift, host = s.measured.activities, len(s.points.at_ns), s.measured.host
    first = _hidden_launches(s, s.streams.is_graph)
    call = s.streams.call[first]
    host_ns = s.measured.partition.between(host.call_start[call], host.call_end[call])
    host_ns[HostClass.BLOCKED] = 0
    late_ns = activities.start_ns[first] - s.calls.end_ns[call]
    after_call = make_edges(
        s.points.call_start[call],
        shift + first,
        EdgeKind.LAUNCH,
        fixed_ns=np.minimum(_GRAPH_NS, late_ns),
        host_ns=host_ns,
    )
    behind = np.flatnonzero((s.streams.before >= 0) & ~s.constants.has_gap)
    before = s.streams.before[behind]
    gap_ns = np.minimum(activities.start_ns[behind] - activities.end_ns[before], _MOST_GAP_NS)
    return after_call.plus(make_edges(shift + before, shift + behind, EdgeKind.STREAM, fixed_ns=gap_ns, from_end=True))


def _full(s: Sources) -> tuple[Index, Index]:
    """Return the launch calls that waited for room, and the activity whose start made it."""
    m = s.measured
    full = queue_full(m.activities, m.dispatches, m.events)
    return s.streams.call[m.dispatches.first[full.dispatch]], m.dispatches.first[full.awaited]


def room_edges(s: Sources) -> Edges:
    """From the start of the activity that made room to the return of the launch call that waited for it."""
    call, awaited = _full(s)
    late_ns = s.calls.end_ns[call] - s.measured.activities.start_ns[awaited]
    fixed_ns = median(late_ns) if len(late_ns) else None
    return make_edges(
        len(s.points.at_ns) + awaited,
        s.points.call_end[call],
        EdgeKind.ROOM,
        fixed_ns=_ROOM_NS if fixed_ns is None else fixed_ns,
    )


def _as_python(delay_ns: Int64) -> NDArray[np.int64]:
    host_ns = np.zeros((len(HostClass), len(delay_ns)), dtype=np.int64)
    host_ns[HostClass.PYTHON] = delay_ns
    return host_ns


def handoff_edges(s: Sources) -> Edges:
    """From a point of one thread to what another does once it is there."""
    known = make_edges(
        s.handoffs.awaited, s.handoffs.waiting, EdgeKind.HANDOFF, host_ns=_as_python(s.handoffs.delay_ns)
    )
    return known.plus(
        make_edges(
            s.wakes.awaited,
            s.wakes.waiting,
            EdgeKind.HANDOFF,
            host_ns=_as_python(s.wakes.delay_ns),
            is_doubtful=s.wakes.is_doubtful,
        )
    )
