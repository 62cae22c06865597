"""The graph of a recording of the CPU backend, where ops compute on the thread that dispatches them.

In: a recording with everything measured, and its steps. Out: a `Model` like any other: the host's points, and each op's
compute as an activity. A thread does one thing after the other, so each node has one edge, from the one before it on
its thread: what the host did in between, by class, or after an activity its end. No call launches and none waits.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields, replace
from typing import Any, TypeVar

import numpy as np

from taxbreak_vllm.model.calibration import USABLE
from taxbreak_vllm.model.whatif import Gate
from taxbreak_vllm.taxes.measured import Measured
from taxbreak_vllm.taxes.recording import Recording
from taxbreak_vllm.trace.dispatches import Activities, Dispatches, Host
from taxbreak_vllm.trace.steps import StepWindow
from taxbreak_vllm.trace.timeline import HostClass
from taxbreak_vllm.whatif import build as launched
from taxbreak_vllm.whatif.changes import Change
from taxbreak_vllm.whatif.edges import Sources
from taxbreak_vllm.whatif.graph import EdgeKind, Edges, make_edges
from taxbreak_vllm.whatif.interval import Missed

# By so much nine of ten answers missed at most what was then measured (bench-whatif-pairs).
MISSED = Missed(of_step=0.05, of_change=0.125)

_Columns = TypeVar("_Columns", Activities, Dispatches)


def beyond(change: Change) -> str | None:
    """Say why a recording without a launch path tells nothing of a change; None where it does."""
    named = (
        ("--graph", change.full_graph, "no launches that a graph could replace"),
        ("--fuse", change.fused, "no launches that a fused kernel would save"),
        ("--floor-us", change.floor_ns is not None, "no launch latency"),
        ("--async", change.one_step_ahead, "no device that works while the host goes on"),
        ("--no-sync", change.no_sync, "no call that waits for a device"),
    )
    return next(
        (f"{option}: its ops compute on the host: there is {lack}" for option, asked, lack in named if asked), None
    )


def build(measured: Measured, windows: Sequence[StepWindow]) -> launched.Model:
    """Build the graph."""
    alone = launched.build(_without_launches(measured), windows)
    sources = replace(alone.sources, measured=measured)
    is_pinned = np.zeros(len(sources.points.at_ns) + len(measured.activities.row), dtype=bool)
    graph, _ = launched.ordered(sources, _edges(sources), is_pinned)
    return replace(
        alone, graph=graph, possible=graph.edges.chosen(np.zeros(len(graph.edges), dtype=bool)), sources=sources
    )


def gates(recording: Recording) -> Iterator[Gate]:
    """Tell how far a recorded step, the profiler's known cost taken off, is from the plain one, where that is known."""
    residual = recording.breakdown.calibration.residual if recording.info else None
    if residual is None:
        return
    off = 1 + residual
    yield Gate(
        name="calibration",
        value=max(off, 1 / off if off > 0 else float("inf")) - 1,
        limit=USABLE - 1,
        reason="by how much the recorded step, less the profiler's known cost, is longer or shorter than the plain one",
    )


def _edges(s: Sources) -> Edges:
    """From each instant of a thread to its next: points and the starts of activities."""
    points, activities, host = s.points, s.measured.activities, s.measured.host
    num_points = len(points.at_ns)
    thread = np.concatenate((points.thread, activities.stream.astype(np.int32)))
    at_ns = np.concatenate((points.at_ns, activities.start_ns))
    end_ns = np.concatenate((points.at_ns, activities.end_ns))
    rank = np.concatenate((points.rank, np.zeros(len(activities.row), dtype=np.int64)))
    is_activity = np.arange(len(at_ns)) >= num_points
    order = np.lexsort((np.arange(len(at_ns)), rank, is_activity, at_ns, thread))
    follows = np.flatnonzero(thread[order][1:] == thread[order][:-1])
    source, target = order[follows], order[follows + 1]
    since, until = host.key(thread[source], end_ns[source]), host.key(thread[target], at_ns[target])
    host_ns = s.measured.partition.between(since, until)
    fixed_ns = host_ns[HostClass.BLOCKED].copy()  # of an op whose compute, as rounded, overlaps that of another
    host_ns[HostClass.BLOCKED] = 0
    parts = (
        make_edges(
            source[rows],
            target[rows],
            EdgeKind.HOST,
            fixed_ns=fixed_ns[rows],
            host_ns=host_ns[:, rows],
            from_end=from_end,
        )
        for from_end in (False, True)
        for rows in (np.flatnonzero(is_activity[source] == from_end),)
    )
    first, second = parts
    return first.plus(second)


def _without_launches(measured: Measured) -> Measured:
    """Return it with the host alone."""
    host = replace(
        measured.host, **_emptied(measured.host, (f.name for f in fields(Host) if f.name.startswith("call_")))
    )
    return replace(
        measured, host=host, activities=_none_of(measured.activities), dispatches=_none_of(measured.dispatches)
    )


def _none_of(columns: _Columns) -> _Columns:
    return replace(columns, **_emptied(columns, (field.name for field in fields(columns))))


def _emptied(columns: Host | Activities | Dispatches, names: Iterable[str]) -> dict[str, Any]:
    return {name: getattr(columns, name)[:0] for name in names}
