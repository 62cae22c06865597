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
"""

from dataclasses import dataclass, replace
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from taxbreak_vllm.taxes.measured import Measured
from taxbreak_vllm.trace.dispatches import queue_full
from taxbreak_vllm.trace.intervals import Index, Int64, median
from taxbreak_vllm.trace.timeline import HostClass
from taxbreak_vllm.whatif.constants import UNEXPLAINED_NS, Calls, Constants
from taxbreak_vllm.whatif.graph import EdgeKind, Edges, Graph, make_edges
from taxbreak_vllm.whatif.handoffs import Handoffs
from taxbreak_vllm.whatif.points import Points
from taxbreak_vllm.whatif.streams import Streams, launched
from taxbreak_vllm.whatif.wakes import Wakes
from taxbreak_vllm.whatif.waits import Blocking, Pairs, ended_just_before, event_waits

_EVENT_NS, _ROOM_NS = 2_000, 4_500  # where a recording shows none
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


@dataclass(frozen=True, slots=True)
class Unexplained:
    """Activities that began later than all that leads to them, by how much; where something else ran, `contended`."""

    activity: Index
    late_ns: Int64
    is_contended: NDArray[np.bool_]
    unseen_ns: int  # of blocking calls


def build(measured: Measured, points: Points) -> tuple[Graph, Sources, Unexplained]:
    """Build the graph of a recording; constants alone, `Graph.calibrated` adds the rest."""
    events, host, activities, dispatches = (
        measured.events,
        measured.host,
        measured.activities,
        measured.dispatches,
    )
    calls = Calls.of(events, host)
    streams = Streams.of(host, activities, dispatches)
    constants = Constants.fit(events, host, calls, activities, streams)
    launch_ns = calls.start_ns[streams.call] if len(calls.start_ns) else np.zeros(len(streams.call), dtype=np.int64)
    queues = launched(streams, activities, launch_ns)
    blocking = Blocking.of(events, host, calls, activities, dispatches, queues)
    handoffs = Handoffs.of(points)
    wakes = Wakes.of(points, points.call_end[blocking.call], handoffs.waiting)
    sources = Sources(measured, points, calls, streams, constants, blocking, handoffs, wakes)
    num_points = len(points.at_ns)

    launches, behind, within = _launches(sources), _behind(sources), _within_graphs(sources)
    led = _led_until(sources, (launches, behind))
    events_pairs = event_waits(events, host, calls, activities, streams, queues)
    waits, explained = _events(sources, events_pairs, led)
    late_ns = activities.start_ns - np.maximum(led, explained)
    late = np.flatnonzero((late_ns > UNEXPLAINED_NS) & (led > np.iinfo(np.int64).min))
    guessed = ended_just_before(activities, streams.stream, late, UNEXPLAINED_NS)
    still = np.setdiff1d(late, guessed.waiting)
    is_pinned = np.zeros(num_points + len(activities.row), dtype=bool)
    returned = calls.end_ns[streams.call] if len(calls.end_ns) else np.zeros(len(led), dtype=np.int64)
    is_held = (late_ns > UNEXPLAINED_NS) & (activities.start_ns - returned > UNEXPLAINED_NS)
    opens = (streams.before < 0) & (is_held | (led == np.iinfo(np.int64).min))
    is_pinned[num_points + np.flatnonzero(opens & ~np.isin(np.arange(len(led)), guessed.waiting))] = True
    parts = (
        _host(sources),
        launches,
        behind,
        within,
        waits,
        _guesses(sources, guessed),
        _returns(sources),
        _room(sources),
        make_edges(
            sources.handoffs.awaited,
            sources.handoffs.waiting,
            EdgeKind.HANDOFF,
            host_ns=_as_python(sources.handoffs.delay_ns),
        ),
        make_edges(wakes.awaited, wakes.waiting, EdgeKind.HANDOFF, host_ns=_as_python(wakes.delay_ns)),
    )
    graph = _ordered(sources, reduce(Edges.plus, parts), is_pinned)
    still = still[streams.before[still] >= 0]
    unexplained = Unexplained(
        activity=still,
        late_ns=late_ns[still],
        is_contended=_ran_beside(sources, still, late_ns[still]),
        unseen_ns=int(blocking.unseen_ns.sum()),
    )
    return graph, sources, unexplained


def _host(s: Sources) -> Edges:
    """What each thread did between two points, by class.

    A blocking call that waits for a known activity takes on its own what such calls take that need not wait, and a
    launch call that waits for room what such calls take else; a thread that waits for another takes nothing.
    """
    points, host, blocking = s.points, s.measured.host, s.blocking
    to = np.flatnonzero(points.previous >= 0)
    before = points.previous[to]
    host_ns = s.measured.partition.between(
        host.key(points.thread[to], points.at_ns[before]), host.key(points.thread[to], points.at_ns[to])
    )
    known = (blocking.awaited >= 0) | (blocking.possible >= 0)
    place = np.full(len(points.at_ns), -1, dtype=np.intp)
    place[to] = np.arange(len(to))
    ends = place[points.call_end[blocking.call[known]]]
    host_ns[HostClass.BLOCKED, ends] = 0
    host_ns[HostClass.RUNTIME, ends] += blocking.idle_ns[known]
    host_ns[HostClass.BLOCKED, place[points.call_end[_full(s)[0]]]] = 0
    silent = place[np.concatenate((s.handoffs.waiting, s.wakes.silent))]
    host_ns[:, silent[silent >= 0]] = 0
    fixed_ns = host_ns[HostClass.BLOCKED].copy()
    host_ns[HostClass.BLOCKED] = 0
    return make_edges(before, to, EdgeKind.HOST, fixed_ns=fixed_ns, host_ns=host_ns)


def _launches(s: Sources) -> Edges:
    """From a call's start to what it put on the device: the call's length is the host's, the latency after it is not."""
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
    )


