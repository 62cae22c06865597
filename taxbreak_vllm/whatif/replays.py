"""The graph of a recording, its gates and bounds: worked out once for all that is asked of it, when it is asked."""

from collections.abc import Iterable
from functools import cached_property

from taxbreak_vllm.model.step import Phase
from taxbreak_vllm.model.whatif import Gate
from taxbreak_vllm.taxes.recording import Recording
from taxbreak_vllm.trace.intervals import Int64
from taxbreak_vllm.trace.kernels import Family
from taxbreak_vllm.whatif import changes, on_host
from taxbreak_vllm.whatif.build import Model, build
from taxbreak_vllm.whatif.changes import HOST
from taxbreak_vllm.whatif.gates import find_gates
from taxbreak_vllm.whatif.graph import Graph
from taxbreak_vllm.whatif.replay import replay
from taxbreak_vllm.whatif.spans import mean, step_spans


class Replays:
    """The graph of a recording and its gates, worked out once for all changes that are asked of it."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self.is_on_host = not recording.backend.has_launches

    @cached_property
    def model(self) -> Model:
        """The graph with constants alone."""
        builds = on_host.build if self.is_on_host else build
        return builds(self.recording.measured, self.recording.shown_windows)

    @cached_property
    def calibrated(self) -> Graph:
        """The graph that gives what was observed."""
        return self.model.graph.calibrated()

    @cached_property
    def gates(self) -> tuple[Gate, ...]:
        """What the recording must pass."""
        found = find_gates(self.model, self.calibrated)
        return (*found, *on_host.gates(self.recording)) if self.is_on_host else found

    @cached_property
    def error(self) -> float:
        """What share of a step an answer may be off by, beyond what its variants and ranges tell."""
        return _model_error(self.gates) + (on_host.MISSED_RATIO if self.is_on_host else 0.0)

    @cached_property
    def variants(self) -> list[tuple[Graph, Int64]]:
        """The graph calibrated and with constants alone, both also with what it may wait for, and when all happens.

        One has what is doubtful at its least.
        """
        graph, possible = self.model.graph, self.model.possible
        more = graph.with_edges(graph.edges.plus(possible))
        found = [(self.calibrated, graph.at_ns), (graph, replay(graph)), (self.calibrated.least(), graph.at_ns)]
        return found + ([(more.calibrated(), graph.at_ns), (more, replay(more))] if len(possible) else [])

    @cached_property
    def bounds(self) -> tuple[tuple[Graph, Int64], tuple[Graph, Int64]]:
        """The graph without the host's work, and without kernels."""
        none: dict[Family, float] = {family: 0.0 for family in Family if family is not Family.COLLECTIVE}
        host_free = changes.scale_host(self.calibrated, dict.fromkeys(HOST, 0.0))
        kernels_free = changes.scale_kernels(self.calibrated, self.model.sources, none)
        return (host_free, replay(host_free)), (kernels_free, replay(kernels_free))

    def steps_ns(self, graph: Graph) -> dict[Phase | None, float]:
        """Return the mean of the steps of each phase, or of the whole recording where it names none."""
        rows, at_ns = step_spans(self.recording, self.model), replay(graph)
        return {phase: mean(graph, at_ns, spans) for phase, spans in rows[1:] or rows}


def _model_error(gates: Iterable[Gate]) -> float:
    """Return what share of the recording the graph gets wrong, or does not explain, as its gates found."""
    return sum(gate.value for gate in gates if gate.name in ("reproduction", "unexplained", "contention"))
