"""What a recording must pass before anything is predicted from it: each gate with its number.

That the constants reproduce what was observed proves little: a graph with wrong edges does that too. So the first point
of the host is delayed, and what does not follow is bound to nothing that was recorded.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from taxbreak_vllm.model.whatif import Gate
from taxbreak_vllm.trace.intervals import Int64
from taxbreak_vllm.trace.kernels import Family
from taxbreak_vllm.whatif.build import Model
from taxbreak_vllm.whatif.graph import Graph
from taxbreak_vllm.whatif.replay import replay

TRANSLATION = "translation"
_DELAY = 10  # the first point comes a tenth of the window later
_ROUNDING_NS = 1_000
_MIN_COLLECTIVES = 4  # of fewer the quickest may have waited too


def find_gates(model: Model, calibrated: Graph, by_constants: Int64) -> tuple[Gate, ...]:
    """Measure all gates of a recording, whose graph's constants alone give these times."""
    return tuple(_gates(model, calibrated, by_constants))


def _gates(model: Model, calibrated: Graph, by_constants: Int64) -> Iterator[Gate]:
    graph, found, measured = model.graph, model.unexplained, model.sources.measured
    window_ns = max(graph.window_ns, 1)
    yield Gate(
        name="reproduction",
        value=abs(_end(graph, by_constants) - _end(graph, graph.at_ns)) / window_ns,
        limit=0.01,
        reason="how far the recording's end is missed with the same few constants for all launches",
    )
    delay_ns = window_ns // _DELAY
    moved = replay(calibrated, first_later_ns=delay_ns) - graph.at_ns
    yield Gate(
        name=TRANSLATION,
        value=float(np.mean(moved[graph.is_activity] >= delay_ns - _ROUNDING_NS)),
        limit=0.99,
        is_least=True,
        reason="share of the device's work that comes later by as much as the host's first point does",
    )
    late_ns = int(found.late_ns[~found.is_contended].sum())
    yield Gate(
        name="unexplained",
        value=(late_ns + found.unseen_ns + model.sources.wakes.unexplained_ns) / window_ns,
        limit=0.05,
        reason="time by which work begins later, or threads wait longer, than anything recorded explains",
    )
    linked = measured.activities.dispatch[measured.activities.is_kernel] >= 0
    yield Gate(
        name="unlinked",
        value=1 - float(np.mean(linked)) if len(linked) else 1.0,
        limit=0.05,
        reason="share of kernels without the call that launched them",
    )
    yield Gate(
        name="contention",
        value=_held_by_others(model, calibrated) / window_ns,
        limit=0.01,
        reason="time by which host or end come later because work was held while another stream ran",
    )
    yield Gate(
        name="peers",
        value=_waited_for_peers(model) / window_ns,
        limit=0.01,
        reason="time of collectives beyond the quickest of their name: they wait for peers whose host is not recorded",
    )


def _end(graph: Graph, at_ns: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> int:
    return int((at_ns + graph.duration_ns).max())


def _held_by_others(model: Model, calibrated: Graph) -> int:
    """Return by how much some host point or the end comes earlier where no stream holds back another's work."""
    held = np.zeros(len(calibrated.at_ns), dtype=bool)
    held[calibrated.activity_node[model.unexplained.activity[model.unexplained.is_contended]]] = True
    if not held.any():
        return 0
    edges = calibrated.edges
    free = replace(edges, residual_ns=np.where(held[edges.target], np.minimum(edges.residual_ns, 0), edges.residual_ns))
    at_ns = replay(calibrated.with_edges(free))
    host_ns = (calibrated.at_ns - at_ns)[~calibrated.is_activity].max(initial=0)
    return max(int(host_ns), _end(calibrated, calibrated.at_ns) - _end(calibrated, at_ns))


def _waited_for_peers(model: Model) -> int:
    """Return how much longer collectives took than the quickest of their name; of very few, all they took."""
    m = model.sources.measured
    is_collective = np.array([kind.family is Family.COLLECTIVE for kind in m.kinds], dtype=bool)
    rows = np.flatnonzero(is_collective[m.kind]) if len(m.kinds) else np.empty(0, dtype=np.intp)
    if not len(rows):
        return 0
    name, length = m.activities.name[rows], (m.activities.end_ns - m.activities.start_ns)[rows]
    quickest = np.full(int(name.max()) + 1, np.iinfo(np.int64).max)
    np.minimum.at(quickest, name, length)
    quickest[np.bincount(name) < _MIN_COLLECTIVES] = 0
    return int((length - quickest[name]).sum())
