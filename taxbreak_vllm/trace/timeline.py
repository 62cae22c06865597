"""Partition the host's time and cut the device's idle time by cause (methodology sections 3 and 4).

In: the columns of `dispatches`. Out: prefix sums that answer any window exactly, so a step costs a few searches however
many steps there are.
"""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from taxbreak_vllm.trace.backend import Backend
from taxbreak_vllm.trace.dispatches import Activities, Dispatches, Host
from taxbreak_vllm.trace.intervals import Busy, Index, Int64, Partition


class HostClass(IntEnum):
    """Whose an instant of a host thread is; a higher class wins over those it lies in."""

    PYTHON = 0
    DISPATCH = 1
    LIBRARY = 2
    RUNTIME = 3
    LAUNCH = 4
    BLOCKED = 5


def class_name(cls: HostClass, backend: Backend) -> str:
    """Say whose such an instant is; where ops compute on the host, what blocks it is its own computing."""
    return backend.waits_as if cls is HostClass.BLOCKED else cls.name.lower()


def partition_host(host: Host, library: tuple[Int64, Int64] | None = None) -> Partition:
    """Give every instant of every host thread to one HostClass, on the shared time line.

    A launch call that waits for room in the device's queue is blocked until the room is there.
    `library` are the (start, end) keys of library front-ends inside ops (from `taxes`); without it, it is empty.
    """
    nothing = np.empty(0, dtype=np.int64)
    other = ~host.call_is_launch & ~host.call_is_blocking
    launch = host.call_is_launch & ~host.call_is_blocking
    blocked_start = np.concatenate((host.call_start[host.call_is_blocking], host.full_start))
    blocked_end = np.concatenate((host.call_end[host.call_is_blocking], host.full_end))
    return Partition.of(
        [
            (host.root_start, host.root_end),
            library or (nothing, nothing),
            (host.call_start[other], host.call_end[other]),
            (host.call_start[launch], host.call_end[launch]),
            (blocked_start, blocked_end),
        ]
    )


@dataclass(frozen=True, slots=True)
class DeviceWindow:
    """A device over windows, int64 columns with one row a window: busy + the parts of idle = window length.

    `exposed` holds the host-caused idle by HostClass, int64[6, windows] (BLOCKED is `blocked_ns`, so 0 there).
    """

    busy_ns: Int64
    host_ns: Int64
    blocked_ns: Int64
    queue_ns: Int64
    edge_ns: Int64
    exposed: NDArray[np.int64]

    @classmethod
    def of(cls, length_ns: Int64, busy_ns: Int64, gaps_ns: NDArray[np.int64]) -> "DeviceWindow":
        """Name the parts of windows; `gaps_ns` are the gaps inside each by HostClass and, last, queue."""
        blocked_ns, queue_ns = gaps_ns[HostClass.BLOCKED].copy(), gaps_ns[-1]
        exposed = gaps_ns[:-1].copy()
        exposed[HostClass.BLOCKED] = 0
        host_ns = exposed.sum(axis=0)
        edge_ns = length_ns - busy_ns - host_ns - blocked_ns - queue_ns
        return cls(busy_ns, host_ns, blocked_ns, queue_ns, edge_ns, exposed)


@dataclass(frozen=True, slots=True)
class HostGaps:
    """Gaps of a device and what of each was the host's, [start, end) on the thread that launched its end.

    `dispatch` (into Dispatches) ended the gap; where none is known (-1) nothing of it was the host's.
    """

    dispatch: Index
    thread: NDArray[np.int32]
    start_ns: Int64
    end_ns: Int64


