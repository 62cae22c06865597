"""One pass over a dependency graph: when everything happens.

In: a `Graph`. Out: the time of every node, int64 ns, in the order of its nodes; linear in nodes and edges.
"""

import numpy as np

from taxbreak_vllm.trace.intervals import Int64
from taxbreak_vllm.whatif.graph import Graph


def replay(graph: Graph, *, first_later_ns: int = 0) -> Int64:
    """Return when each node happens; `first_later_ns` delays the first point of the host.

    A node without edges, or a pinned one, does not happen before it was observed.
    """
    at = graph.at_ns.tolist()
    if first_later_ns and not graph.is_activity.all():
        at[int(np.argmin(graph.is_activity))] += first_later_ns
    bounds = np.searchsorted(graph.edges.target, np.arange(len(at) + 1), side="left")
    is_free = (np.diff(bounds) > 0) & ~graph.is_pinned
    source, weight = graph.edges.source.tolist(), graph.weights().tolist()
    time: list[int] = []
    edge = 0
    for observed, free, end in zip(at, is_free.tolist(), bounds[1:].tolist(), strict=True):
        if free:
            latest = time[source[edge]] + weight[edge]
            edge += 1
        else:
            latest = observed
        while edge < end:
            candidate = time[source[edge]] + weight[edge]
            if candidate > latest:
                latest = candidate
            edge += 1
        time.append(latest)
    return np.array(time, dtype=np.int64)
