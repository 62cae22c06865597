"""What compiling would make of a model's forward on the CPU backend: a range, as what gets fused is in no recording.

In: a recording of an eager step. Out: `Forward`, what of the step is the model's forward, and the graph with that
compiled. A compiler leaves calls of libraries and of attention as they are and fuses the rest between two of them. So
the Python and the dispatch between them go, but for what the generated code takes for each call and once for its
guards, and of the compute that is fused between none and all is left. What the host does beside it gets quicker too.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from taxbreak_vllm.taxes.recording import Recording
from taxbreak_vllm.trace.cpu import free_ns
from taxbreak_vllm.trace.dispatches import Bool
from taxbreak_vllm.trace.intervals import Busy, Int64, median
from taxbreak_vllm.trace.kernels import Family
from taxbreak_vllm.trace.timeline import HostClass
from taxbreak_vllm.whatif.changes import Range, RefusedError
from taxbreak_vllm.whatif.edges import Sources
from taxbreak_vllm.whatif.graph import Graph

_KEPT = (Family.GEMM, Family.ATTENTION, Family.KV_CACHE, Family.MOE)
# In dispatches of an op that computes nothing: for each call that is left, and once.
_CALL, _GUARDS = Range(low=2, high=10), Range(low=30, high=150)
_REST = Range(low=0.7, high=1)  # of the host's other work: less Python leaves its caches to it
_ALL = Range(low=0, high=1)


@dataclass(frozen=True, slots=True, eq=False)
class Forward:
    """The model's forward, from its embedding to its last library call before that of the logits, in trace time.

    `is_fused` marks activities within that a compiler fuses, `kept_*` are the root ops of the others; `dispatch_ns` is
    what dispatching an op takes.
    """

    thread: int
    start_ns: int
    end_ns: int
    is_fused: Bool
    kept_start: Int64
    kept_end: Int64
    dispatch_ns: int

    @classmethod
    def of(cls, recording: Recording) -> "Forward":
        """Find the forward of the one step recorded; raises RefusedError where there is none to be compiled."""
        if recording.backend.has_launches:
            raise RefusedError(
                "--compiled: which kernels a compiler would make of these is not in a recording; record a compiled step"
                " and compare: taxbreak diff"
            )
        m = recording.measured
        names, activities, host = m.events.names, m.activities, m.host
        if any("CompiledFxGraph" in name for name in names):
            raise RefusedError("--compiled: this step ran compiled already")
        family = np.array([list(Family).index(kind.family) for kind in m.kinds])[m.kind]
        thread = recording.shown_windows[0].thread
        own = activities.stream == thread
        root_name = m.events.name[host.op_row[np.searchsorted(host.op_start, host.root_start)]]
        embeds = np.array([name.endswith("::embedding") for name in names])[root_name]
        embeds = embeds[m.dispatches.root[activities.dispatch]]
        first, gemms = np.flatnonzero(own & embeds), np.flatnonzero(own & (family == list(Family).index(Family.GEMM)))
        dispatch_ns = median(free_ns(m.events, recording.terms.rules.is_metadata_op))
        if len(recording.shown_windows) != 1 or not len(first) or len(gemms) < 3 or not dispatch_ns:
            raise RefusedError("--compiled: this is no recording of one step of a model whose forward can be told")
        start_ns, end_ns = int(activities.start_ns[first[0]]), int(activities.end_ns[gemms[-2]])
        inside = own & (activities.start_ns >= start_ns) & (activities.end_ns <= end_ns)
        is_kept = np.isin(family, [list(Family).index(each) for each in _KEPT])
        root = np.unique(m.dispatches.root[activities.dispatch[inside & is_kept]])
        shift = host.origin_ns - thread * host.stride_ns
        return cls(
            thread=thread,
            start_ns=start_ns,
            end_ns=end_ns,
            is_fused=inside & ~is_kept,
            kept_start=host.root_start[root] + shift,
            kept_end=host.root_end[root] + shift,
            dispatch_ns=dispatch_ns,
        )


def compile_forward(graph: Graph, s: Sources, forward: Forward, end: Callable[[Range], float]) -> Graph:
    """Return the graph with the forward compiled; of each range what `end` picks."""
    activities, edges = s.measured.activities, graph.edges
    thread = np.empty(len(graph.at_ns), dtype=np.int64)
    thread[graph.point_node], thread[graph.activity_node] = s.points.thread, activities.stream
    end_ns = graph.at_ns.copy()
    end_ns[graph.activity_node] = activities.end_ns
    since, until = end_ns[edges.source], graph.at_ns[edges.target]
    rows = np.flatnonzero(
        (thread[edges.target] == forward.thread) & (since >= forward.start_ns) & (until <= forward.end_ns)
    )
    since, until = since[rows], np.maximum(until, since)[rows]
    kept = Busy.of(forward.kept_start, forward.kept_end)
    share = (kept.until(until) - kept.until(since)) / np.maximum(until - since, 1)
    calls = np.searchsorted(forward.kept_start, until) - np.searchsorted(forward.kept_start, since)
    host_ns = np.rint(edges.host_ns * end(_REST)).astype(np.int64)
    left_ns = np.rint(edges.host_ns[:, rows].sum(axis=0) * share).astype(np.int64)
    host_ns[:, rows] = 0
    host_ns[HostClass.DISPATCH, rows] = left_ns
    host_ns[HostClass.PYTHON, rows] = calls * round(end(_CALL) * forward.dispatch_ns)
    if len(rows):
        host_ns[HostClass.PYTHON, rows[np.argmin(since)]] += round(end(_GUARDS) * forward.dispatch_ns)
    duration_ns = graph.duration_ns.copy()
    fused = graph.activity_node[forward.is_fused]
    duration_ns[fused] = np.rint(duration_ns[fused] * end(_ALL) ** 2).astype(np.int64)
    return replace(
        graph.with_edges(replace(edges, host_ns=host_ns)),
        duration_ns=duration_ns,
    )
