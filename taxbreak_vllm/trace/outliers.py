"""Single records that cannot be true, told by the company they keep: they shall decide no total and refuse no file.

In: columns in file order. Out: which records lie far from all others in time, and where records that run over what
came after them on their stream end at the latest.
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]
Bool = NDArray[np.bool_]

SECOND_NS = 10**9
_YEAR_NS = 366 * 86_400 * SECOND_NS

# Records apart by less belong together, however short the recording; a server may idle for so long.
_FAR_NS = 60 * SECOND_NS
_FAR_RATIO = 10  # of the length of the rest
_MAX_STRAY_RATIO = 0.01  # of the records, in all; of a small file _MAX_STRAYS
_MAX_STRAYS = 2
_MAX_EPOCH_RATIO = 0.1  # where they lie years away, as those do that bear no time

# A kernel may begin before the one ahead of it on its stream has ended (PDL, ROCm), and does in real traces; none of
# theirs covers even one successor from its start to its end. One that covers so many, which by themselves run one after
# another as on a stream they must, did not end when it says.
_MAX_COVERED = 8


class Seconds:
    """How many records began in each second of a trace, the first and last instant of those, and the name of one."""

    def __init__(self) -> None:
        self._seconds: dict[int, list[int]] = {}

    def add(self, start_ns: Int64, end_ns: Int64, name: NDArray[np.int32]) -> None:
        """Count more records, at least one."""
        second = start_ns // SECOND_NS
        first, last = int(second.min()), int(second.max())
        if first == last:
            self._add(first, len(second), int(start_ns.min()), int(end_ns.max()), int(name[0]))
            return
        for number in np.unique(second).tolist():
            own = second == number
            self._add(number, int(own.sum()), int(start_ns[own].min()), int(end_ns[own].max()), int(name[own][0]))

    def _add(self, second: int, count: int, start_ns: int, end_ns: int, name: int) -> None:
        known = self._seconds.setdefault(second, [0, start_ns, end_ns, name])
        known[0] += count
        known[1] = min(known[1], start_ns)
        known[2] = max(known[2], end_ns)

    def names_beyond(self, first_ns: int, last_ns: int) -> list[int]:
        """Return the name of one record of each second outside."""
        return [name for _, start_ns, _, name in self._seconds.values() if not first_ns <= start_ns <= last_ns]

    def extent(self) -> tuple[int, int, int]:
        """Return the first start and last end of the records, those aside that lie far from most, and their number."""
        if not self._seconds:
            return 0, 0, 0
        groups = list(_groups(sorted(self._seconds.items())))
        total = sum(count for count, _, _, _ in groups)
        main = max(range(len(groups)), key=lambda i: groups[i][0])
        kept, first_ns, last_start_ns, last_ns = groups[main]
        for step in (-1, 1):
            i = main + step
            while 0 <= i < len(groups):
                count, start_ns, start_end_ns, end_ns = groups[i]
                apart_ns = first_ns - start_end_ns if step < 0 else start_ns - last_start_ns
                few = count <= max(_MAX_STRAYS, _MAX_STRAY_RATIO * total)
                if apart_ns > _FAR_RATIO * (last_start_ns - first_ns) and (few or apart_ns > _YEAR_NS):
                    break
                first_ns, last_start_ns = min(first_ns, start_ns), max(last_start_ns, start_end_ns)
                last_ns = max(last_ns, end_ns)
                kept += count
                i += step
        if total - kept > min(max(_MAX_STRAYS, _MAX_EPOCH_RATIO * total), total / 4):  # no company to judge them by
            return groups[0][1], max(end_ns for *_, end_ns in groups), 0
        return first_ns, last_ns, total - kept


def _groups(seconds: Iterable[tuple[int, list[int]]]) -> Iterable[tuple[int, int, int, int]]:
    """Join seconds that lie close: (records, first start, last start at most, last end) of each group."""
    group: tuple[int, int, int, int] | None = None
    for second, (count, start_ns, end_ns, _) in seconds:
        last_start_ns = min((second + 1) * SECOND_NS - 1, max(end_ns, start_ns))
        if group is None or start_ns - group[2] > _FAR_NS:
            if group is not None:
                yield group
            group = count, start_ns, last_start_ns, end_ns
        else:
            group = group[0] + count, group[1], last_start_ns, max(group[3], end_ns)
    assert group is not None
    yield group


def ends_too_late(start_ns: Int64, end_ns: Int64) -> Bool:
    """Mark the records that go on for long after all others have begun."""
    first, last = int(start_ns.min()), int(start_ns.max())
    return np.asarray(end_ns > last + max(_FAR_NS, _FAR_RATIO * (last - first)))


def clipped_ends(start_ns: Int64, end_ns: Int64, device: Int64, stream: Int64) -> Int64:
    """Return the ends of device records; one that covers too many of those after it on its stream ends at the next."""
    order = np.lexsort((end_ns, start_ns, stream, device))
    start, end = start_ns[order], end_ns[order]
    same = (device[order][1:] == device[order][:-1]) & (stream[order][1:] == stream[order][:-1])
    group = np.concatenate(([0], np.cumsum(~same)))
    result = end_ns.copy()
    is_same = (group[:-_MAX_COVERED] == group[_MAX_COVERED:]) & (stream[order][:-_MAX_COVERED] >= 0)
    for at in np.flatnonzero(is_same & (end[:-_MAX_COVERED] >= end[_MAX_COVERED:])).tolist():
        after = slice(at + 1, at + 1 + _MAX_COVERED)
        begins, ends = start[after], end[after]
        are_serial = begins[1:] >= (begins[:-1] + ends[:-1]) // 2
        if np.all((ends <= end[at]) & (begins > start[at])) and np.all(are_serial):
            result[order[at]] = start[at + 1]
    return result
