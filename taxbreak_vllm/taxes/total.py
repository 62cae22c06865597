"""Sum a trace as a whole, part after part.

In: the parts of a trace in the order of time, each measured. Out: what a Breakdown says of the whole: total, coverage,
devices and threads. The total is no sum of steps: device time of two parts may overlap, and a gap may span several.
"""

import dataclasses
from collections import Counter
from typing import Any

import numpy as np

from taxbreak_vllm.model.breakdown import Coverage, DeviceShare, StepBreakdown, ThreadShare
from taxbreak_vllm.model.evidence import Evidence
from taxbreak_vllm.taxes import equations
from taxbreak_vllm.taxes.add import merged_rows
from taxbreak_vllm.taxes.evidence import Losses
from taxbreak_vllm.taxes.figures import build, first_root
from taxbreak_vllm.taxes.measured import NONE, Basis, Measured
from taxbreak_vllm.taxes.sums import Sums, sum_by
from taxbreak_vllm.taxes.tiers import TIERS, shares
from taxbreak_vllm.trace.dispatches import Bool
from taxbreak_vllm.trace.intervals import Int64, union_by_group
from taxbreak_vllm.trace.parts import Part
from taxbreak_vllm.trace.steps import StepWindow
from taxbreak_vllm.trace.timeline import DeviceWindow, HostClass

_QUEUE = len(HostClass)