@dataclass(frozen=True, slots=True)
class DeviceTimeline:
    """One device: its busy stretches, the activity (into Activities) that opens each, and the gaps between them."""

    busy: Busy
    opener: Index
    _gaps_before_ns: NDArray[np.int64]  # [host classes + queue, stretches]: all gaps before each stretch

    @classmethod
    def of(
        cls, device: int, activities: Activities, dispatches: Dispatches, host: Host, partition: Partition
    ) -> "DeviceTimeline":
        """Merge a device's activities and cut each gap between two stretches by cause.

        The gap before an activity is the host's until that activity's launch call began, split by what the launching
        thread did then; from there on it is queue. Before an activity without a launch event all of it is queue.
        """
        rows = np.flatnonzero(activities.device == device)
        busy = Busy.of(activities.start_ns[rows], activities.end_ns[rows])
        gaps = _host_gaps(busy, rows[busy.first], activities, dispatches)
        parts = np.zeros((len(HostClass) + 1, len(gaps.start_ns)), dtype=np.int64)
        begin, end = host.key(gaps.thread, gaps.start_ns), host.key(gaps.thread, gaps.end_ns)
        parts[:-1] = partition.between(begin, end)
        parts[-1] = (busy.start_ns[1:] - busy.end_ns[:-1]) - parts[:-1].sum(axis=0)
        before = np.zeros((len(parts), len(gaps.start_ns) + 1), dtype=np.int64)
        np.cumsum(parts, axis=1, out=before[:, 1:])
        return cls(busy=busy, opener=rows[busy.first], _gaps_before_ns=before)

    @property
    def gaps_ns(self) -> NDArray[np.int64]:
        """The gap before each stretch but the first, by HostClass and, last, queue: int64[7, stretches - 1]."""
        return np.diff(self._gaps_before_ns, axis=1)

    def host_gaps(self, activities: Activities, dispatches: Dispatches) -> HostGaps:
        """Return the gap before each stretch but the first."""
        return _host_gaps(self.busy, self.opener, activities, dispatches)

    def within(self, start_ns: Int64, end_ns: Int64) -> tuple[Index, Index]:
        """Return the first and the last stretch in each window [start, end); the last is before the first for none."""
        first = np.searchsorted(self.busy.end_ns, start_ns, side="right")
        return first, np.searchsorted(self.busy.start_ns, end_ns, side="left") - 1

    def windows(self, start_ns: Int64, end_ns: Int64) -> DeviceWindow:
        """Cut the device's time in each window [start, end)."""
        busy = self.busy
        first, last = self.within(start_ns, end_ns)
        length = end_ns - start_ns
        some = first <= last
        busy_ns = busy.until(end_ns) - busy.until(start_ns)
        lo, hi = np.where(some, first, 0), np.where(some, last, 0)
        inner = self._gaps_before_ns[:, hi] - self._gaps_before_ns[:, lo]
        inner[:, ~some] = 0
        return DeviceWindow.of(length, busy_ns, inner)


def _host_gaps(busy: Busy, opener: Index, activities: Activities, dispatches: Dispatches) -> HostGaps:
    start_ns, end_ns = busy.end_ns[:-1], busy.start_ns[1:]
    dispatch = activities.dispatch[opener[1:]]
    linked = dispatch >= 0
    thread = np.zeros(len(dispatch), dtype=np.int32)
    launched_ns = start_ns.copy()
    thread[linked] = dispatches.thread[dispatch[linked]]
    launched_ns[linked] = dispatches.launch_ns[dispatch[linked]]
    return HostGaps(dispatch, thread, start_ns, launched_ns.clip(start_ns, end_ns))


def main_device(activities: Activities) -> int:
    """Return the device with most activities, -1 where there is none."""
    if not len(activities.row):
        return -1
    devices, counts = np.unique(activities.device, return_counts=True)
    return int(devices[np.argmax(counts)])


def main_thread(thread: NDArray[np.int32], group: Index, fallback: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return for each group the thread with most of its launches; its `fallback` for a group without any."""
    main = fallback.copy()
    keep = group >= 0
    if keep.any():
        stride = int(thread.max()) + 1
        pairs, counts = np.unique(group[keep] * stride + thread[keep], return_counts=True)
        for pair, _ in sorted(zip(pairs.tolist(), counts.tolist(), strict=True), key=lambda item: item[1]):
            main[pair // stride] = pair % stride
    return main
