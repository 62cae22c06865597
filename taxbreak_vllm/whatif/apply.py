"""A change applied to a graph, part by part: the model's own first, so that factors come on top of all that is left.

In: a graph and a `Change` whose factors are ranges. Out: the graph with everything changed, for an end of these ranges.
"""

from collections.abc import Callable, Mapping
from typing import TypeVar

from taxbreak_vllm.trace.intervals import median
from taxbreak_vllm.trace.kernels import Family
from taxbreak_vllm.trace.timeline import HostClass
from taxbreak_vllm.whatif import changes, launches
from taxbreak_vllm.whatif.build import Model
from taxbreak_vllm.whatif.changes import Change, Range
from taxbreak_vllm.whatif.compiled import compile_forward
from taxbreak_vllm.whatif.graph import Graph

End = Callable[[Range], float]
_K = TypeVar("_K", HostClass, Family)


def apply(graph: Graph, model: Model, change: Change, end: End) -> Graph:
    """Return a graph with everything changed; of each range the value that `end` picks."""
    sources = model.sources
    if change.followers is not None:
        graph = launches.fuse(graph, sources, change.followers.rows)
    if change.full_graph:
        own_ns = launches.node_gap_ns(sources)
        gap_ns = own_ns if own_ns is not None else int(end(Range(low=0, high=_usual_gap_ns(model))))
        graph = launches.capture(graph, sources, change.graph_ns, gap_ns=gap_ns)
    for name in change.no_sync:
        graph = changes.without_sync(graph, sources, name)
    if change.one_step_ahead:
        graph = changes.one_step_ahead(graph, sources)
    if change.floor_ns is not None:
        graph = changes.change_floor(graph, sources, change.floor_ns)
    if change.compiled is not None:
        graph = compile_forward(graph, sources, change.compiled, end)
    if change.like is not None:
        graph = changes.take_times(graph, change.like, end)
    if change.kernels:
        graph = changes.scale_kernels(graph, sources, _picked(change.kernels, end))
    return changes.scale_host(graph, _picked(change.host, end)) if change.host else graph


def at_both_ends(graph: Graph, model: Model, change: Change) -> list[Graph]:
    """Apply a change with the low ends of all its ranges and with the high ends; once where it has no range."""
    is_ranged = False

    def low(factor: Range) -> float:
        nonlocal is_ranged
        is_ranged |= factor.low != factor.high
        return factor.low

    found = [apply(graph, model, change, low)]
    if is_ranged:
        found.append(apply(graph, model, change, lambda factor: factor.high))
    return found


def middle(factor: Range) -> float:
    """Pick the middle of a range."""
    return (factor.low + factor.high) / 2


def _picked(ranges: Mapping[_K, Range], end: End) -> dict[_K, float]:
    return {key: end(factor) for key, factor in ranges.items()}


def _usual_gap_ns(model: Model) -> int:
    return max(median(model.sources.constants.gap_ns) or 0, 0)
