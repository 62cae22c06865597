"""From a recording to its dependency graph.

In: a recording with everything measured, and its steps. Out: `Model`: nodes in observed order, the edges of `edges`,
and what these leave unexplained.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from taxbreak_vllm.taxes.measured import Measured
from taxbreak_vllm.trace.intervals import Index, Int64
from taxbreak_vllm.trace.steps import StepWindow
from taxbreak_vllm.whatif.blocking import Blocking
from taxbreak_vllm.whatif.constants import UNEXPLAINED_NS, Calls, Constants
from taxbreak_vllm.whatif.edges import (
    Sources,
    event_edges,
    guessed_edges,
    handoff_edges,
    host_edges,
    launch_edges,
    led_until,
    node_edges,
    possible_edges,
    room_edges,
    slowest_edges,
    stream_edges,
    wait_edges,
)
from taxbreak_vllm.whatif.graph import EdgeKind, Edges, Graph
from taxbreak_vllm.whatif.handoffs import Handoffs
from taxbreak_vllm.whatif.points import Points
from taxbreak_vllm.whatif.polls import Polls
from taxbreak_vllm.whatif.streams import Streams, launched
from taxbreak_vllm.whatif.told import Told
from taxbreak_vllm.whatif.waits import ended_just_before, event_waits
from taxbreak_vllm.whatif.wakes import Wakes


@dataclass(frozen=True, slots=True)
class Unexplained:
    """Activities that began later than all that leads to them, by how much; where something else ran, `contended`."""

    activity: Index
    late_ns: Int64
    is_contended: NDArray[np.bool_]
    unseen_ns: int  # of blocking calls


@dataclass(frozen=True, slots=True)
class Model:
    """A recording as a graph with constants alone.

    `possible` are edges that nothing contradicts and nothing shows, `slowest` those of loops that ask at the worst
    time. `rivals` are other sets of waits that fit the recording as well as those of the graph.
    """

    graph: Graph
    possible: Edges
    slowest: Edges
    rivals: tuple[Blocking, ...]
    sources: Sources
    unexplained: Unexplained


def build(measured: Measured, windows: Sequence[StepWindow]) -> Model:
    """Build the graph of a recording and of its steps."""
    polls = Polls.of(measured.events, measured.host, windows)
    points = Points.of(measured.events, measured.host, windows, polls)
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
    told = Told.of(events, host, calls, activities, dispatches, queues)
    blocking, *rivals = Blocking.of(events, host, calls, activities, dispatches, queues, told, polls)
    launching = set(np.unique(dispatches.thread).tolist())
    handoffs = Handoffs.of(points, launching)
    wakes = Wakes.of(points, points.call_end[blocking.call], launching, handoffs.waiting)
    handoffs = handoffs.without(points, wakes.threads)
    sources = Sources(measured, points, calls, streams, constants, blocking, handoffs, wakes)
    num_points = len(points.at_ns)

    launches, behind, within = launch_edges(sources), stream_edges(sources), node_edges(sources)
    led = led_until(sources, (launches, behind))
    is_told = told.waits is not None
    pairs = event_waits(events, host, calls, activities, streams, queues) if told.waits is None else told.waits
    waits, explained = event_edges(sources, pairs, led, is_told=is_told)
    late_ns = activities.start_ns - np.maximum(led, explained)
    late = np.flatnonzero((late_ns > UNEXPLAINED_NS) & (led > np.iinfo(np.int64).min))
    guessed = ended_just_before(activities, streams.stream, late, UNEXPLAINED_NS)
    still = np.setdiff1d(late, guessed.waiting)
    is_pinned = np.zeros(num_points + len(activities.row), dtype=bool)
    is_pinned[points.call_end[blocking.call[blocking.is_carried]]] = True
    returned = calls.end_ns[streams.call] if len(calls.end_ns) else np.zeros(len(led), dtype=np.int64)
    is_held = (late_ns > UNEXPLAINED_NS) & (activities.start_ns - returned > UNEXPLAINED_NS)
    opens = (streams.before < 0) & (is_held | (led == np.iinfo(np.int64).min))
    is_pinned[num_points + np.flatnonzero(opens & ~np.isin(np.arange(len(led)), guessed.waiting))] = True
    parts = (
        host_edges(sources),
        launches,
        behind,
        within,
        waits,
        guessed_edges(sources, guessed),
        wait_edges(sources),
        room_edges(sources),
        handoff_edges(sources),
    )
    graph, node = ordered(sources, Edges.joined(parts), is_pinned)
    possible, slowest = (_forward(each(sources), node)[0] for each in (possible_edges, slowest_edges))
    still = still[streams.before[still] >= 0]
    unexplained = Unexplained(
        activity=still,
        late_ns=late_ns[still],
        is_contended=_ran_beside(sources, still, late_ns[still]),
        unseen_ns=int(blocking.unseen_ns.sum()),
    )
    return Model(graph, possible, slowest, tuple(rivals), sources, unexplained)


def with_waits(model: Model, blocking: Blocking) -> Graph:
    """Return the graph with other waits of the host in place of its own."""
    graph, sources = model.graph, replace(model.sources, blocking=blocking)
    node = np.concatenate((graph.point_node, graph.activity_node))
    others, _ = _forward(host_edges(sources).plus(wait_edges(sources)), node)
    is_kept = ~np.isin(graph.edges.kind, (EdgeKind.HOST, EdgeKind.WAIT, EdgeKind.QUERY))
    return graph.with_edges(graph.edges.chosen(is_kept).plus(others))


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


def ordered(s: Sources, edges: Edges, is_pinned: NDArray[np.bool_]) -> tuple[Graph, Index]:
    """Put nodes into the order observed, host before device at one instant; also return the place of each in it."""
    points, activities = s.points, s.measured.activities
    num_points = len(points.at_ns)
    at_ns = np.concatenate((points.at_ns, activities.start_ns))
    end_ns = np.concatenate((points.at_ns, activities.end_ns))
    is_activity = np.arange(len(at_ns)) >= num_points
    rank = np.concatenate((points.rank, np.zeros(len(activities.row), dtype=np.int64)))
    order = np.lexsort((np.arange(len(at_ns)), rank, is_activity, at_ns))
    node = np.empty(len(order), dtype=np.intp)
    node[order] = np.arange(len(order))
    forward, num_backward = _forward(edges, node)
    graph = Graph(
        at_ns=at_ns[order],
        duration_ns=(end_ns - at_ns)[order],
        is_activity=is_activity[order],
        is_pinned=is_pinned[order],
        point_node=node[:num_points],
        activity_node=node[num_points:],
        edges=forward,
        num_backward=num_backward,
    )
    return graph, node


def _forward(edges: Edges, node: Index) -> tuple[Edges, int]:
    """Return edges between nodes, by target, without those that lead back, and how many these are."""
    edges = replace(edges, source=node[edges.source], target=node[edges.target])
    forward = edges.source < edges.target
    edges = edges.chosen(forward)
    return edges.chosen(np.argsort(edges.target, kind="stable")), int((~forward).sum())
