"""StepKinds of steps and how long the plain ones of each take: a step in, its kind's counters and latest times out.

A kind is a phase, a power-of-two number of tokens and a graph mode. Its object is looked up once a step and holds all
that is counted there: what runs on every step of a serving process is a few integer operations, and nothing grows.
"""

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from statistics import median_low
from typing import NamedTuple

from taxbreak_vllm.model.step import PHASES, STEP_BUCKETS_NS, GraphMode, Phase, StepHistogram
from taxbreak_vllm.serving.steps import GraphModes, ScheduledStep, classify, is_generation, num_sampled

NEVER = 2**62

_RING_SIZE = 64
_RING_MASK = _RING_SIZE - 1
_NUM_BUCKETS = len(STEP_BUCKETS_NS) + 1
_MAX_CACHED = 4096  # tokens; a step that only generates has about as many as requests, and vLLM bounds those lower


class _Counted(NamedTuple):
    """The first `num` of a ring's times and all that were never in it, by bucket and summed."""

    num: int
    bucket_counts: tuple[int, ...]
    sum_ns: int


class PlainTimes:
    """How long plain ones of a kind took: the latest in a ring, all as counters, which a full ring is added to.

    One thread adds; any other may read.
    """

    __slots__ = ("_counted", "_num_added", "_ring_ns")

    def __init__(self) -> None:
        self._ring_ns = [0] * _RING_SIZE
        self._num_added = 0
        self._counted = _Counted(0, (0,) * _NUM_BUCKETS, 0)

    def add(self, elapsed_ns: int, is_quiet: bool = True) -> None:
        """Count one that was not recorded; one beside which a recording was being stored is not compared with."""
        if not is_quiet:
            self._counted = self._with([elapsed_ns], self._counted.num)
            return
        num_added = self._num_added
        self._ring_ns[num_added & _RING_MASK] = elapsed_ns
        self._num_added = num_added = num_added + 1
        if not num_added & _RING_MASK:
            self._counted = self._with(self._ring_ns, num_added)

    def median(self) -> tuple[int | None, int]:
        """Return the median (ns) of the latest plain ones of this kind and how many it is taken over."""
        num_kept = min(self._num_added, _RING_SIZE)
        return (median_low(self._ring_ns[:num_kept]), num_kept) if num_kept else (None, 0)

    def totals(self) -> _Counted:
        """Return all that were added; one being added meanwhile is in or out, never half counted."""
        while True:
            counted, num_added, ring_ns = self._counted, self._num_added, self._ring_ns[:]
            if counted is self._counted:  # and no place that was not counted yet has been written to again
                uncounted = [ring_ns[number & _RING_MASK] for number in range(counted.num, num_added)]
                return self._with(uncounted, num_added, counted)

    def _with(self, times_ns: Sequence[int], num: int, counted: _Counted | None = None) -> _Counted:
        """Return the counters with some more times, of the ring the first `num`."""
        counted = counted or self._counted
        bucket_counts, ordered, at = list(counted.bucket_counts), sorted(times_ns), 0
        while at < len(ordered):  # those of a kind are in few buckets, mostly in one
            bucket = bisect_left(STEP_BUCKETS_NS, ordered[at])
            is_last = bucket == len(STEP_BUCKETS_NS) or ordered[-1] <= STEP_BUCKETS_NS[bucket]
            end = len(ordered) if is_last else bisect_right(ordered, STEP_BUCKETS_NS[bucket])
            bucket_counts[bucket] += end - at
            at = end
        return _Counted(num, tuple(bucket_counts), counted.sum_ns + sum(ordered))


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
        "phase_index",
        "pick",
        "size",
        "weight",
    )

    def __init__(self, phase: Phase, graph_mode: GraphMode, size: int) -> None:
        super().__init__()
        self.iterations = PlainTimes()
        self.phase = phase
        self.phase_index = PHASES.index(phase)
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
        self._kind_by_label: dict[tuple[Phase, GraphMode, int], StepKind] = {}
        self._decode_by_tokens: dict[int, StepKind] = {}
        self._verify_by_tokens: dict[int, StepKind] = {}
        self._num_sampled = 0

    def __iter__(self) -> Iterator[StepKind]:
        return iter(list(self._kind_by_label.values()))

    def of(self, phase: Phase, num_tokens: int) -> StepKind:
        """Return the kind of a step."""
        label = (phase, self._graph_modes.of(phase, num_tokens), num_tokens.bit_length())
        kind = self._kind_by_label.get(label)
        if kind is None:
            kind = self._kind_by_label[label] = StepKind(*label)
        return kind

    def of_step(self, scheduled: ScheduledStep) -> StepKind:
        """Return the kind of a step from its scheduler output, that of most by one look-up."""
        num_tokens, is_generated = scheduled.total_num_scheduled_tokens, is_generation(scheduled)
        if is_generated:
            self._num_sampled += num_tokens
            cache = self._verify_by_tokens if scheduled.scheduled_spec_decode_tokens else self._decode_by_tokens
            try:
                return cache[num_tokens]
            except KeyError:
                pass
        else:
            self._num_sampled += num_sampled(scheduled)
        kind = self.of(classify(scheduled).phase, num_tokens)
        if is_generated and num_tokens < _MAX_CACHED:
            cache[num_tokens] = kind
        return kind

    def num_sampled(self) -> int | None:
        """Return how many tokens were sampled; None where some were drafts, of which it is not known here."""
        return None if any(kind.phase is Phase.VERIFY for kind in self) else self._num_sampled

    def num_steps(self) -> int:
        """Return how many steps began; for the thread that counts them."""
        return sum(kind.num_steps for kind in self._kind_by_label.values())

    def histograms(self) -> tuple[StepHistogram, ...]:
        """Return the steps counted so far, by phase and graph mode."""
        return _histograms((kind, kind) for kind in self)

    def iteration_histograms(self) -> tuple[StepHistogram, ...]:
        """Return the same of their iterations."""
        return _histograms((kind, kind.iterations) for kind in self)


def _histograms(times: Iterable[tuple[StepKind, PlainTimes]]) -> tuple[StepHistogram, ...]:
    totals: defaultdict[tuple[Phase, GraphMode], list[_Counted]] = defaultdict(list)
    for kind, own in times:
        totals[kind.phase, kind.graph_mode].append(own.totals())
    return tuple(
        StepHistogram(
            phase=phase,
            graph_mode=graph_mode,
            num_steps=sum(sum(each.bucket_counts) for each in parts),
            sum_ns=sum(each.sum_ns for each in parts),
            bucket_counts=tuple(map(sum, zip(*(each.bucket_counts for each in parts), strict=True))),
        )
        for (phase, graph_mode), parts in totals.items()
    )
