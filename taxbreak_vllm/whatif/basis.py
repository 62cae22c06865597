"""The graph of a recording, its gates and bounds: worked out once for all that is asked of it, when it is asked."""

from dataclasses import replace
from functools import cached_property

from taxbreak_vllm.model.step import Phase
from taxbreak_vllm.model.whatif import Gate
from taxbreak_vllm.taxes.recording import Recording
from taxbreak_vllm.trace.intervals import Int64
from taxbreak_vllm.trace.kernels import Family
from taxbreak_vllm.whatif import changes, on_host
from taxbreak_vllm.whatif.build import Model, build, with_waits
from taxbreak_vllm.whatif.changes import HOST, RefusedError
from taxbreak_vllm.whatif.gates import find_gates
from taxbreak_vllm.whatif.graph import Graph
from taxbreak_vllm.whatif.interval import Missed, Variant, model_error
from taxbreak_vllm.whatif.plain import Plain, find_plain
from taxbreak_vllm.whatif.replay import replay
from taxbreak_vllm.whatif.spans import Spans, means, means_at, step_spans


class Basis:
    """What every change to a recording starts from."""

    def __init__(self, recording: Recording, *, dilation: float | None = None) -> None:
        """`dilation`: recorded steps / plain ones, for where the recording itself does not tell."""
        self.recording = recording
        self.dilation = dilation
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
        found = find_gates(self.model, self.calibrated, self.by_constants)
        return (*found, *on_host.gates(self.recording)) if self.is_on_host else found

    @cached_property
    def missed(self) -> Missed:
        """By how much an answer may be off beyond what its variants and ranges tell."""
        missed = on_host.MISSED if self.is_on_host else Missed(of_step=0.0)
        return replace(missed, of_step=model_error(self.gates) + missed.of_step)

    @cached_property
    def phases(self) -> list[Phase | None]:
        """What is predicted: the whole recording, then the steps of each phase."""
        return [phase for phase, _ in self._rows]

    @cached_property
    def groups(self) -> list[Spans]:
        """From which to which node each of `phases` goes."""
        return [spans for _, spans in self._rows]

    @cached_property
    def _rows(self) -> list[tuple[Phase | None, Spans]]:
        return step_spans(self.recording, self.model)

    @cached_property
    def observed_ns(self) -> list[float]:
        """What each of `phases` took."""
        return means_at(self.calibrated, self.calibrated.at_ns, self.groups)

    @cached_property
    def by_constants(self) -> Int64:
        """When all happens with constants alone."""
        return replay(self.model.graph)

    @cached_property
    def variants(self) -> list[Variant]:
        """The graph calibrated and with constants alone, both also with what it may wait for.

        The third has what is doubtful at its least. Calibrated also with loops that ask at the worst time, and with
        each set of waits that fits the recording as well.
        """
        graph, possible = self.model.graph, self.model.possible
        found: list[Variant] = [
            (self.calibrated, None),
            (graph, means_at(graph, self.by_constants, self.groups)),
            (self.calibrated.least(), None),
        ]
        if len(possible):
            more = graph.with_edges(graph.edges.plus(possible))
            found += [(more.calibrated(), None), (more, means(more, self.groups))]
        if len(self.model.slowest):
            found.append((self.calibrated.with_edges(self.calibrated.edges.plus(self.model.slowest)), None))
        return found + [(with_waits(self.model, rival).calibrated(), None) for rival in self.model.rivals]

    @cached_property
    def bounds(self) -> tuple[list[float], list[float]]:
        """What each of `phases` takes without the host's work, and without kernels."""
        none: dict[Family, float] = {family: 0.0 for family in Family if family is not Family.COLLECTIVE}
        host_free = changes.scale_host(self.calibrated, dict.fromkeys(HOST, 0.0))
        kernels_free = changes.scale_kernels(self.calibrated, self.model.sources, none)
        return means(host_free, self.groups), means(kernels_free, self.groups)

    @property
    def plain(self) -> Plain:
        """The plain step behind a recorded one; raises RefusedError where none is known."""
        if isinstance(self._plain, RefusedError):
            raise self._plain
        return self._plain

    @cached_property
    def _plain(self) -> Plain | RefusedError:
        try:
            return find_plain(
                self.recording,
                self.model,
                self.variants,
                self.groups[1:] or self.groups,
                self.observed_ns[1:] or self.observed_ns,
                dilation=self.dilation,
            )
        except RefusedError as refusal:
            return refusal
