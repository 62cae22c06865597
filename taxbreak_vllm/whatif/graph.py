"""A dependency graph in columns: what each instant of host and device waits for, and for how long after it.

Out of `edges`, into `replay`, `gates` and `changes`. Nodes are in the order in which they were observed, and every edge
leads from an earlier to a later one, so that one pass gives the time of all:

    time(node) = max over its edges (time(source) + weight)

    weight = max(0, Σ host_ns + fixed_ns + residual_ns [+ the source's duration, where it is the source's end])
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from taxbreak_vllm.trace.dispatches import Bool
from taxbreak_vllm.trace.intervals import Index, Int64
from taxbreak_vllm.trace.timeline import HostClass

_LEAST_LATENCY_NS = 2_000  # from a graph's call to its first node


class EdgeKind(IntEnum):
    """Why one node follows another; `edges` has a function for each."""

    HOST = 0  # the thread did something in between
    LAUNCH = 1  # the call put it on the device
    STREAM = 2  # the stream was busy until then
    NODE = 3  # within one graph, from one stream to another
    EVENT = 4  # a stream waited for another
    WAIT = 5  # a call blocked until the device was done
    ROOM = 6  # a launch call waited for room in the device's queue
    HANDOFF = 7  # a thread waited for another
    QUERY = 8  # asked within a loop that waits: nobody waits for it, and it takes nothing


@dataclass(frozen=True, slots=True)
class Edges:
    """Edges by their target: `host_ns` int64[HostClass, edges], all else one value an edge.

    `from_end`: the source's end counts, not its start. `residual_ns` is what calibration adds, else 0. `is_doubtful`
    marks what the recording does not show to hold: how long it holds at least, `least` says.
    """

    source: Index
    target: Index
    kind: NDArray[np.int8]
    from_end: Bool
    host_ns: NDArray[np.int64]
    fixed_ns: Int64
    residual_ns: Int64
    is_doubtful: Bool

    def __len__(self) -> int:
        return len(self.source)

    def chosen(self, rows: Bool | Index) -> "Edges":
        """Return some of the edges."""
        return Edges(
            self.source[rows],
            self.target[rows],
            self.kind[rows],
            self.from_end[rows],
            self.host_ns[:, rows],
            self.fixed_ns[rows],
            self.residual_ns[rows],
            self.is_doubtful[rows],
        )

    @classmethod
    def joined(cls, parts: Sequence["Edges"]) -> "Edges":
        """Return the edges of all parts, in the order of the parts."""
        columns = (field.name for field in fields(cls))
        return cls(*(np.concatenate([getattr(part, name) for part in parts], axis=-1) for name in columns))

    def plus(self, others: "Edges") -> "Edges":
        """Return these and others, by their target again."""
        both = Edges.joined((self, others))
        return both.chosen(np.argsort(both.target, kind="stable"))


def make_edges(
    source: Index,
    target: Index,
    kind: EdgeKind,
    *,
    fixed_ns: Int64 | int = 0,
    host_ns: NDArray[np.int64] | None = None,
    from_end: bool = False,
    is_doubtful: Bool | bool = False,
) -> Edges:
    """Return edges of one kind."""
    count = len(source)
    return Edges(
        source=source,
        target=target,
        kind=np.full(count, kind, dtype=np.int8),
        from_end=np.full(count, from_end),
        host_ns=np.zeros((len(HostClass), count), dtype=np.int64) if host_ns is None else host_ns,
        fixed_ns=np.broadcast_to(np.asarray(fixed_ns, dtype=np.int64), (count,)),
        residual_ns=np.zeros(count, dtype=np.int64),
        is_doubtful=np.broadcast_to(np.asarray(is_doubtful, dtype=bool), (count,)),
    )


@dataclass(frozen=True, slots=True)
class Graph:
    """Nodes in observed order and their edges.

    `at_ns` is when each was observed, `duration_ns` how long an activity took (0 for a point of the host), `is_pinned`
    marks what something unrecorded held until it was observed. `point_node` and `activity_node` lead from Points and
    Activities to nodes.
    """

    at_ns: Int64
    duration_ns: Int64
    is_activity: Bool
    is_pinned: Bool
    point_node: Index
    activity_node: Index
    edges: Edges
    num_backward: int = 0

    @property
    def window_ns(self) -> int:
        """From the first node to the last end, as observed."""
        return int((self.at_ns + self.duration_ns).max() - self.at_ns.min())

    def with_edges(self, edges: Edges) -> "Graph":
        """Return the graph with other edges, which come by target."""
        return replace(self, edges=edges)

    def least(self) -> "Graph":
        """Return the graph with what is doubtful at its least.

        What a thread may have waited for takes nothing, one thread does not wait for the other nor one stream, a stream
        leaves no gap, a graph begins as soon as it is called.
        """
        edges = self.edges
        edges = edges.chosen(~(edges.is_doubtful & np.isin(edges.kind, (EdgeKind.HANDOFF, EdgeKind.EVENT))))
        least_ns = np.where(edges.kind == EdgeKind.LAUNCH, _LEAST_LATENCY_NS, 0)
        return self.with_edges(
            replace(
                edges,
                host_ns=np.where(edges.is_doubtful, 0, edges.host_ns),
                fixed_ns=np.where(edges.is_doubtful, least_ns, edges.fixed_ns),
                residual_ns=np.where(edges.is_doubtful, 0, edges.residual_ns),
            )
        )

    def weights(self) -> Int64:
        """Return the weight of each edge."""
        weight: Int64 = np.maximum(self._raw() + self.edges.residual_ns, 0)
        return weight

    def calibrated(self) -> "Graph":
        """Return the graph whose replay gives every node as observed.

        The edge of a node that should come last takes what is left of it, shorter or longer; the others are shortened
        where they would hold the node beyond that.
        """
        edges = self.edges
        left = self.at_ns[edges.target] - self.at_ns[edges.source] - self._raw()
        target = edges.target
        tightest = np.full(len(self.at_ns), np.iinfo(np.int64).max)
        np.minimum.at(tightest, target, left)
        first = np.full(len(self.at_ns), -1, dtype=np.intp)
        rows = np.flatnonzero(left == tightest[target])[::-1]
        first[target[rows]] = rows
        residual = np.minimum(left, 0)
        binding = first[(first >= 0) & ~self.is_pinned]
        residual[binding] = left[binding]
        residual[edges.kind == EdgeKind.QUERY] = 0
        return self.with_edges(replace(edges, residual_ns=residual))

    def _raw(self) -> Int64:
        edges = self.edges
        lasts = np.where(edges.from_end, self.duration_ns[edges.source], 0)
        total: Int64 = edges.host_ns.sum(axis=0, dtype=np.int64) + edges.fixed_ns + lasts
        return total
