"""StepKinds of steps and how long the plain ones of each take: a step in, its kind's counters and latest times out.

A kind is a phase, a power-of-two number of tokens and a graph mode. Its object is looked up once a step and holds all
that is counted there: what runs on every step of a serving process is a few integer operations, and nothing grows.
"""

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from statistics import median_low

from taxbreak_vllm.model.step import STEP_BUCKETS_NS, GraphMode, Phase, StepHistogram
from taxbreak_vllm.serving.steps import GraphModes, ScheduledStep, classify, is_generation

NEVER = 2**62

_RING_SIZE = 64
_RING_MASK = _RING_SIZE - 1
_MAX_CACHED = 4096  # tokens; a step that only generates has about as many as requests, and vLLM bounds those lower


class _Times:
    """Counters of one phase and graph mode."""

    __slots__ = ("bucket_counts", "sum_ns")

    def __init__(self) -> None:
        self.bucket_counts = [0] * (len(STEP_BUCKETS_NS) + 1)
        self.sum_ns = 0


class PlainTimes:
    """How long the latest of a kind took; what it adds up in `times` is shared by all kinds of the same label."""

    __slots__ = ("num_added", "times", "times_ns")

    def __init__(self, times: _Times) -> None:
        self.times = times
        self.times_ns = [0] * _RING_SIZE
        self.num_added = 0

    def add(self, elapsed_ns: int, is_quiet: bool = True) -> None:
        """Count one that was not recorded; one beside which a recording was being stored is not compared with."""
        times = self.times
        times.bucket_counts[bisect_left(STEP_BUCKETS_NS, elapsed_ns)] += 1
        times.sum_ns += elapsed_ns
        if is_quiet:
            self.times_ns[self.num_added & _RING_MASK] = elapsed_ns
            self.num_added += 1

    def median(self) -> tuple[int | None, int]:
        """Return the median (ns) of the latest plain ones of this kind and how many it is taken over."""
        num_kept = min(self.num_added, _RING_SIZE)
        return (median_low(self.times_ns[:num_kept]), num_kept) if num_kept else (None, 0)


class StepKind(PlainTimes):
    """One kind of step: how many there were, when to look whether one is to be recorded, how long the plain ones took.

    `due` is the number of steps from which on the sampler is asked, `pick` the one it will record. `iterations` are the
    times from the starts of such steps to the starts of the next ones. One thread writes, except that any may set `due`
    to 0.
    """

    __slots__ = (
        "due",
        "graph_mode",
        "iterations",
        "name",
        "num_steps",
        "num_weighed",
        "phase",
        "pick",
        "size",
        "weight",
    )

    def __init__(
        self, phase: Phase, graph_mode: GraphMode, size: int, *, times: _Times, iteration_times: _Times
    ) -> None:
        super().__init__(times)
        self.iterations = PlainTimes(iteration_times)
        self.phase = phase
        self.graph_mode = graph_mode
        self.size = size
        self.name = f"{phase}/{graph_mode}/{size}"
        self.num_steps = 0
        self.due = 0
        self.pick = 0
        self.weight = 0
        self.num_weighed = 0


class StepKinds:
    """All kinds of one worker; their number is bounded by phases, graph modes and powers of two.

    One thread looks kinds up and adds to them; any other may read.
    """

    def __init__(self, graph_modes: GraphModes) -> None:
        self._graph_modes = graph_modes
        self._times_by_label: dict[tuple[Phase, GraphMode], _Times] = {}
        self._iterations_by_label: dict[tuple[Phase, GraphMode], _Times] = {}
        self._kind_by_label: dict[tuple[Phase, GraphMode, int], StepKind] = {}
        self._decode_by_tokens: dict[int, StepKind] = {}
        self._verify_by_tokens: dict[int, StepKind] = {}

    def __iter__(self) -> Iterator[StepKind]:
        return iter(list(self._kind_by_label.values()))

    def of(self, phase: Phase, num_tokens: int) -> StepKind:
        """Return the kind of a step."""
        label = (phase, self._graph_modes.of(phase, num_tokens), num_tokens.bit_length())
        kind = self._kind_by_label.get(label)
        if kind is None:
            kind = self._kind_by_label[label] = StepKind(
                *label,
                times=self._times_by_label.setdefault(label[:2], _Times()),
                iteration_times=self._iterations_by_label.setdefault(label[:2], _Times()),
            )
        return kind

    def of_step(self, scheduled: ScheduledStep) -> StepKind:
        """Return the kind of a step from its scheduler output, that of most by one look-up."""
        num_tokens, is_generated = scheduled.total_num_scheduled_tokens, is_generation(scheduled)
        if is_generated:
            cache = self._verify_by_tokens if scheduled.scheduled_spec_decode_tokens else self._decode_by_tokens
            try:
                return cache[num_tokens]
            except KeyError:
                pass
        kind = self.of(classify(scheduled).phase, num_tokens)
        if is_generated and num_tokens < _MAX_CACHED:
            cache[num_tokens] = kind
        return kind

    def num_steps(self) -> int:
        """Return how many steps began; for the thread that counts them."""
        return sum(kind.num_steps for kind in self._kind_by_label.values())

    def histograms(self) -> tuple[StepHistogram, ...]:
        """Return the steps counted so far; one being added meanwhile is in or out, never half counted."""
        return _histograms(self._times_by_label)

    def iteration_histograms(self) -> tuple[StepHistogram, ...]:
        """Return the same of their iterations."""
        return _histograms(self._iterations_by_label)


def _histograms(times_by_label: Mapping[tuple[Phase, GraphMode], _Times]) -> tuple[StepHistogram, ...]:
    return tuple(
        StepHistogram(
            phase=phase,
            graph_mode=graph_mode,
            num_steps=sum(counts),
            sum_ns=times.sum_ns,
            bucket_counts=counts,
        )
        for (phase, graph_mode), times in list(times_by_label.items())
        for counts in [tuple(times.bucket_counts)]
    )
