"""Spans of time as two arrays, starts and ends, in order and apart: joined, cut, and how much they cover."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]
Bool = NDArray[np.bool_]
Spans = tuple[Int64, Int64]


def joined(parts: Sequence[Spans]) -> Spans:
    """Put spans that do not overlap in order."""
    starts = np.concatenate([starts for starts, _ in parts])
    ends = np.concatenate([ends for _, ends in parts])
    order = np.argsort(starts, kind="stable")
    return starts[order], ends[order]


def without(spans: Spans, holes: Spans) -> Spans:
    """Cut the holes that lie within a span out of it."""
    starts, ends = spans
    if not len(starts):
        return spans
    within = np.maximum(np.searchsorted(starts, holes[0], side="right") - 1, 0)
    is_within = (starts[within] <= holes[0]) & (holes[1] <= ends[within])
    holes = holes[0][is_within], holes[1][is_within]
    return np.sort(np.concatenate((starts, holes[1]))), np.sort(np.concatenate((ends, holes[0])))


def covered(spans: Spans, at: Int64) -> Int64:
    """Return how much of the time up to `at` the spans cover."""
    starts, ends = spans
    if not len(starts):
        return np.zeros(len(at), dtype=np.int64)
    before = np.concatenate(([0], np.cumsum(ends - starts)))
    index = np.searchsorted(starts, at, side="right") - 1
    last = np.maximum(index, 0)
    return np.where(index < 0, 0, before[last] + np.minimum(at, ends[last]) - starts[last])