class Totals:
    """The running sums of a trace whose parts come in the order of time."""

    def __init__(self, whole: StepWindow, threads: tuple[tuple[str, str], ...]) -> None:
        self._whole = whole
        self._threads = threads
        self._thread = np.arange(len(threads), dtype=np.int32)
        self._host_ns = np.zeros((len(HostClass), len(threads)), dtype=np.int64)
        self._num_ops = np.zeros(len(threads), dtype=np.int64)
        self._first_root_ns = np.full(len(threads), NONE)
        self._launches = np.zeros(len(threads), dtype=np.int64)
        self._host_tax_ns = np.zeros(len(threads), dtype=np.int64)
        self._sums: Sums | None = None
        self._basis: Basis | None = None
        self._gaps = _Gaps(len(threads), whole.start_ns)
        self._losses: Losses | None = None
        self._devices: Counter[int] = Counter()
        self._device_ns: Counter[int] = Counter()
        self._counts: Counter[str] = Counter()
        self._tier_ns = np.zeros(len(TIERS), dtype=np.int64)

    def add(self, m: Measured, part: Part) -> None:
        """Add the part's own launches, activities and time."""
        a, d = m.activities, m.dispatches
        is_own, is_own_dispatch = part.owned(a, d)
        group, owner = np.where(is_own_dispatch, 0, -1), np.where(is_own, 0, -1)
        sums = Sums.of(m, group, owner, 1, a.start_ns, cover=np.zeros(len(a.row), dtype=np.intp))
        self._sums = sums if self._sums is None else _added(self._sums, sums)
        self._basis = m.basis
        self._add_host(m, part)
        self._gaps.add(m, part, is_own)
        self._launches += np.bincount(d.thread[is_own_dispatch], minlength=len(self._threads))
        host_tax_ns = m.taxes.host_tax_ns()
        if host_tax_ns is not None:
            self._host_tax_ns += sum_by(d.thread.astype(np.intp), host_tax_ns, len(self._threads), is_own_dispatch)
        self._add_devices(m, is_own)
        self._add_coverage(m, part, is_own, is_own_dispatch)

    def _add_host(self, m: Measured, part: Part) -> None:
        start = np.full(len(self._threads), part.start_ns)
        end = np.maximum(start, min(part.end_ns, self._whole.end_ns))
        begin, finish = m.host.key(self._thread, start), m.host.key(self._thread, end)
        self._host_ns += m.partition.between(begin, finish)
        self._num_ops += equations.ops_between(m.host, begin, finish)
        root_ns = first_root(m.host, self._thread, start, end)
        self._first_root_ns = np.where(self._first_root_ns == NONE, root_ns, self._first_root_ns)

    def _add_devices(self, m: Measured, is_own: Bool) -> None:
        a = m.activities
        ids, group = np.unique(a.device, return_inverse=True)
        active = union_by_group(group, a.start_ns, a.end_ns, len(ids), is_own)
        counts = np.bincount(group[is_own], minlength=len(ids))
        for device, count, active_ns in zip(ids.tolist(), counts.tolist(), active.tolist(), strict=True):
            self._devices[device] += count
            self._device_ns[device] += active_ns

    def _add_coverage(self, m: Measured, part: Part, is_own: Bool, is_own_dispatch: Bool) -> None:
        a, d = m.activities, m.dispatches
        is_kernel = a.is_kernel & is_own
        unanswered, lost = (
            np.where((at_ns >= part.start_ns) & (at_ns < part.end_ns), 0, -1)
            for at_ns in (m.host.unanswered_ns, m.host.lost_graph_ns)
        )
        losses = Losses.of(m, np.where(is_own_dispatch, 0, -1), np.where(is_own, 0, -1), unanswered, lost, 1)
        self._losses = losses if self._losses is None else self._losses.plus(losses)
        self._counts.update(
            activities=int(is_own.sum()),
            kernels=int(is_kernel.sum()),
            linked=int((is_kernel & (a.dispatch >= 0)).sum()),
            unlinked=int((is_kernel & (a.dispatch < 0)).sum()),
            launches=int(is_own_dispatch.sum()),
            kernel_launches=int((is_own_dispatch & (d.num_kernels > 0)).sum()),
            graph_launches=int((is_own_dispatch & d.is_graph).sum() + losses.lost_graphs[0]),
            launches_without_activity=int(losses.unanswered[0]),
            denied_ns=int(m.orchestration_ns[is_own_dispatch & m.is_denied].sum()),
        )
        np.add.at(self._tier_ns, m.tier[is_own_dispatch], m.orchestration_ns[is_own_dispatch])

    def evidence(self) -> Evidence:
        """Return what the trace as a whole stands on, as far as its columns tell."""
        assert self._losses is not None
        return self._losses.evidence(0, int(self._launches.sum()))

    def total(self) -> StepBreakdown:
        """Return the whole trace as one step."""
        assert self._sums is not None
        assert self._basis is not None
        assert self._losses is not None
        # The thread with most launches, of several the last seen first: as `timeline.main_thread` has it.
        busiest = len(self._launches) - 1 - int(self._launches[::-1].argmax()) if self._launches.any() else -1
        thread = busiest if busiest >= 0 else self._whole.thread
        one = slice(thread, thread + 1)
        device_end = np.maximum(self._sums.last_end_ns, self._whole.end_ns)
        length = device_end - self._whole.start_ns
        return build(
            [self._whole],
            self._sums,
            host_ns=self._host_ns[:, one],
            num_ops=self._num_ops[one],
            first_root_ns=self._first_root_ns[one],
            device=DeviceWindow.of(length, self._sums.active_ns, self._gaps.until(int(device_end[0]))[:, None]),
            device_end_ns=device_end,
            losses=self._losses,
            basis=self._basis,
        )[0][0]

    def coverage(self, num_events: int, num_dropped: int) -> Coverage:
        """Return what was read, joined and lost."""
        return Coverage(**self._counts, events=num_events, dropped_events=num_dropped, replay=shares(self._tier_ns))

    def devices(self) -> tuple[DeviceShare, ...]:
        """List all devices with the union of their activity."""
        return tuple(
            DeviceShare(device=device, activities=self._devices[device], active_ns=self._device_ns[device])
            for device in sorted(self._devices)
        )

    def threads(self) -> tuple[ThreadShare, ...]:
        """List the host threads that launched, busiest first."""
        order = np.argsort(-self._launches, kind="stable")
        return tuple(
            ThreadShare(
                thread=":".join(self._threads[i]),
                launches=int(self._launches[i]),
                host_tax_ns=int(self._host_tax_ns[i]),
            )
            for i in order.tolist()
            if self._launches[i]
        )


