"""Measure a spilled trace part by part, as if it had been measured at once.

In: `SpilledEvents`. Out: each part, measured. Two passes over the parts: what the trace as a whole estimates (T_base,
T_sys, the dispatch of an op) is read in the first and used in the second, where each part is also told what the host
did between its last boundary before the part and the part's start (`Carry`).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from taxbreak_vllm.taxes.equations import FLOOR_PERCENTILE, Spans
from taxbreak_vllm.taxes.measured import Measured
from taxbreak_vllm.taxes.surroundings import Estimate, Surroundings
from taxbreak_vllm.trace.backend import Backend
from taxbreak_vllm.trace.dispatches import Activities, Dispatches, Host
from taxbreak_vllm.trace.events import Events
from taxbreak_vllm.trace.intervals import Int64, Partition
from taxbreak_vllm.trace.large.cuts import Parts
from taxbreak_vllm.trace.large.spill import SpilledEvents
from taxbreak_vllm.trace.parts import Part
from taxbreak_vllm.trace.survey import TraceSurvey
from taxbreak_vllm.trace.timeline import HostClass


@dataclass(frozen=True, slots=True)
class Estimates:
    """What a trace as a whole tells about its machine: T_base, T_sys, the CPU backend's dispatch of an op, in ns."""

    base_ns: int | None = None
    sys_ns: int | None = None
    free_dispatch_ns: int = 0


