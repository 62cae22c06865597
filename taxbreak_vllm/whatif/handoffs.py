"""Threads that wait for other threads: one is silent while another does its work, and goes on when that is done.

In: points of the host. Out: `Handoffs`: which point waits for which, and for how long after it.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from taxbreak_vllm.trace.intervals import Index, Int64
from taxbreak_vllm.whatif.points import Bursts, Points

_NEAR_NS = 1_000_000  # the other's work begins and ends so near to the silence, or nearer than a twentieth of it
_COVER = 0.7  # and takes at least so much of it


@dataclass(frozen=True, slots=True)
class Handoffs:
    """`waiting` follows `awaited` by `delay_ns`; both are places in Points."""

    awaited: Index
    waiting: Index
    delay_ns: Int64

    @classmethod
    def of(cls, points: Points, launching: set[int]) -> "Handoffs":
        """Find silences of a thread that hold bursts of another, from near their beginning to near their end.

        Only threads that launch work hand it to one another.
        """
        bursts = points.bursts
        found: list[tuple[int, int] | None] = []
        by_thread = {int(thread): np.flatnonzero(bursts.thread == thread) for thread in launching}
        if len(by_thread) > 1:
            for own in by_thread.values():
                for before, after in zip(own[:-1].tolist(), own[1:].tolist(), strict=True):
                    taken = _taken_over(bursts, by_thread, before, after)
                    if taken is not None:
                        first, last = taken
                        found.append((int(points.burst_end[before]), int(points.burst_start[first])))
                        found.append((int(points.burst_end[last]), int(points.burst_start[after])))
            found.extend(_begun_late(points, own) for own in by_thread.values())
        pairs = np.array([each for each in found if each is not None], dtype=np.intp).reshape(-1, 2)
        awaited, waiting = pairs[:, 0], pairs[:, 1]
        return cls(awaited, waiting, points.at_ns[waiting] - points.at_ns[awaited])

    def without(self, points: Points, threads: frozenset[int]) -> "Handoffs":
        """Leave out how these threads go on; how they began stays."""
        keep = ~np.isin(points.thread[self.waiting], list(threads)) | (points.previous[self.waiting] < 0)
        return Handoffs(self.awaited[keep], self.waiting[keep], self.delay_ns[keep])


def _begun_late(points: Points, own: NDArray[np.intp]) -> tuple[int, int] | None:
    """Return the burst of another thread that ended right before the first one of this thread began, and that one."""
    bursts, first = points.bursts, int(own[0])
    since_ns = bursts.start_ns[first] - bursts.end_ns
    near = np.flatnonzero((bursts.thread != bursts.thread[first]) & (since_ns >= 0) & (since_ns <= _NEAR_NS))
    if not len(near):
        return None
    return int(points.burst_end[near[np.argmin(since_ns[near])]]), int(points.burst_start[first])


def _taken_over(
    bursts: Bursts, by_thread: dict[int, NDArray[np.intp]], before: int, after: int
) -> tuple[int, int] | None:
    """Return the first and last burst of the thread that worked between two bursts of this one; None where none did."""
    silent_from, silent_to = int(bursts.end_ns[before]), int(bursts.start_ns[after])
    near_ns = max(_NEAR_NS, (silent_to - silent_from) // 20)
    best: tuple[int, int, int] | None = None
    for thread, rows in by_thread.items():
        if thread == int(bursts.thread[before]):
            continue
        first = int(np.searchsorted(bursts.start_ns[rows], silent_from, side="left"))
        last = int(np.searchsorted(bursts.end_ns[rows], silent_to, side="right")) - 1
        if first > last:
            continue
        begun_ns, done_ns = int(bursts.start_ns[rows[first]]), int(bursts.end_ns[rows[last]])
        if begun_ns - silent_from > near_ns or silent_to - done_ns > near_ns:
            continue
        inside = rows[first : last + 1]
        busy_ns = int((bursts.end_ns[inside] - bursts.start_ns[inside]).sum())
        if done_ns - begun_ns >= _COVER * (silent_to - silent_from) and (best is None or busy_ns > best[0]):
            best = busy_ns, int(rows[first]), int(rows[last])
    return None if best is None else best[1:]