class _Gaps:
    """The gaps between stretches of the shown device, each counted with the part whose activity ended it."""

    def __init__(self, num_threads: int, start_ns: int) -> None:
        self._start_ns = start_ns
        self._sum_ns = np.zeros(len(HostClass) + 1, dtype=np.int64)
        self._last_ns = NONE
        self._last_gap_ns = np.zeros_like(self._sum_ns)
        # Until when the device was busy, as far as the next part will not know by itself, and what each thread has
        # done from then to the part's end.
        self._busy_until_ns = NONE
        self._since_ns = np.zeros((len(HostClass), num_threads), dtype=np.int64)
        self._thread = np.arange(num_threads, dtype=np.int32)

    def add(self, m: Measured, part: Part, is_own: Bool) -> None:
        """Add the gaps that the part's own activities end."""
        line = m.timeline
        if len(line.opener) and is_own[line.opener[0]] and self._busy_until_ns > self._start_ns:
            self._count(int(line.busy.start_ns[0]), self._gap_before_part(m, part))
        # A stretch without length at the very start of a trace makes no gap begin.
        counts = is_own[line.opener[1:]] & (line.busy.end_ns[:-1] > self._start_ns)
        if counts.any():
            gaps_ns = line.gaps_ns[:, counts]
            self._sum_ns += gaps_ns[:, :-1].sum(axis=1)
            self._count(int(line.busy.start_ns[1:][counts][-1]), gaps_ns[:, -1])
        self._move_on(m, part)

    def until(self, end_ns: int) -> Int64:
        """Return the gaps before `end_ns` by HostClass and, last, queue, int64[7]; after it there is one at most."""
        return self._sum_ns - self._last_gap_ns if self._last_ns >= end_ns else self._sum_ns

    def _count(self, stretch_ns: int, gap_ns: Int64) -> None:
        self._sum_ns = self._sum_ns + gap_ns
        if stretch_ns >= self._last_ns:
            self._last_ns, self._last_gap_ns = stretch_ns, gap_ns

    def _gap_before_part(self, m: Measured, part: Part) -> Int64:
        """Cut the gap before the part's first stretch, which began before the part."""
        gap_end_ns = int(m.timeline.busy.start_ns[0])
        dispatch = m.activities.dispatch[m.timeline.opener[0]]
        parts = np.zeros(len(HostClass) + 1, dtype=np.int64)
        if dispatch >= 0:
            thread = m.dispatches.thread[dispatch : dispatch + 1]
            launched = np.minimum(m.dispatches.launch_ns[dispatch : dispatch + 1], gap_end_ns)
            here = m.partition.between(m.host.key(thread, np.array([part.start_ns])), m.host.key(thread, launched))
            parts[:_QUEUE] = self._since_ns[:, thread[0]] + here[:, 0]
        parts[_QUEUE] = gap_end_ns - self._busy_until_ns - parts.sum()
        return parts

    def _move_on(self, m: Measured, part: Part) -> None:
        a = m.activities
        ended = a.end_ns[(a.device == m.device) & (a.end_ns < part.end_ns)]
        busy_until_ns = max(self._busy_until_ns, int(ended.max(initial=NONE)))
        since_ns = max(busy_until_ns, part.start_ns)
        begin, end = (np.full(len(self._thread), at_ns) for at_ns in (since_ns, part.end_ns))
        here = m.partition.between(m.host.key(self._thread, begin), m.host.key(self._thread, end))
        self._since_ns = here if busy_until_ns >= part.start_ns else self._since_ns + here
        self._busy_until_ns = busy_until_ns


def _added(a: Sums, b: Sums) -> Sums:
    """Add the sums of two parts of a trace, which are of one group each."""
    names = np.union1d(a.kernel_cells, b.kernel_cells)
    special = ("taxes", "last_end_ns", "unique_kernels", "kernel_cells", "top")
    plain: dict[str, Any] = {
        field.name: _plus(getattr(a, field.name), getattr(b, field.name))
        for field in dataclasses.fields(Sums)
        if field.name not in special
    }
    return Sums(
        **plain,
        taxes=a.taxes.plus(b.taxes),
        last_end_ns=np.maximum(a.last_end_ns, b.last_end_ns),
        unique_kernels=np.array([len(names)]),
        kernel_cells=names,
        top=[merged_rows([*a.top[0], *b.top[0]])],
    )


def _plus(a: Int64 | None, b: Int64 | None) -> Int64 | None:
    return None if a is None or b is None else a + b