class Counted:
    """Values of any number as their distinct values and how often each came: durations in ns repeat themselves."""

    def __init__(self) -> None:
        self._values = np.empty(0, dtype=np.int64)
        self._counts = np.empty(0, dtype=np.int64)

    def add(self, values: Int64) -> None:
        """Count more of them."""
        new, counts = np.unique(values, return_counts=True)
        both, place = np.unique(np.concatenate((self._values, new)), return_inverse=True)
        self._counts = np.bincount(place, np.concatenate((self._counts, counts)), len(both)).astype(np.int64)
        self._values = both

    def median(self) -> int | None:
        """Return what `intervals.median` of all values is; None without any."""
        last = int(self._counts.sum()) - 1
        return None if last < 0 else (self._sorted(last // 2) + self._sorted((last + 1) // 2)) // 2

    def percentile(self, percent: float) -> int | None:
        """Return the value at a percentile, the lower one where it falls between two; None without any."""
        last = int(self._counts.sum()) - 1
        return None if last < 0 else self._sorted(int(np.floor(last * (percent / 100))))

    def _sorted(self, place: int) -> int:
        return int(self._values[np.searchsorted(np.cumsum(self._counts), place, side="right")])


@dataclass(frozen=True, slots=True)
class Carry:
    """Per thread, what passed between its last boundary before a part and the part's start (of `Spans`)."""

    py_ns: Int64
    dispatch_ns: Int64
    num_ops: Int64

    @classmethod
    def nothing(cls, num_threads: int) -> "Carry":
        """Begin a trace."""
        return cls(*(np.zeros(num_threads, dtype=np.int64) for _ in range(3)))


@dataclass(frozen=True, slots=True)
class PartOfTrace:
    """The `Surroundings` of one part: what a first pass read of all of them, and what the part before carried over."""

    part: Part
    survey: TraceSurvey
    backend: Backend
    estimates: Estimates
    carry: Carry
    is_live: bool = False

    def device(self, activities: Activities) -> int:
        return self.survey.device

    def t_base(self, here: Estimate) -> int | None:
        return self.estimates.base_ns

    def t_sys(self, here: Estimate) -> int | None:
        return self.estimates.sys_ns

    def free_dispatch(self, here: Estimate) -> int | None:
        return self.estimates.free_dispatch_ns

    def starts(self, host: Host, dispatches: Dispatches) -> Int64:
        """Place the starts of the part and of its steps on the threads known by then: boundaries of T_py, as keys."""
        return np.concatenate((self._step_starts(host), self._part_start(host)[self._is_known(self.part.start_ns)]))

    def pauses(self, host: Host) -> Sequence[tuple[int, int]]:
        return ()

    def completed(self, spans: Spans, host: Host, dispatches: Dispatches) -> Spans:
        """Add what was carried over to the launches that no boundary of the part's own precedes on their thread."""
        row = np.flatnonzero(dispatches.launch_ns >= self.part.start_ns)
        boundary = self._boundaries(host)
        until = dispatches.launch_key[row]
        if (
            not self.backend.has_launches
        ):  # ops that cross, as rounding to µs makes them, can reach back to the same boundary
            boundary = np.sort(np.concatenate((boundary, dispatches.return_key)))
        else:
            _, first = np.unique(dispatches.thread[row], return_index=True)
            row, until = row[first], until[first]
            root = dispatches.root[row]
            until[root >= 0] = host.root_start[root[root >= 0]]
        start = self._part_start(host)[dispatches.thread[row]]
        row = row[np.searchsorted(boundary, start, "left") == np.searchsorted(boundary, until, "right")]
        thread = dispatches.thread[row]
        t_py, t_dispatch, num_ops = spans.t_py.copy(), spans.t_dispatch.copy(), spans.num_ops.copy()
        t_py[row] += self.carry.py_ns[thread]
        if not self.backend.has_launches:
            t_dispatch[row] += self.carry.dispatch_ns[thread]
            num_ops[row] += self.carry.num_ops[thread]
        return Spans(t_py=t_py, t_dispatch=t_dispatch, num_ops=num_ops)

    def carried_on(self, host: Host, dispatches: Dispatches, partition: Partition) -> Carry:
        """Return what the next part is told."""
        end_ns = self.part.end_ns
        thread = np.arange(len(self.survey.known_from_ns), dtype=np.int32)
        end, start = host.key(thread, np.full(len(thread), end_ns)), self._part_start(host)
        known_from_ns = np.minimum(self.survey.known_from_ns, end_ns)
        boundary = np.sort(np.concatenate((self._boundaries(host), dispatches.return_key)))
        index = np.searchsorted(boundary, end, side="left") - 1
        last = np.append(boundary, -1)[index]
        goes_on = last < start  # no boundary in this part
        since = np.where(goes_on, np.maximum(start, host.key(thread, known_from_ns)), last)
        passed = partition.between(since, end)
        num_ops = np.searchsorted(host.op_start, end, "left") - np.searchsorted(host.op_start, since, "left")
        before = self.carry
        return Carry(
            py_ns=passed[HostClass.PYTHON] + np.where(goes_on, before.py_ns, 0),
            dispatch_ns=passed[HostClass.DISPATCH] + np.where(goes_on, before.dispatch_ns, 0),
            num_ops=num_ops + np.where(goes_on, before.num_ops, 0),
        )

    def _part_start(self, host: Host) -> Int64:
        thread = np.arange(len(self.survey.known_from_ns), dtype=np.int32)
        return host.key(thread, np.full(len(thread), self.part.start_ns))

    def _is_known(self, at_ns: int) -> NDArray[np.bool_]:
        return np.asarray(self.survey.known_from_ns < at_ns)

    def _step_starts(self, host: Host) -> Int64:
        windows = self.part.windows if self.survey.windows else (self.survey.whole,)
        start_ns = np.array([w.start_ns for w in windows if w.start_ns >= self.part.start_ns], dtype=np.int64)
        thread = np.arange(len(self.survey.known_from_ns), dtype=np.int32)
        threads, starts = np.repeat(thread, len(start_ns)), np.tile(start_ns, len(thread))
        return host.key(threads, starts)[starts >= self.survey.known_from_ns[threads]]

    def _boundaries(self, host: Host) -> Int64:
        """Return the boundaries of T_py that are no dispatch, as sorted keys."""
        if not self.backend.has_launches:
            return np.sort(self._step_starts(host))
        ends = host.call_end[(host.call_is_launch | host.call_is_blocking) & (host.call_dispatch < 0)]
        return np.sort(np.concatenate((host.root_end, ends, self._step_starts(host))))


def measure_parts(
    trace: SpilledEvents,
    survey: TraceSurvey,
    backend: Backend,
    sample: Callable[[Part, Surroundings], tuple[Int64, Int64, Int64]],
    measure: Callable[[Events, Surroundings], tuple[Measured, list[str]]],
) -> Iterator[tuple[Part, Measured, list[str]]]:
    """Measure one part after the other; `sample` gives what `estimate` wants."""
    carry = Carry.nothing(len(trace.head.threads))
    with Parts(trace, survey) as parts:
        estimates = estimate(sample(part, PartOfTrace(part, survey, backend, Estimates(), carry)) for part in parts)
        for part in parts:
            around = PartOfTrace(part, survey, backend, estimates, carry)
            measured, notes = measure(part.events, around)
            yield part, measured, notes
            carry = around.carried_on(measured.host, measured.dispatches, measured.partition)
            del measured  # two at once would be the peak of memory


def estimate(samples: Iterable[tuple[Int64, Int64, Int64]]) -> Estimates:
    """Estimate from each part's T_dispatch of native launches, latencies on idle streams, and ops of no compute."""
    native, latencies, free = Counted(), Counted(), Counted()
    for native_ns, latency_ns, free_ns in samples:
        native.add(native_ns)
        latencies.add(latency_ns[latency_ns > 0])
        free.add(free_ns)
    return Estimates(native.median(), latencies.percentile(FLOOR_PERCENTILE), free.median() or 0)
