"""Integer interval arithmetic on numpy columns: unions, and sums over a partition of the time line.

Everything is int64 ns and half open, [start, end). All costs are one sort and linear passes.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from taxbreak_vllm.model.errors import TraceFormatError

Int64 = NDArray[np.int64]
Index = NDArray[np.intp]


def union_by_group(
    group: Int64, start_ns: Int64, end_ns: Int64, num_groups: int, counted: NDArray[np.bool_] | None = None
) -> Int64:
    """Return the length in ns of the union of the intervals of each group, int64[num_groups].

    Groups are 0…num_groups-1; rows with a negative group are left out. With `counted`, only what those rows add to the
    rows that began before them: such sums over disjoint sets of rows add up to the union.
    """
    keep = group >= 0
    if not keep.any():
        return np.zeros(num_groups, dtype=np.int64)
    group, start_ns, end_ns = group[keep], start_ns[keep], end_ns[keep]
    counted = None if counted is None else counted[keep]
    order = np.lexsort((start_ns, group))
    group, start_ns, end_ns = group[order], start_ns[order], end_ns[order]
    # The running end of each group, by giving every group a stretch of its own, as long as it is, on one time line.
    opens = np.flatnonzero(np.concatenate(([True], np.diff(group) != 0)))
    begins, lengths = start_ns[opens], np.maximum.reduceat(end_ns, opens) - start_ns[opens]
    if float(lengths.astype(np.float64).sum()) >= 2**62:
        raise TraceFormatError(f"the times of {len(opens)} groups of events, decades each, do not fit 64 bits")
    shift = np.repeat(np.cumsum(lengths) - lengths - begins, np.diff(np.append(opens, len(group))))
    start, end = start_ns + shift, end_ns + shift
    covered_to = np.maximum.accumulate(end)
    before = np.concatenate(([np.int64(-1)], covered_to[:-1]))
    new = end - np.minimum(np.maximum(start, before), end)
    if counted is not None:
        new[~counted[order]] = 0
    total = np.zeros(num_groups, dtype=np.int64)
    total[group[opens]] = np.add.reduceat(new, opens)
    return total


def median(values: Int64) -> int | None:
    """Return the median of what is not negative, cut to a whole number; None without any.

    np.median would load numpy.ma, which takes longer than most traces.
    """
    if not len(values):
        return None
    middle = (len(values) - 1) // 2, len(values) // 2
    low, high = np.partition(values, middle)[list(middle)].tolist()
    return int(low + high) // 2


@dataclass(frozen=True, slots=True)
class Busy:
    """The union of intervals as disjoint, sorted stretches; `first` is the row that opened each."""

    start_ns: Int64
    end_ns: Int64
    first: Index
    _before_ns: Int64

    @classmethod
    def of(cls, start_ns: Int64, end_ns: Int64) -> "Busy":
        """Merge intervals; touching ones become one stretch."""
        order = np.argsort(start_ns, kind="stable")
        start, end = start_ns[order], end_ns[order]
        covered_to = np.maximum.accumulate(end) if len(end) else end
        opens = np.concatenate(([True], start[1:] > covered_to[:-1])) if len(start) else np.empty(0, dtype=bool)
        first = np.flatnonzero(opens)
        last = np.concatenate((first[1:] - 1, [len(start) - 1])) if len(first) else first
        begins, ends = start[first], covered_to[last]
        before = np.concatenate(([np.int64(0)], np.cumsum(ends - begins)))
        return cls(start_ns=begins, end_ns=ends, first=order[first], _before_ns=before)

    def until(self, t_ns: Int64) -> Int64:
        """Return how much of the union lies before each t, int64 like t."""
        index = np.searchsorted(self.start_ns, t_ns, side="right")
        inside = np.zeros_like(t_ns)
        has = index > 0
        at = index[has] - 1
        inside[has] = np.minimum(t_ns[has], self.end_ns[at]) - self.end_ns[at]
        return self._before_ns[index] + inside


@dataclass(frozen=True, slots=True)
class Partition:
    """A time line where every instant belongs to exactly one class, the highest-numbered that covers it, else class 0.

    `until(t)` gives the ns of each class before t; differences of it are exact sums over any window.
    """

    edges_ns: Int64
    cls: NDArray[np.int8]
    # Per class, the positions of its stretches in `edges_ns` and their summed length before each (and after the last).
    # A dense table would hold every class's sum at every edge: 48 bytes an edge against 12.
    _stretches: tuple[NDArray[np.int32], ...]
    _sums_ns: tuple[Int64, ...]

    @classmethod
    def of(cls, covers: list[tuple[Int64, Int64]]) -> "Partition":
        """Build from the (start, end) columns that cover classes 1, 2, …, in rising priority; times must be >= 0."""
        num_classes = len(covers) + 1
        time = np.concatenate([part for cover in covers for part in cover])
        code = np.repeat(
            np.arange(1, num_classes, dtype=np.int8).repeat(2), [len(part) for cover in covers for part in cover]
        )
        step = np.repeat(
            np.tile(np.array([1, -1], dtype=np.int8), num_classes - 1),
            [len(part) for cover in covers for part in cover],
        )
        order = np.argsort(time, kind="stable")
        time, code, step = time[order], code[order], step[order]
        del order  # as long as all that stays
        winner = np.zeros(len(time), dtype=np.int8)
        for number in range(1, num_classes):
            covered = np.cumsum(np.where(code == number, step, 0), dtype=np.int32) > 0
            winner[covered] = number
        changes = np.concatenate(([True], winner[1:] != winner[:-1]))[: len(time)]
        time, winner = time[changes], winner[changes]
        length = np.diff(time, append=time[-1:])
        stretches = tuple(np.flatnonzero(winner == number).astype(np.int32) for number in range(num_classes))
        sums = tuple(np.concatenate(([np.int64(0)], np.cumsum(length[own]))) for own in stretches)
        if len(time):
            sums[0][:] += time[0]  # everything before the first edge is class 0
        return cls(edges_ns=time, cls=winner, _stretches=stretches, _sums_ns=sums)

    def until(self, t_ns: Int64) -> NDArray[np.int64]:
        """Return the ns of every class before each t, int64[num_classes, len(t)]."""
        sums = np.zeros((len(self._stretches), len(t_ns)), dtype=np.int64)
        if not len(self.edges_ns):
            sums[0] = t_ns
            return sums
        index = np.searchsorted(self.edges_ns, t_ns, side="right") - 1
        for number, (own, before) in enumerate(zip(self._stretches, self._sums_ns, strict=True)):
            sums[number] = before[np.searchsorted(own, index.astype(np.int32), side="left")]
        rest = t_ns - self.edges_ns[np.maximum(index, 0)]
        current = np.where(index >= 0, self.cls[np.maximum(index, 0)], 0)
        sums[current, np.arange(len(t_ns))] += rest
        return sums

    def between(self, start_ns: Int64, end_ns: Int64) -> NDArray[np.int64]:
        """Return the ns of every class in each [start, end), int64[num_classes, len(start)]; 0 where end <= start."""
        return self.until(np.maximum(start_ns, end_ns)) - self.until(start_ns)

    def back_from(self, t_ns: Int64, number: int, amount_ns: Int64) -> Int64:
        """Return the latest x <= t with `amount` ns of one class in [x, t); needs that much of it before t."""
        if not len(self.edges_ns):
            return t_ns
        target = self.until(t_ns)[number] - amount_ns
        own, before = self._stretches[number], self._sums_ns[number]
        if not len(own):
            return t_ns
        # The last stretch whose sum is still <= target; x lies in it (or nothing is wanted: x = t).
        at = np.clip(np.searchsorted(before, target, side="right") - 1, 0, len(own) - 1)
        return np.where(amount_ns > 0, self.edges_ns[own[at]] + (target - before[at]), t_ns)
