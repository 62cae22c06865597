"""The plain step behind a recorded one: what the profiler added to the host is taken out again (methodology 5).

In: the graph of a recorded step and how long plain steps like it take. Out: ways to take the profiler's cost out of
such graphs so that the step takes as long as a plain one. The profiler costs something for each op and call that it
records. What an op costs is calibrated in the process and a call costs what remains, or each event costs alike, or the
whole host is slowed alike: which of these, a recording does not say.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from taxbreak_vllm.trace.events import EventKind
from taxbreak_vllm.trace.intervals import Int64
from taxbreak_vllm.whatif.changes import HOST, RefusedError, scale_host
from taxbreak_vllm.whatif.edges import Sources
from taxbreak_vllm.whatif.graph import EdgeKind, Graph
from taxbreak_vllm.whatif.points import PointKind

Lighten = Callable[[Graph], Graph]
Took = Callable[[Graph], float]

_MOST_NS = 1_000_000  # no event costs the profiler more
_ROUNDS = 30
_WITHIN = 0.01  # of the plain step: so near is met
_SLOWER = 1.1  # a plain step may be longer than the recorded one by chance, not by more


@dataclass(frozen=True, slots=True)
class Recorded:
    """How many ops and calls the profiler recorded on the way to each node of a graph."""

    ops: Int64
    calls: Int64

    @classmethod
    def of(cls, graph: Graph, sources: Sources) -> "Recorded":
        """Count the ops that begin between two instants of a thread, and each call at its end and its activity."""
        points, events, host = sources.points, sources.measured.events, sources.measured.host
        ops, calls = np.zeros(len(graph.at_ns), dtype=np.int64), np.zeros(len(graph.at_ns), dtype=np.int64)
        thread, at_ns, node = points.thread, points.at_ns, graph.point_node
        if sources.measured.backend.has_launches:
            calls[graph.point_node[np.flatnonzero(points.kind == PointKind.CALL_END)]] = 1
            calls[graph.activity_node[sources.streams.is_first]] = 1
        else:  # the thread itself computes
            activities = sources.measured.activities
            thread = np.concatenate((thread, activities.stream.astype(np.int32)))
            at_ns, node = np.concatenate((at_ns, activities.start_ns)), np.concatenate((node, graph.activity_node))
            order = np.argsort(host.key(thread, at_ns), kind="stable")
            thread, at_ns, node = thread[order], at_ns[order], node[order]
        rows = events.rows(EventKind.OP)
        at = np.searchsorted(
            host.key(thread, at_ns), host.key(events.thread[rows], events.start_ns[rows]), side="right"
        )
        inside = (at > 0) & (at < len(at_ns))
        inside[inside] = thread[at[inside]] == thread[at[inside] - 1]
        np.add.at(ops, node[at[inside]], 1)
        return cls(ops, calls)

    def without(self, graph: Graph, *, op_ns: float, call_ns: float) -> Graph:
        """Take so much for each out of what the host does, as far as it does anything."""
        edges = graph.edges
        cost_ns = (self.ops * op_ns + self.calls * call_ns)[edges.target]
        total_ns = edges.host_ns.sum(axis=0)
        is_host = ((edges.kind == EdgeKind.HOST) | (edges.kind == EdgeKind.LAUNCH)) & (total_ns > 0)
        left: NDArray[np.float64] = np.where(is_host, np.maximum(1 - cost_ns / np.maximum(total_ns, 1), 0), 1.0)
        return graph.with_edges(replace(edges, host_ns=np.rint(edges.host_ns * left).astype(np.int64)))


def lightened(
    graph: Graph, sources: Sources, took: Took, *, plain_ns: int, op_cost_ns: int | None
) -> tuple[Lighten, ...]:
    """Return ways to make a graph that of the plain step, the best known first.

    Raises RefusedError where no such cost explains the plain step.
    """
    recorded_ns = took(graph)
    if recorded_ns <= plain_ns * (1 + _WITHIN):
        if plain_ns > _SLOWER * recorded_ns:
            raise RefusedError(f"plain steps take {plain_ns / recorded_ns:.2f} times as long as this one was recorded")
        return (lambda each: each,)
    return tuple(_ways(Recorded.of(graph, sources), graph, took, plain_ns, op_cost_ns))


def _ways(recorded: Recorded, graph: Graph, took: Took, plain_ns: int, op_cost_ns: int | None) -> Iterator[Lighten]:
    def alike(cost_ns: float) -> Lighten:
        return lambda each: recorded.without(each, op_ns=cost_ns, call_ns=cost_ns)

    def calls(cost_ns: float) -> Lighten:
        return lambda each: recorded.without(each, op_ns=op_cost_ns or 0, call_ns=cost_ns)

    def ops(cost_ns: float) -> Lighten:
        return lambda each: recorded.without(each, op_ns=cost_ns, call_ns=0)

    def all_of_it(share: float) -> Lighten:
        return lambda each: scale_host(each, dict.fromkeys(HOST, 1 - share))

    found: list[Lighten] = []
    if op_cost_ns:
        rest = calls if took(calls(0)(graph)) > plain_ns else ops
        found += _solved(rest, graph, took, plain_ns, _MOST_NS)
    found += _solved(alike, graph, took, plain_ns, _MOST_NS)
    found += _solved(all_of_it, graph, took, plain_ns, 1.0)
    if not found:
        raise RefusedError("plain steps are quicker than this one would be without any host")
    yield from found


def _solved(way: Callable[[float], Lighten], graph: Graph, took: Took, plain_ns: int, most: float) -> list[Lighten]:
    """Return the way with the least cost that makes the step as short as plain ones; none where none does."""
    low, high = 0.0, most
    if took(way(high)(graph)) > plain_ns * (1 + _WITHIN):
        return []
    for _ in range(_ROUNDS):
        middle = (low + high) / 2
        if took(way(middle)(graph)) > plain_ns:
            low = middle
        else:
            high = middle
        if high - low < most / 1_000_000:
            break
    return [way(high)]