def _behind(s: Sources) -> Edges:
    """From the end of what kept the stream busy to the next."""
    activity = np.flatnonzero(s.streams.before >= 0)
    shift = len(s.points.at_ns)
    before = s.streams.before[activity]
    return make_edges(
        shift + before, shift + activity, EdgeKind.STREAM, fixed_ns=s.constants.gap_ns[activity], from_end=True
    )


def _within_graphs(s: Sources) -> Edges:
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


def _led_until(s: Sources, parts: tuple[Edges, ...]) -> Int64:
    """Return until when the edges hold each activity, by what was observed; the least int64 where there is none."""
    activities, shift = s.measured.activities, len(s.points.at_ns)
    at_ns = np.concatenate((s.points.at_ns, activities.start_ns))
    end_ns = np.concatenate((s.points.at_ns, activities.end_ns))
    led = np.full(len(at_ns), np.iinfo(np.int64).min)
    for edges in parts:
        since = np.where(edges.from_end, end_ns[edges.source], at_ns[edges.source])
        np.maximum.at(led, edges.target, since + edges.host_ns.sum(axis=0) + edges.fixed_ns)
    return led[shift:]


def _events(s: Sources, pairs: Pairs, led: Int64) -> tuple[Edges, Int64]:
    """From another stream to what was launched after a wait for its event; also, until when that holds each."""
    activities, shift = s.measured.activities, len(s.points.at_ns)
    ended, start_ns = activities.end_ns[pairs.awaited], activities.start_ns[pairs.waiting]
    decides = (start_ns - led[pairs.waiting] > UNEXPLAINED_NS // 10) & (ended > led[pairs.waiting])
    latency_ns = (start_ns - ended)[decides & (start_ns - ended < UNEXPLAINED_NS)]
    fitted = median(latency_ns) if len(latency_ns) > 2 else None
    fixed_ns = _EVENT_NS if fitted is None else fitted
    explained = np.full(len(led), np.iinfo(np.int64).min)
    near = start_ns - ended < _EVENT_NEAR_NS
    np.maximum.at(explained, pairs.waiting[near], np.maximum(ended + fixed_ns, start_ns)[near & (ended > 0)])
    edges = make_edges(
        shift + pairs.awaited, shift + pairs.waiting, EdgeKind.EVENT, fixed_ns=fixed_ns, from_end=True
    )
    return edges, explained


def _guesses(s: Sources, pairs: Pairs) -> Edges:
    """From what ended on another stream right before an activity that nothing else explains."""
    shift = len(s.points.at_ns)
    return make_edges(shift + pairs.awaited, shift + pairs.waiting, EdgeKind.EVENT, from_end=True)


def _returns(s: Sources) -> Edges:
    """From what a blocking call waits for to its return."""
    known = s.blocking.awaited >= 0
    return make_edges(
        len(s.points.at_ns) + s.blocking.awaited[known],
        s.points.call_end[s.blocking.call[known]],
        EdgeKind.WAIT,
        fixed_ns=s.blocking.return_ns[known],
        from_end=True,
    )


def _full(s: Sources) -> tuple[Index, Index]:
    """Return the launch calls that waited for room, and the activity whose start made it."""
    m = s.measured
    full = queue_full(m.activities, m.dispatches, m.events)
    return s.streams.call[m.dispatches.first[full.dispatch]], m.dispatches.first[full.awaited]


def _room(s: Sources) -> Edges:
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


def _ran_beside(s: Sources, activity: Index, late_ns: Int64) -> NDArray[np.bool_]:
    """Tell of activities that were held for so long whether another stream of their device ran meanwhile."""
    a = s.measured.activities
    beside = np.zeros(len(activity), dtype=bool)
    for number, row in enumerate(activity.tolist()):
        middle = a.start_ns[row] - late_ns[number] // 2
        until = int(np.searchsorted(a.start_ns, middle))
        others = (a.end_ns[:until] > middle) & (a.device[:until] == a.device[row])
        beside[number] = bool((others & (s.streams.stream[:until] != s.streams.stream[row])).any())
    return beside


def _ordered(s: Sources, edges: Edges, is_pinned: NDArray[np.bool_]) -> Graph:
    """Put nodes into the order observed, host before device at one instant, and leave out edges that lead back."""
    points, activities = s.points, s.measured.activities
    num_points = len(points.at_ns)
    at_ns = np.concatenate((points.at_ns, activities.start_ns))
    end_ns = np.concatenate((points.at_ns, activities.end_ns))
    is_activity = np.arange(len(at_ns)) >= num_points
    rank = np.concatenate((points.rank, np.zeros(len(activities.row), dtype=np.int64)))
    order = np.lexsort((np.arange(len(at_ns)), rank, is_activity, at_ns))
    node = np.empty(len(order), dtype=np.intp)
    node[order] = np.arange(len(order))
    edges = replace(edges, source=node[edges.source], target=node[edges.target])
    forward = edges.source < edges.target
    edges = edges.chosen(forward)
    return Graph(
        at_ns=at_ns[order],
        duration_ns=(end_ns - at_ns)[order],
        is_activity=is_activity[order],
        is_pinned=is_pinned[order],
        point_node=node[:num_points],
        activity_node=node[num_points:],
        edges=edges.chosen(np.argsort(edges.target, kind="stable")),
        num_backward=int((~forward).sum()),
    )
