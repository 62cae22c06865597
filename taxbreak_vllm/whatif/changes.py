"""Changes to a dependency graph: the same recording on another host, another launch path, another device.

In: a `Graph`. Out: another. A change never adds time by itself: with a factor of 1 the graph stays what it was.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from taxbreak_vllm.trace.timeline import HostClass
from taxbreak_vllm.whatif.graph import Graph


def scale_host(graph: Graph, factor: Mapping[HostClass, float]) -> Graph:
    """Let what the host does of each class take so many times as long; latencies of the device stay."""
    host_ns = graph.edges.host_ns.copy()
    for cls, times in factor.items():
        if times != 1:
            host_ns[cls] = np.rint(host_ns[cls] * times).astype(np.int64)
    return graph.with_edges(replace(graph.edges, host_ns=host_ns))


def scale_activities(graph: Graph, rows: NDArray[np.intp], factor: float) -> Graph:
    """Let some activities (into Activities) take so many times as long."""
    duration_ns = graph.duration_ns.copy()
    nodes = graph.activity_node[rows]
    duration_ns[nodes] = np.rint(duration_ns[nodes] * factor).astype(np.int64)
    return replace(graph, duration_ns=duration_ns)
