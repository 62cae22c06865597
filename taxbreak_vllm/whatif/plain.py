"""The plain step behind a recorded one: what the profiler added to the host is taken out again (methodology 5).

In: the graphs of a recorded step and how long plain steps like it take. Out: the same graphs without the profiler's
cost, in which the step takes as long as a plain one, and what a change makes of that. The profiler costs something for
each op and call that it records. What an op costs is calibrated in the process and a call costs what remains, or each
event costs alike, or the whole host is slowed alike: which of these, a recording does not say.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from taxbreak_vllm.taxes.recording import MIN_PLAIN_STEPS, Recording
from taxbreak_vllm.trace.events import EventKind
from taxbreak_vllm.trace.intervals import Int64
from taxbreak_vllm.whatif.apply import apply, middle
from taxbreak_vllm.whatif.build import Model
from taxbreak_vllm.whatif.changes import HOST, Change, RefusedError, scale_host
from taxbreak_vllm.whatif.edges import Sources
from taxbreak_vllm.whatif.graph import EdgeKind, Graph
from taxbreak_vllm.whatif.interval import Answer, Missed, Variant, interval
from taxbreak_vllm.whatif.points import PointKind
from taxbreak_vllm.whatif.spans import Spans, means

Lighten = Callable[[Graph], Graph]
Took = Callable[[Graph], float]

_MOST_NS = 1_000_000  # no event costs the profiler more
_ROUNDS = 30
_WITHIN = 0.01  # of the plain step: so near is met
_MET = 0.0005  # of the plain step: nearer is not looked for, as what is left is taken off the answer
_SLOWER = 1.1  # a plain step may be longer than the recorded one by chance, not by more


@dataclass(frozen=True, slots=True, eq=False)
class Plain:
    """The plain steps behind recorded ones: what each group of them takes, ns, and from which node to which it goes.

    `variants` are graphs without what the profiler added, whichever way it did, the likeliest way first.
    """

    took_ns: Sequence[float]
    groups: Sequence[Spans]
    variants: Sequence[Variant]


def find_plain(
    recording: Recording,
    model: Model,
    variants: Sequence[Variant],
    groups: Sequence[Spans],
    observed_ns: Sequence[float],
    *,
    dilation: float | None,
) -> Plain:
    """Find the plain steps behind a recording from its variants, the calibrated graph first.

    Where the recording does not tell how long they take, `dilation` does for all groups of its steps alike. Raises
    RefusedError where neither does, or the profiler does not explain them.
    """
    try:
        plain_ns, spans = _plain_step(recording, model)
        took_ns, groups = [float(plain_ns)], [spans]
    except RefusedError:
        if dilation is None:
            raise
        took_ns = [each / dilation for each in observed_ns]
    calibrated, info = variants[0][0], recording.info

    def took(graph: Graph) -> float:
        return sum(means(graph, groups))

    op_cost_ns = info.op_cost_ns if info is not None else None
    ways = lightened(calibrated, model.sources, took, plain_ns=sum(took_ns), op_cost_ns=op_cost_ns)
    if not recording.backend.has_launches:
        ways = ways[::-1]  # a forward's share of a plain step on the CPU is that of a host slowed alike
    known = ways[0]
    light = [way(calibrated) for way in ways]
    found: list[Variant] = [(graph, means(graph, groups)) for graph in light]
    for graph, before_ns in variants[1:]:
        found.append((known(graph), found[0][1] if before_ns is None else means(known(graph), groups)))
    return Plain(took_ns, groups, found)


def plain_steps(plain: Plain, model: Model, change: Change, *, missed: Missed) -> list[Answer]:
    """Answer of plain steps: the same change to graphs without what the profiler added."""
    light, before_ns = plain.variants[0]
    after_ns = means(apply(light, model, change, middle), plain.groups)
    assert before_ns is not None
    points = [was + after - before for was, after, before in zip(plain.took_ns, after_ns, before_ns, strict=True)]
    ends = interval(plain.variants, model, change, plain.groups, plain.took_ns, points)
    return [
        Answer(
            was_ns=round(was_ns),
            point_ns=round(point),
            low_ns=max(round(low - wide_ns), 0),
            high_ns=round(high + wide_ns),
        )
        for was_ns, point, (low, high) in zip(plain.took_ns, points, ends, strict=True)
        for wide_ns in (missed.ns(was_ns, point),)
    ]


def _plain_step(recording: Recording, model: Model) -> tuple[int, Spans]:
    """Return how long plain steps like the one recorded take, and from which node to which that is in its graph."""
    info, points, node = recording.info, model.sources.points, model.graph.point_node
    if info is None or len(recording.windows) != 1:
        raise RefusedError("only a recording that a server made of one step tells how long plain ones take")
    is_iteration = info.async_output or not recording.backend.has_launches
    is_iteration &= info.iteration_ns is not None and bool(info.plain_iteration_ns)
    plain_ns = info.plain_iteration_ns if is_iteration else info.plain_window_ns
    if not plain_ns or info.num_plain < MIN_PLAIN_STEPS:
        raise RefusedError(f"fewer than {MIN_PLAIN_STEPS} plain steps like this one had been timed")
    if is_iteration and points.next_step[0] < 0:
        raise RefusedError("the start of the step after was not recorded, so its iteration is not known")
    last = points.next_step if is_iteration else points.step_end
    return plain_ns, (node[points.step_start], node[last])


@dataclass(frozen=True, slots=True)
class Recorded:
    """How many ops and calls the profiler recorded on the way to each node of a graph."""

    ops: Int64
    calls: Int64

    @classmethod
    def of(cls, graph: Graph, sources: Sources) -> "Recorded":
        """Count the ops that begin between two instants of a thread, and each call at its end and its activity."""
        points, events, host = sources.points, sources.measured.events, sources.measured.host
        ops, calls = np.zeros(len(graph.at_ns), dtype=np.int64), np.zeros(len(graph.at_ns), dtype=np.int64)
        thread, at_ns, node = points.thread, points.at_ns, graph.point_node
        if sources.measured.backend.has_launches:
            calls[graph.point_node[np.flatnonzero(points.kind == PointKind.CALL_END)]] = 1
            calls[graph.activity_node[sources.streams.is_first]] = 1
        else:  # the thread itself computes
            activities = sources.measured.activities
            thread = np.concatenate((thread, activities.stream.astype(np.int32)))
            at_ns, node = np.concatenate((at_ns, activities.start_ns)), np.concatenate((node, graph.activity_node))
            order = np.argsort(host.key(thread, at_ns), kind="stable")
            thread, at_ns, node = thread[order], at_ns[order], node[order]
        rows = events.rows(EventKind.OP)
        at = np.searchsorted(
            host.key(thread, at_ns), host.key(events.thread[rows], events.start_ns[rows]), side="right"
        )
        inside = (at > 0) & (at < len(at_ns))
        inside[inside] = thread[at[inside]] == thread[at[inside] - 1]
        np.add.at(ops, node[at[inside]], 1)
        return cls(ops, calls)

    def without(self, graph: Graph, *, op_ns: float, call_ns: float) -> Graph:
        """Take so much for each out of what the host does, as far as it does anything."""
        edges = graph.edges
        cost_ns = (self.ops * op_ns + self.calls * call_ns)[edges.target]
        total_ns = edges.host_ns.sum(axis=0)
        is_host = ((edges.kind == EdgeKind.HOST) | (edges.kind == EdgeKind.LAUNCH)) & (total_ns > 0)
        left: NDArray[np.float64] = np.where(is_host, np.maximum(1 - cost_ns / np.maximum(total_ns, 1), 0), 1.0)
        return graph.with_edges(replace(edges, host_ns=np.rint(edges.host_ns * left).astype(np.int64)))


def lightened(
    graph: Graph, sources: Sources, took: Took, *, plain_ns: float, op_cost_ns: int | None
) -> tuple[Lighten, ...]:
    """Return ways to make a graph that of the plain step, the best known first.

    Raises RefusedError where no such cost explains the plain step.
    """
    recorded_ns = took(graph)
    if recorded_ns <= plain_ns * (1 + _WITHIN):
        if plain_ns > _SLOWER * recorded_ns:
            raise RefusedError(f"plain steps take {plain_ns / recorded_ns:.2f} times as long as this one was recorded")
        return (lambda each: each,)
    return tuple(_ways(Recorded.of(graph, sources), graph, took, plain_ns, op_cost_ns))


def _ways(recorded: Recorded, graph: Graph, took: Took, plain_ns: float, op_cost_ns: int | None) -> Iterator[Lighten]:
    def alike(cost_ns: float) -> Lighten:
        return lambda each: recorded.without(each, op_ns=cost_ns, call_ns=cost_ns)

    def calls(cost_ns: float) -> Lighten:
        return lambda each: recorded.without(each, op_ns=op_cost_ns or 0, call_ns=cost_ns)

    def ops(cost_ns: float) -> Lighten:
        return lambda each: recorded.without(each, op_ns=cost_ns, call_ns=0)

    def all_of_it(share: float) -> Lighten:
        return lambda each: scale_host(each, dict.fromkeys(HOST, 1 - share))

    over_ns = took(graph) - plain_ns
    least_ns = over_ns / max(int((recorded.ops + recorded.calls).sum()), 1)  # were each event on the step's path
    found: list[Lighten] = []
    if op_cost_ns:
        rest = calls if took(calls(0)(graph)) > plain_ns else ops
        found += _solved(rest, graph, took, plain_ns, least_ns, _MOST_NS)
    found += _solved(alike, graph, took, plain_ns, least_ns, _MOST_NS)
    found += _solved(all_of_it, graph, took, plain_ns, over_ns / (over_ns + plain_ns), 1.0)
    if not found:
        raise RefusedError("plain steps are quicker than this one would be without any host")
    yield from found


def _solved(
    way: Callable[[float], Lighten], graph: Graph, took: Took, plain_ns: float, least: float, most: float
) -> list[Lighten]:
    """Return the way with the least cost that makes the step as short as plain ones; none where none does.

    The step is monotone in it, and `least` is not above it: doubled until the step is short enough, then regula falsi.
    """

    def over_ns(cost: float) -> float:
        return took(way(cost)(graph)) - plain_ns

    low, low_ns, high = 0.0, over_ns(0.0), least
    while (high_ns := over_ns(high)) > 0:
        if high >= most:
            return [way(most)] if high_ns <= plain_ns * _WITHIN else []
        low, low_ns, high = high, high_ns, min(2 * high, most)
    kept_ns = high_ns  # halved while the other end alone moves (Illinois), else that would creep
    for _ in range(_ROUNDS):
        if -high_ns <= _MET * plain_ns or high - low <= most / 1_000_000:
            break
        between = low + (high - low) * low_ns / (low_ns - kept_ns)
        between_ns = over_ns(between)
        if between_ns > 0:
            low, low_ns, kept_ns = between, between_ns, kept_ns / 2
        else:
            high, high_ns, kept_ns, low_ns = between, between_ns, between_ns, low_ns / 2
    return [way(high)]
