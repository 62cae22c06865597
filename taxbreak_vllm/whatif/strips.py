"""A recording and what is predicted of it, drawn on one axis of time.

In: a graph with the times of its nodes, as observed and as replayed. Out: `Replayed`: for each of both a strip of the
host's thread by class and one of the device, in at most `MAX_INTERVALS` intervals.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from taxbreak_vllm.model.whatif import Replayed, Strip
from taxbreak_vllm.trace.intervals import Int64
from taxbreak_vllm.trace.timeline import HostClass
from taxbreak_vllm.whatif.build import Model
from taxbreak_vllm.whatif.graph import EdgeKind, Graph

MAX_INTERVALS = 500  # of a strip: about two of a screen's pixels each

_HOST = tuple(cls.name.lower() for cls in HostClass)
_DEVICE = ("active",)


@dataclass(frozen=True, slots=True)
class _Intervals:
    """Disjoint intervals by start, and the kind of each."""

    start_ns: Int64
    end_ns: Int64
    kind: NDArray[np.int64]


def replayed(model: Model, observed: Graph, predicted: Graph, at_ns: Int64) -> Replayed:
    """Draw a recording and its prediction, whose nodes happen `at_ns`, from the first instant of both."""
    both = ((observed, observed.at_ns), (predicted, at_ns))
    origin_ns = min(int(times.min()) for _, times in both)
    length_ns = max(int((times + graph.duration_ns).max()) for graph, times in both) - origin_ns
    before, after = ((_host(model, *one), _device(*one)) for one in both)

    def strips(host: _Intervals, device: _Intervals) -> tuple[Strip, Strip]:
        return (
            _strip("host", _HOST, host, origin_ns, length_ns),
            _strip("device", _DEVICE, device, origin_ns, length_ns),
        )

    return Replayed(length_ns=length_ns, observed=strips(*before), predicted=strips(*after))


def _host(model: Model, graph: Graph, at_ns: Int64) -> _Intervals:
    """What the steps' thread, else the busiest, did from point to point, class after class; what is left is waiting."""
    points, edges = model.sources.points, graph.edges
    busiest = np.bincount(points.thread).argmax()
    thread = points.thread[points.step_start[0]] if len(points.step_start) else busiest
    is_own = np.zeros(len(at_ns), dtype=bool)
    is_own[graph.point_node[points.thread == thread]] = True
    rows = np.flatnonzero((edges.kind == EdgeKind.HOST) & is_own[edges.target])
    start_ns = at_ns[edges.source[rows]]
    whole_ns = at_ns[edges.target[rows]] - start_ns
    own_ns = edges.host_ns[:, rows].copy()
    work_ns = own_ns.sum(axis=0)
    too_long = work_ns > whole_ns
    own_ns[:, too_long] = own_ns[:, too_long] * whole_ns[too_long] // work_ns[too_long]
    own_ns[HostClass.BLOCKED] += whole_ns - own_ns.sum(axis=0)
    end_ns = (start_ns + own_ns.cumsum(axis=0)).T.ravel()
    length_ns = own_ns.T.ravel()
    kind = np.tile(np.arange(len(HostClass)), len(rows))
    some = length_ns > 0
    return _Intervals((end_ns - length_ns)[some], end_ns[some], kind[some])


def _device(graph: Graph, at_ns: Int64) -> _Intervals:
    """When anything ran on the device."""
    rows = np.flatnonzero(graph.is_activity & (graph.duration_ns > 0))
    rows = rows[np.argsort(at_ns[rows], kind="stable")]
    start_ns, end_ns = at_ns[rows], np.maximum.accumulate(at_ns[rows] + graph.duration_ns[rows])
    opens = np.ones(len(rows), dtype=bool)
    opens[1:] = start_ns[1:] > end_ns[:-1]
    first = np.flatnonzero(opens)
    last = np.append(first[1:], len(rows))[: len(first)] - 1
    return _Intervals(start_ns[first], end_ns[last], np.zeros(len(first), dtype=np.int64))


def _strip(title: str, kinds: tuple[str, ...], found: _Intervals, origin_ns: int, length_ns: int) -> Strip:
    found = _Intervals(found.start_ns - origin_ns, found.end_ns - origin_ns, found.kind)
    if len(found.kind) > MAX_INTERVALS:
        found = _coarse(found, len(kinds), length_ns)
    return Strip(
        title=title,
        kinds=kinds,
        start_ns=tuple(found.start_ns.tolist()),
        length_ns=tuple((found.end_ns - found.start_ns).tolist()),
        kind=tuple(found.kind.tolist()),
    )


def _coarse(found: _Intervals, num_kinds: int, length_ns: int) -> _Intervals:
    """Give each of as many stretches to the kind that is furthest behind its share: what each has in all stays."""
    bounds = np.linspace(0, length_ns, MAX_INTERVALS + 1)
    share_ns = np.array([_between(found, kind, bounds) for kind in range(num_kinds)])
    share_ns = np.vstack((share_ns, np.diff(bounds) - share_ns.sum(axis=0)))  # the last: nothing
    owed_ns = np.zeros(num_kinds + 1)
    chosen = np.empty(MAX_INTERVALS, dtype=np.int64)
    for number, width_ns in enumerate(np.diff(bounds).tolist()):
        owed_ns += share_ns[:, number]
        chosen[number] = owed_ns.argmax()
        owed_ns[chosen[number]] -= width_ns
    first = np.flatnonzero(np.diff(chosen, prepend=-1))
    edge_ns = np.rint(bounds).astype(np.int64)
    end_ns = edge_ns[np.append(first[1:], MAX_INTERVALS)]
    some = chosen[first] < num_kinds
    return _Intervals(edge_ns[first][some], end_ns[some], chosen[first][some])


def _between(found: _Intervals, kind: int, bounds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how much of each stretch between two bounds a kind takes."""
    rows = found.kind == kind
    if not rows.any():
        return np.zeros(len(bounds) - 1)
    ends_ns = np.column_stack((found.start_ns[rows], found.end_ns[rows])).ravel()
    lengths_ns = found.end_ns[rows] - found.start_ns[rows]
    covered_ns = np.column_stack((np.cumsum(lengths_ns) - lengths_ns, np.cumsum(lengths_ns))).ravel()
    return np.diff(np.interp(bounds, ends_ns, covered_ns))
