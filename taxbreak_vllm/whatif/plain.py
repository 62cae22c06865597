"""What a change makes of the plain step, from a recording of one that the profiler slowed down on the CPU backend.

In: the recording and the change. Out: the plain step under the change, and within what interval. Recording
lengthens what the host does, op by op, and hardly what it computes. So what the step takes longer than the plain one is
taken out of the host's segments, from each by its number of ops. The interval also holds that only the cost known of an
op is taken out so, and what is left then is of the host's time, or of all time alike.
"""

from collections.abc import Callable
from dataclasses import dataclass

from taxbreak_vllm.model.calibration import USABLE
from taxbreak_vllm.model.whatif import Gate
from taxbreak_vllm.taxes.recording import MIN_PLAIN_STEPS, Recording
from taxbreak_vllm.whatif import on_host
from taxbreak_vllm.whatif.changes import HOST, Range, scale_host
from taxbreak_vllm.whatif.graph import Graph

DRIFT = 0.03  # by so much the plain steps of one server differ from one minute to the next (bench-whatif-pairs)

Changed = Callable[[Graph, Callable[[Range], float]], Graph]


@dataclass(frozen=True, slots=True)
class PlainStep:
    """A plain step as it is and under a change, ns."""

    plain_ns: int
    predicted_ns: int
    low_ns: int
    high_ns: int


def plain_step(recording: Recording, length: Callable[[Graph], float], changed: Changed) -> PlainStep | None:
    """Return what becomes of the plain step; None where its time is not known.

    `length` measures the step in a graph, `changed` applies the change at one end of its ranges.
    """
    plain_ns = _plain_ns(recording)
    if plain_ns is None:
        return None

    def without(op_cost_ns: int) -> Graph:
        return on_host.build(recording.measured, recording.shown_windows, op_cost_ns=op_cost_ns).graph

    known_ns = recording.op_cost_ns
    taken = without(known_ns)
    graphs = [taken, *_fitted(taken, plain_ns, length)]
    recorded, left = length(without(0)), length(taken)
    if left < recorded and plain_ns < left:
        graphs += _fitted(without(round(known_ns * (recorded - plain_ns) / (recorded - left))), plain_ns, length)
    graphs.reverse()
    found = [
        [plain_ns * length(changed(graph, end)) / length(graph) for graph in graphs] for end in (_low, _middle, _high)
    ]
    return PlainStep(
        plain_ns=plain_ns,
        predicted_ns=round(found[1][0]),
        low_ns=round(min(map(min, found)) * (1 - DRIFT)),
        high_ns=round(max(map(max, found)) * (1 + DRIFT)),
    )


def _fitted(graph: Graph, plain_ns: int, length: Callable[[Graph], float]) -> list[Graph]:
    """Return the graph with its host's time such that the step takes as long as plain; none where that cannot be."""
    whole, computing = length(graph), length(scale_host(graph, dict.fromkeys(HOST, 0.0)))
    if plain_ns <= computing or whole <= computing:
        return []
    return [scale_host(graph, dict.fromkeys(HOST, (plain_ns - computing) / (whole - computing)))]


def calibration_gate(recording: Recording) -> Gate | None:
    """Tell how far the recorded step, the profiler's known cost taken off, is from the plain one; None if not known."""
    residual = recording.breakdown.calibration.residual if recording.info else None
    if residual is None:
        return None
    off = 1 + residual
    return Gate(
        name="calibration",
        value=max(off, 1 / off if off > 0 else float("inf")) - 1,
        limit=USABLE - 1,
        reason="by how much the recorded step, less the profiler's known cost, is longer or shorter than the plain one",
    )


def _plain_ns(recording: Recording) -> int | None:
    """Return the median plain step, to the start of the next where the recorded one goes there."""
    info = recording.info
    if info is None or info.num_plain < MIN_PLAIN_STEPS or len(recording.windows) != 1:
        return None
    return info.plain_window_ns if recording.windows[0].next_ns is None else info.plain_iteration_ns


def _low(factor: Range) -> float:
    return factor.low


def _middle(factor: Range) -> float:
    return (factor.low + factor.high) / 2


def _high(factor: Range) -> float:
    return factor.high
