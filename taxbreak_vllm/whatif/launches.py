"""Changes to the launch path: many launches become one, as a graph or as a fused kernel.

In: a graph and what a change is. Out: another graph, with the same nodes.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from taxbreak_vllm.model.errors import SettingsError
from taxbreak_vllm.taxes.equations import t_sys_graph
from taxbreak_vllm.trace.intervals import Index, median
from taxbreak_vllm.trace.timeline import HostClass
from taxbreak_vllm.whatif.changes import Followers, RefusedError, activities_named, silence_host
from taxbreak_vllm.whatif.edges import Sources
from taxbreak_vllm.whatif.graph import EdgeKind, Graph


def fuse(graph: Graph, sources: Sources, followers: Index) -> Graph:
    """Let kernels, each with what is before it on its stream, be launched as one.

    A bound: the followers need no launch and no gap; their own time, which a fused kernel may save or not, stays.
    """
    streams = sources.streams
    ends, threads = sources.points.call_end, sources.points.thread
    stretches = [
        (int(ends[before]), int(ends[call]))
        for before, call in zip(
            streams.call[streams.previous[followers]].tolist(), streams.call[followers].tolist(), strict=True
        )
        if min(before, call) >= 0 and threads[ends[before]] == threads[ends[call]] and ends[before] < ends[call]
    ]
    return _unlaunched(silence_host(graph, sources, stretches), sources, followers, gap_ns=0)


def find_followers(sources: Sources, chains: Sequence[tuple[str, ...]]) -> Followers:
    """Find the kernels of each chain but the first, wherever all of it follows one another on a stream.

    Raises SettingsError where a chain never occurs.
    """
    return Followers(np.unique(np.concatenate([_followers(sources, chain) for chain in chains])))


def _followers(sources: Sources, chain: tuple[str, ...]) -> Index:
    streams = sources.streams
    where = activities_named(sources, chain[0])
    followers: list[Index] = []
    for part in chain[1:]:
        named = activities_named(sources, part)
        where = named[np.isin(streams.previous[named], where)]
        followers.append(where)
    if not followers or not len(where):
        raise SettingsError(f"--fuse {','.join(chain)}: no such kernels follow one another in this recording")
    kept = [where]
    for named in reversed(followers[:-1]):  # what is not followed to the chain's end is no part of it
        kept.append(named[np.isin(named, streams.previous[kept[-1]])])
    return np.concatenate(kept)


def capture(graph: Graph, sources: Sources, points: tuple[tuple[int, int], ...], *, gap_ns: int) -> Graph:
    """Let the plain launches of each step be one launch of a graph that costs T_sys_graph(n) (`points`: nodes, ns).

    What a wait interrupts stays as it is: of the stretches between waits, the one with most launches is captured.
    """
    runs = _runs(sources)
    if not runs:
        raise RefusedError("--graph full: no step launches two or more kernels one by one")
    first_of = np.array([run[0] for run in runs])
    counts = np.array([len(run) for run in runs], dtype=np.int64)
    ends = sources.points.call_end[sources.streams.call]
    graph = silence_host(graph, sources, [(int(ends[run[0]]), int(ends[run[-1]])) for run in runs])
    graph = _unlaunched(graph, sources, np.concatenate([run[1:] for run in runs]), gap_ns=gap_ns)
    cost_ns = t_sys_graph(counts, points)
    calls = sources.streams.call[first_of]
    edges = graph.edges
    cost = np.full(len(graph.at_ns), -1, dtype=np.int64)
    cost[graph.activity_node[first_of]] = cost_ns
    cost[graph.point_node[sources.points.call_end[calls]]] = cost_ns
    rows = (cost[edges.target] >= 0) & np.isin(edges.kind, (EdgeKind.LAUNCH, EdgeKind.HOST))
    host_ns = np.where(rows, 0, edges.host_ns)
    host_ns[HostClass.LAUNCH, rows] = cost[edges.target[rows]]
    return graph.with_edges(replace(edges, host_ns=host_ns))


def captured(sources: Sources) -> tuple[int, int]:
    """Return how many plain launches of the steps `capture` puts into graphs, and how many there are."""
    d, points, streams = sources.measured.dispatches, sources.points, sources.streams
    at = np.sort(points.call_start[streams.call[d.first[(d.num_kernels > 0) & ~d.is_graph]]])
    inside = np.searchsorted(at, points.step_end) - np.searchsorted(at, points.step_start)
    return sum(map(len, _runs(sources))), int(inside.sum())


def node_gap_ns(sources: Sources) -> int | None:
    """Return the median gap between nodes of this recording's own graphs; None where it has none."""
    is_node = sources.streams.is_node & sources.streams.is_graph & (sources.streams.before >= 0)
    return median(sources.constants.gap_ns[is_node]) if is_node.any() else None


def _runs(sources: Sources) -> list[Index]:
    """Return for each step the first activities of its longest run of plain launches between two waits."""
    d, points, streams = sources.measured.dispatches, sources.points, sources.streams
    plain = d.first[(d.num_kernels > 0) & ~d.is_graph]
    launch = points.call_start[streams.call[plain]]
    order = np.argsort(launch)
    plain, launch = plain[order], launch[order]
    waits = np.sort(points.call_start[sources.blocking.call])
    found: list[Index] = []
    for step in range(len(points.step_start)):
        inside = np.flatnonzero((launch > points.step_start[step]) & (launch < points.step_end[step]))
        if len(inside) < 2:
            continue
        stretch = np.searchsorted(waits, launch[inside])
        longest = np.argmax(np.bincount(stretch))
        run = plain[inside[stretch == longest]]
        if len(run) > 1:
            found.append(run)
    return found


def _unlaunched(graph: Graph, sources: Sources, activities: Index, *, gap_ns: int) -> Graph:
    """Let activities follow what is before them on their stream, by this gap at most, without a launch of their own."""
    chosen = np.zeros(len(graph.at_ns), dtype=bool)
    chosen[graph.activity_node[activities[sources.streams.before[activities] >= 0]]] = True
    edges = graph.edges
    edges = edges.chosen(~(chosen[edges.target] & (edges.kind == EdgeKind.LAUNCH)))
    behind = chosen[edges.target] & (edges.kind == EdgeKind.STREAM)
    return graph.with_edges(
        replace(
            edges,
            fixed_ns=np.where(behind, np.minimum(edges.fixed_ns, gap_ns), edges.fixed_ns),
            residual_ns=np.where(behind, np.minimum(edges.residual_ns, 0), edges.residual_ns),
        )
    )
