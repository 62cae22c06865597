"""Changes to a dependency graph: the same recording on another host, another launch path, another device.

In: a graph and what a change is. Out: another graph, with the same nodes. A change that changes nothing gives the graph
back; what a recording cannot answer is refused with the reason.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from taxbreak_vllm.model.errors import SettingsError
from taxbreak_vllm.trace.intervals import Index, Int64
from taxbreak_vllm.trace.kernels import Family
from taxbreak_vllm.trace.timeline import HostClass
from taxbreak_vllm.whatif.edges import Sources
from taxbreak_vllm.whatif.graph import EdgeKind, Graph

if TYPE_CHECKING:
    from taxbreak_vllm.whatif.compiled import Forward

HOST = tuple(cls for cls in HostClass if cls is not HostClass.BLOCKED)  # waiting follows from the rest


class RefusedError(Exception):
    """What a recording cannot answer, with the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """A factor that lies between two values."""

    low: float = 1.0
    high: float = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Times:
    """Between what each activity takes, in the order of Activities, int64 ns."""

    low_ns: Int64
    high_ns: Int64


@dataclass(frozen=True, slots=True, eq=False)
class Followers:
    """The kernels of chains that are fused but the first of each, rows of Activities."""

    rows: Index


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What is different; everything at its default changes nothing.

    `host` has a factor for each class, `kernels` for each family of kernels. `floor_ns` is T_sys, `graph_ns` what a
    launch of n nodes costs as measured points (nodes, ns), for `full_graph`. `fused` are chains of kernels, each a part
    of a name, and `followers` where a recording has them; calls with a part of `no_sync` in their name do not wait.
    """

    host: Mapping[HostClass, Range] = field(default_factory=dict)
    kernels: Mapping[Family, Range] = field(default_factory=dict)
    floor_ns: int | None = None
    full_graph: bool = False
    graph_ns: tuple[tuple[int, int], ...] = ()
    fused: tuple[tuple[str, ...], ...] = ()
    followers: Followers | None = None
    no_sync: tuple[str, ...] = ()
    one_step_ahead: bool = False
    like: Times | None = None
    compiled: "Forward | None" = None

    @property
    def is_device_only(self) -> bool:
        """Whether the host does what it did."""
        return self == Change(kernels=self.kernels, graph_ns=self.graph_ns, like=self.like)


def scale_host(graph: Graph, factor: Mapping[HostClass, float]) -> Graph:
    """Let what the host does of each class take so many times as long; latencies of the device stay."""
    host_ns = graph.edges.host_ns.copy()
    for cls, times in factor.items():
        if times != 1:
            host_ns[cls] = np.rint(host_ns[cls] * times).astype(np.int64)
    return graph.with_edges(replace(graph.edges, host_ns=host_ns))


def scale_kernels(graph: Graph, sources: Sources, factor: Mapping[Family, float]) -> Graph:
    """Let the kernels of each family take so many times as long; copies and fills stay as they are.

    Collectives contain waiting for peers, so they have no factor.
    """
    times = np.array([factor.get(kind.family, 1.0) for kind in sources.measured.kinds], dtype=np.float64)
    rows = np.flatnonzero(sources.measured.activities.is_kernel)
    times = times[sources.measured.kind[rows]]
    nodes = graph.activity_node[rows]
    duration_ns = graph.duration_ns.copy()
    duration_ns[nodes] = np.rint(duration_ns[nodes] * times).astype(np.int64)
    return replace(graph, duration_ns=duration_ns)


def take_times(graph: Graph, like: Times, end: Callable[[Range], float]) -> Graph:
    """Let each activity take as long as its op did where it was replayed; of its range what `end` picks."""
    times_ns = like.low_ns + np.rint((like.high_ns - like.low_ns) * end(Range(low=0.0, high=1.0))).astype(np.int64)
    duration_ns = graph.duration_ns.copy()
    duration_ns[graph.activity_node] = times_ns
    return replace(graph, duration_ns=duration_ns)


def change_floor(graph: Graph, sources: Sources, floor_ns: int) -> Graph:
    """Let each kernel launch take as much longer as the floor is above the recording's own.

    Raises RefusedError where the recording's own is not known.
    """
    own_ns = sources.measured.basis.floor_ns
    if own_ns is None:
        raise RefusedError("--floor-us: T_sys of this recording is not known, so nothing can be put in its place")
    d = sources.measured.dispatches
    is_plain = np.zeros(len(graph.at_ns), dtype=bool)
    is_plain[graph.activity_node[d.first[(d.num_kernels > 0) & ~d.is_graph]]] = True
    rows = (graph.edges.kind == EdgeKind.LAUNCH) & is_plain[graph.edges.target]
    fixed_ns = graph.edges.fixed_ns + np.where(rows, floor_ns - own_ns, 0)
    return graph.with_edges(replace(graph.edges, fixed_ns=fixed_ns))


def without_sync(graph: Graph, sources: Sources, name: str) -> Graph:
    """Let calls with this in their name return at once; raises SettingsError where no blocking call has."""
    names, calls, blocking = sources.measured.events.names, sources.calls, sources.blocking
    said = {number: names[number] for number in np.unique(calls.name[blocking.call]).tolist()}
    chosen = [number for number, text in said.items() if name.lower() in text.lower()]
    if not chosen:
        here = ", ".join(sorted(said.values())) or "there is none"
        raise SettingsError(f"--no-sync {name}: no blocking call of this recording is named so; {here}")
    call = blocking.call[np.isin(calls.name[blocking.call], chosen)]
    ends = np.zeros(len(graph.at_ns), dtype=bool)
    ends[graph.point_node[sources.points.call_end[call]]] = True
    edges = graph.edges
    edges = edges.chosen(~((edges.kind == EdgeKind.WAIT) & ends[edges.target]))
    waited_blindly = (edges.kind == EdgeKind.HOST) & ends[edges.target]
    return graph.with_edges(replace(edges, fixed_ns=np.where(waited_blindly, 0, edges.fixed_ns)))


def one_step_ahead(graph: Graph, sources: Sources) -> Graph:
    """Let the last wait of each step wait for the step before instead, as asynchronous scheduling does.

    Raises RefusedError where the steps do not each wait for their own work on their own thread, or are too few.
    """
    points, blocking, streams = sources.points, sources.blocking, sources.streams
    if len(points.step_start) < 3:
        raise RefusedError("--async: needs three steps in a row")
    waits = blocking.call[blocking.awaited >= 0]
    awaited = blocking.awaited[blocking.awaited >= 0]
    end_at, end_thread = points.at_ns[points.call_end[waits]], points.thread[points.call_end[waits]]
    launch_ns = sources.calls.start_ns[streams.call[awaited]] if len(awaited) else end_at
    last: list[int] = []
    for step in range(len(points.step_start)):
        start = int(points.step_start[step])
        after = int(points.next_step[step])
        until = int(points.at_ns[after]) if after >= 0 else np.iinfo(np.int64).max
        begun_ns = int(points.at_ns[start])
        own = np.flatnonzero((end_at >= begun_ns) & (end_at < until) & (end_thread == points.thread[start]))
        own = own[launch_ns[own] >= begun_ns]
        if not len(own):
            raise RefusedError(
                "--async: not every step waits for its own work on its own thread: it may be ahead already"
            )
        last.append(int(own[np.argmax(end_at[own])]))
    ends = graph.point_node[points.call_end[waits[last]]]
    edges = graph.edges
    following = np.full(len(graph.at_ns), -1, dtype=np.intp)
    following[ends[:-1]] = ends[1:]
    is_moved = (edges.kind == EdgeKind.WAIT) & np.isin(edges.target, ends)
    if not np.isin(ends, edges.target[is_moved]).all():
        raise RefusedError("--async: a step's last wait returned before what it waited for had begun")
    target = np.where(is_moved, following[edges.target], edges.target)
    edges = replace(edges, target=target).chosen(target >= 0)
    return graph.with_edges(edges.chosen(np.argsort(edges.target, kind="stable")))


def silence_host(graph: Graph, sources: Sources, stretches: list[tuple[int, int]]) -> Graph:
    """Let a thread do nothing between the points of each pair (both on one thread)."""
    silent = np.zeros(len(sources.points.at_ns) + 1, dtype=np.int64)
    for first, last in stretches:
        silent[first + 1] += 1
        silent[last + 1] -= 1
    nodes = np.zeros(len(graph.at_ns), dtype=bool)
    nodes[graph.point_node[np.cumsum(silent[:-1]) > 0]] = True
    edges = graph.edges
    rows = (edges.kind == EdgeKind.HOST) & nodes[edges.target]
    return graph.with_edges(replace(edges, host_ns=np.where(rows, 0, edges.host_ns)))


def activities_named(sources: Sources, part: str) -> Index:
    """Return the kernels with this in their name."""
    names, a = sources.measured.events.names, sources.measured.activities
    rows = np.flatnonzero(a.is_kernel)
    chosen = [name for name in np.unique(a.name[rows]).tolist() if part.lower() in names[name].lower()]
    return rows[np.isin(a.name[rows], chosen)]
