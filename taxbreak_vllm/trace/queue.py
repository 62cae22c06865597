"""Launch calls that waited because the device's queue was full: that time is the device's, not the launch path's.

In: linked activities and dispatches. Out: `FullQueue`. A runtime holds about a thousand launches that have not begun;
with so many outstanding the next call returns once the oldest of them begins.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from taxbreak_vllm.trace.intervals import Index, Int64, median

MIN_OUTSTANDING = 800  # the runtimes seen hold 1,021 or more
_MIN_CALLS = 3
_LONGER_NS = 1_000


@dataclass(frozen=True, slots=True)
class FullQueue:
    """The launches that waited, as places in Dispatches: which one they waited for to begin, and for how long."""

    dispatch: Index
    awaited: Index
    wait_ns: Int64

    @classmethod
    def of(
        cls, launch_ns: Int64, return_ns: Int64, begin_ns: Int64, name: NDArray[np.int32], device: Int64
    ) -> "FullQueue":
        """Find them; the columns have one row a dispatch, `begin_ns` is the start of its first activity."""
        found = [
            cls._on_device(np.flatnonzero(device == number), launch_ns, return_ns, begin_ns, name)
            for number in np.unique(device).tolist()
        ]
        parts = [each for each in found if each is not None]
        if not parts:
            return _NONE
        return cls(
            dispatch=np.concatenate([each.dispatch for each in parts]),
            awaited=np.concatenate([each.awaited for each in parts]),
            wait_ns=np.concatenate([each.wait_ns for each in parts]),
        )

    @classmethod
    def _on_device(
        cls, rows: Index, launch_ns: Int64, return_ns: Int64, begin_ns: Int64, name: NDArray[np.int32]
    ) -> "FullQueue | None":
        if len(rows) <= MIN_OUTSTANDING:
            return None
        rows = rows[np.argsort(launch_ns[rows], kind="stable")]
        by_begin = rows[np.argsort(begin_ns[rows], kind="stable")]
        begins = begin_ns[by_begin]
        begun = np.searchsorted(begins, launch_ns[rows], side="right")
        outstanding = np.arange(len(rows)) - begun
        limit = int(outstanding.max())
        is_full = outstanding >= limit - 1
        if limit < MIN_OUTSTANDING or is_full.sum() < _MIN_CALLS or is_full.all():
            return None
        length = return_ns[rows] - launch_ns[rows]
        usual = np.full(len(rows), median(length[~is_full]) or 0)
        for number in np.unique(name[rows[is_full]]).tolist():
            alike = name[rows] == number
            if (alike & ~is_full).any():
                usual[alike] = median(length[alike & ~is_full]) or 0
        # Of a first-in, first-out queue it is the one `limit` launches before; else the last to begin in the call.
        awaited = rows[np.maximum(np.arange(len(rows)) - limit, 0)]
        is_within = (begin_ns[awaited] > launch_ns[rows]) & (begin_ns[awaited] <= return_ns[rows])
        latest = by_begin[np.maximum(np.searchsorted(begins, return_ns[rows], side="right") - 1, 0)]
        awaited = np.where(is_within, awaited, latest)
        waited = is_full & (length > usual + _LONGER_NS) & (begin_ns[awaited] > launch_ns[rows])
        return cls(rows[waited], awaited[waited], (length - usual)[waited])


_NONE = FullQueue(np.empty(0, dtype=np.intp), np.empty(0, dtype=np.intp), np.empty(0, dtype=np.int64))
