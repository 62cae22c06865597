"""The steps of a recording on its graph: from which node to which each goes, and how long that is, as replayed.

In: a recording, its graph, when each node happens. Out: durations, ns; by how much they vary; whether they settle.
"""

from collections.abc import Iterable

import numpy as np

from taxbreak_vllm.model.step import Phase
from taxbreak_vllm.taxes.recording import Recording
from taxbreak_vllm.trace.intervals import Index, Int64
from taxbreak_vllm.whatif.build import Model
from taxbreak_vllm.whatif.graph import Graph
from taxbreak_vllm.whatif.replay import replay

_WIDENED = 1.645 * 1.4826  # of the steps' median absolute deviation: where 90 % of their medians lie
_SETTLED = 0.05  # by so much of a step may host and device differ

Spans = tuple[Index, Index]  # of nodes: first and last, -1 the end of everything


def step_spans(recording: Recording, model: Model) -> list[tuple[Phase | None, Spans]]:
    """Return from which to which node the whole recording goes, then the steps of each phase.

    A step goes to the start of the next; the last one, of which that is not known, is left out unless it is alone.
    """
    points, node = model.sources.points, model.graph.point_node
    whole = np.zeros(1, dtype=np.intp), np.full(1, -1, dtype=np.intp)
    found: list[tuple[Phase | None, Spans]] = [(None, whole)]
    windows = recording.windows
    if not windows:
        return found
    first, after = node[points.step_start], points.next_step
    last = np.where(after >= 0, node[np.maximum(after, 0)], -1)
    phases = [window.phase for window in windows]
    for phase in dict.fromkeys(phases):
        rows = np.array([each == phase for each in phases])
        known = rows & (last >= 0)
        chosen = known if known.any() else rows
        found.append((phase, (first[chosen], last[chosen])))
    return found


def means(graph: Graph, groups: Iterable[Spans]) -> list[float]:
    """Replay a graph and return the mean length of each group of steps."""
    return means_at(graph, replay(graph), groups)


def means_at(graph: Graph, at_ns: Int64, groups: Iterable[Spans]) -> list[float]:
    """Return the mean length of each group of steps, of a graph replayed so."""
    return [mean(graph, at_ns, spans) for spans in groups]


def mean(graph: Graph, at_ns: Int64, spans: Spans) -> float:
    """Return the mean length of some steps."""
    return float(lengths(graph, at_ns, spans).mean())


def lengths(graph: Graph, at_ns: Int64, spans: Spans) -> Int64:
    """Return how long each of some steps takes."""
    first, last = spans
    end_ns = int((at_ns + graph.duration_ns).max())
    return np.where(last >= 0, at_ns[last], end_ns) - at_ns[first]


def is_unsettled(model: Model, graph: Graph, at_ns: Int64) -> bool:
    """Tell whether the device's work of a recorded step ends by more or less after that before than the host's step.

    In a server that has settled both take as long; the one step between two others shows one of them at most.
    """
    points, streams = model.sources.points, model.sources.streams
    begun, after = int(points.step_start[0]), int(points.next_step[0])
    known = np.flatnonzero(streams.call >= 0)
    if after < 0 or not len(known):
        return False
    launch_ns = model.sources.calls.start_ns[streams.call[known]]
    before = known[launch_ns < points.at_ns[begun]]
    own = known[(launch_ns >= points.at_ns[begun]) & (launch_ns < points.at_ns[after])]
    if not len(before) or not len(own):
        return False
    end_ns = at_ns + graph.duration_ns
    device_ns = int(end_ns[graph.activity_node[own]].max() - end_ns[graph.activity_node[before]].max())
    host_ns = int(at_ns[graph.point_node[after]] - at_ns[graph.point_node[begun]])
    return abs(device_ns - host_ns) > _SETTLED * host_ns


def spread(graph: Graph, spans: Spans) -> float:
    """Return by how much the mean of so many steps may be off, as they vary; 0 of fewer than three."""
    took = lengths(graph, graph.at_ns, spans)
    if len(took) < 3:
        return 0.0
    deviation = np.sort(np.abs(took - np.sort(took)[len(took) // 2]))[len(took) // 2]
    return float(_WIDENED * deviation / np.sqrt(len(took)))
