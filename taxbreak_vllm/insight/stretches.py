"""The stretches of host threads that ΔFT, and ΔFT that the device waited for, are made of.

In: a recording and the steps chosen of it. Out: `Stretches`, whose Python and dispatch time sums to those figures of
the breakdown.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from taxbreak_vllm.model.breakdown import StepBreakdown
from taxbreak_vllm.taxes import equations
from taxbreak_vllm.taxes.iteration import iteration_gaps
from taxbreak_vllm.taxes.measured import group_by_time
from taxbreak_vllm.taxes.recording import Recording
from taxbreak_vllm.trace.intervals import Index, Int64
from taxbreak_vllm.trace.steps import StepWindow, engine_spans
from taxbreak_vllm.trace.timeline import main_thread

BETWEEN = "between steps"


@dataclass(frozen=True, slots=True)
class Stretches:
    """Stretches [start, end) of host threads, as keys: the label each stands under, and what it is a share of."""

    start: Int64
    end: Int64
    label: Index
    share: Index

    @classmethod
    def of(cls, start: Int64, end: Int64, label: Index, share: Index | None = None) -> "Stretches":
        whole = np.zeros(len(start), dtype=np.intp) if share is None else share
        return cls(start, np.maximum(start, end), label.astype(np.intp), whole)

    def without(self, spans: Sequence[tuple[int, int]]) -> "Stretches":
        """Cut out spans, which are keys."""
        for begin, finish in spans:
            goes_on = np.flatnonzero((self.start < finish) & (self.end > finish))
            after = Stretches(
                np.full(len(goes_on), finish), self.end[goes_on], self.label[goes_on], self.share[goes_on]
            )
            until = self.end.clip(self.start, np.maximum(self.start, begin))
            end = np.where(self.start >= finish, self.end, until)
            start = np.where((self.start >= begin) & (self.start < finish), end, self.start)
            self = joined((Stretches(start, end, self.label, self.share), after))
        return self

    def cut(self, cuts: Int64) -> "Stretches":
        """Cut at instants, which come sorted."""
        first = np.searchsorted(cuts, self.start, side="right")
        num = np.maximum(np.searchsorted(cuts, self.end, side="left") - first, 0) + 1
        own = np.repeat(np.arange(len(num)), num)
        offset = np.arange(len(own)) - np.repeat(np.cumsum(num) - num, num)
        start, end = self.start[own], self.end[own]
        inner = offset > 0
        start[inner] = cuts[(first[own] + offset - 1)[inner]]
        outer = offset < num[own] - 1
        end[outer] = cuts[(first[own] + offset)[outer]]
        return Stretches(start, end, self.label[own], self.share[own])


def joined(parts: Sequence[Stretches]) -> Stretches:
    names = ("start", "end", "label", "share")
    return Stretches(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


@dataclass(frozen=True, slots=True)
class ChosenSteps:
    """The steps that are chosen, or the whole trace (`is_whole`), in the words of a measurement.

    `label` indexes `labels`, for each window and, last, for what lies in none.
    """

    recording: Recording
    windows: tuple[StepWindow, ...]
    breakdowns: tuple[StepBreakdown, ...]
    numbers: tuple[int, ...]
    is_whole: bool
    labels: tuple[str, ...]
    label: Index

    @classmethod
    def of(cls, recording: Recording, numbers: Sequence[int] | None) -> "ChosenSteps":
        steps = recording.breakdown.steps
        of_step = [str(step.phase or "steps") for step in steps] if recording.windows else ["the whole trace"]
        labels = (*dict.fromkeys(of_step), BETWEEN)
        return cls(
            recording,
            recording.shown_windows,
            steps,
            tuple(range(len(steps)) if numbers is None else numbers),
            numbers is None,
            labels,
            np.array([labels.index(word) for word in (*of_step, BETWEEN)], dtype=np.intp),
        )

    @property
    def whole_ns(self) -> tuple[int, int]:
        """The time from the first of them to the last."""
        windows = [self.recording.survey.whole] if self.is_whole else [self.windows[n] for n in self.numbers]
        return min(window.start_ns for window in windows), max(window.end_ns for window in windows)

    def step_of(self, at_ns: Int64) -> Index:
        if not self.recording.windows:
            return np.zeros(len(at_ns), dtype=np.intp)
        return group_by_time(self.windows, at_ns)

    def delta_ft(self) -> tuple[Stretches, Int64]:
        """Return the stretches that hold ΔFT, and how much each share has of it."""
        return self._launched() if self.recording.backend.has_launches else self._computed()

    def _launched(self) -> tuple[Stretches, Int64]:
        """T_py and T_dispatch of each dispatch; its ΔFT is one share."""
        m = self.recording.measured
        d, step = m.dispatches, self.step_of(m.dispatches.launch_ns)
        rows = np.flatnonzero(self.is_whole | np.isin(step, self.numbers))
        edges = equations.span_edges(m.host, d, self.recording.around.starts(m.host, d))
        since = np.where(edges.is_first, edges.since, edges.root)
        start = np.concatenate((since[rows], edges.begin[rows]))
        end = np.concatenate((edges.root[rows], d.launch_key[rows]))
        share = np.tile(np.arange(len(rows)), 2)
        stretches = Stretches.of(start, end, np.tile(self.label[step[rows]], 2), share)
        amount_ns = m.taxes.delta_ft_ns
        assert amount_ns is not None
        return stretches.without(self.recording.around.pauses(m.host)), amount_ns[rows]

    def _computed(self) -> tuple[Stretches, Int64]:
        """All time of the main thread, where ops compute on the host: a share a step, or one for the whole."""
        m, total, whole = self.recording.measured, self.recording.breakdown.total, self.recording.survey.whole
        edges = np.array([[w.start_ns, w.end_ns] for w in self.windows], dtype=np.int64)
        if not self.is_whole:
            thread = self._threads().tolist()
            begin, end = (edges[:, i : i + 1] for i in (0, 1))
            found = [
                self._on(thread[n], begin[n], end[n], self.label[n], share).without(self._engine(n, thread[n]))
                for share, n in enumerate(self.numbers)
            ]
            return joined(found), np.array([self.breakdowns[n].taxes.delta_ft_ns for n in self.numbers])
        edges = edges.clip(whole.start_ns, whole.end_ns)
        launches = np.bincount(m.dispatches.thread) if len(m.dispatches) else np.zeros(0, dtype=np.int64)
        busiest = len(launches) - 1 - int(launches[::-1].argmax()) if launches.any() else whole.thread
        gap_start = np.concatenate(([whole.start_ns], edges[:, 1]))
        gap_end = np.concatenate((edges[:, 0], [whole.end_ns]))
        inside = self._on(busiest, edges[:, 0], edges[:, 1], self.label[:-1])
        outside = self._on(busiest, gap_start, gap_end, np.full(len(gap_end), self.label[-1]))
        return joined((inside, outside)), np.array([total.taxes.delta_ft_ns])

    def exposed(self) -> Stretches:
        """Return what the host did while the device waited for it."""
        m, breakdown = self.recording.measured, self.recording.breakdown
        gaps = m.timeline.host_gaps(m.activities, m.dispatches)
        begin, end = m.host.key(gaps.thread, gaps.start_ns), m.host.key(gaps.thread, gaps.end_ns)

        def within(start_ns: int, length_ns: int) -> slice:
            first, last = m.timeline.within(np.array([start_ns]), np.array([start_ns + length_ns]))
            return slice(int(first[0]), max(int(first[0]), int(last[0])))

        if self.is_whole:
            is_known = gaps.dispatch >= 0
            step = np.full(len(begin), -1, dtype=np.intp)
            step[is_known] = self.step_of(m.dispatches.launch_ns[gaps.dispatch[is_known]])
            own = within(self.recording.survey.whole.start_ns, breakdown.total.device.window_ns)
            return Stretches.of(begin[own], end[own], self.label[step[own]])
        thread = self._threads().tolist()
        found = []
        for n in self.numbers:
            window, step_breakdown = self.windows[n], self.breakdowns[n]
            if step_breakdown.iteration is None or window.next_ns is None:
                own = within(window.start_ns, step_breakdown.device.window_ns)
                found.append(Stretches.of(begin[own], end[own], np.full(own.stop - own.start, self.label[n])))
                continue
            starts, ends, _, on_thread = iteration_gaps(m, thread[n], window.start_ns, window.next_ns)
            label = np.full(len(starts), self.label[n])
            waits = Stretches.of(m.host.key(on_thread, starts), m.host.key(on_thread, ends), label)
            found.append(waits.without(self._engine(n, thread[n], until_ns=window.next_ns)))
        return joined(found)

    def _threads(self) -> NDArray[np.int32]:
        d = self.recording.measured.dispatches
        own = np.array([window.thread for window in self.windows], dtype=np.int32)
        return main_thread(d.thread, self.step_of(d.launch_ns), own)

    def _on(self, thread: int, start_ns: Int64, end_ns: Int64, label: Index | int, share: int = 0) -> Stretches:
        host = self.recording.measured.host
        threads = np.full(len(start_ns), thread, dtype=np.int32)
        of = np.broadcast_to(np.asarray(label, dtype=np.intp), len(start_ns))
        shares = np.full(len(start_ns), share, dtype=np.intp)
        return Stretches.of(host.key(threads, start_ns), host.key(threads, end_ns), of, shares)

    def _engine(self, number: int, thread: int, until_ns: int | None = None) -> list[tuple[int, int]]:
        """Return what of a step's window, and of its iteration beyond it, is the engine's, as keys."""
        host, window = self.recording.measured.host, self.windows[number]
        spans = engine_spans(self.recording.events, window)
        if until_ns is not None:
            spans.append((window.end_ns, until_ns))
        base = thread * host.stride_ns - host.origin_ns
        return [(base + start_ns, base + end_ns) for start_ns, end_ns in spans]
