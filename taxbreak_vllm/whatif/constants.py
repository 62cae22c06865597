"""The few times that a device and its runtime take whatever the program is, fitted from one recording.

In: calls and the device's order. Out: `Constants`: how long after its call's return an activity begins on an idle
stream, and the gap between two that follow one another. Each is a median over where nothing else can have decided.
"""

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from taxbreak_vllm.trace.dispatches import Activities, Bool, Host
from taxbreak_vllm.trace.events import EventKind, Events
from taxbreak_vllm.trace.intervals import Index, Int64
from taxbreak_vllm.whatif.streams import Streams

UNEXPLAINED_NS = 10_000  # a start later by more than what leads to it is not explained
_T = TypeVar("_T", np.int64, np.bool_)
_MIN_COUNT = 3  # fewer are no median
_LATENCY_NS, _GAP_NS = 2_000, 1_000  # where a recording shows none at all


@dataclass(frozen=True, slots=True)
class Calls:
    """Runtime calls in the order of Host.call_*: when, and how long one of that name takes that does not wait."""

    start_ns: Int64
    end_ns: Int64
    name: Int64
    typical_ns: Int64

    @classmethod
    def of(cls, events: Events, host: Host) -> "Calls":
        """Read the calls; a name that always waits is as long as its shortest."""
        rows = host.call_row
        start_ns, end_ns, name = events.start_ns[rows], events.end_ns[rows], events.name[rows].astype(np.int64)
        length = end_ns - start_ns
        free = ~host.call_is_blocking
        shortest = np.full(len(events.names) or 1, np.iinfo(np.int64).max)
        np.minimum.at(shortest, name, length)
        known, of_name = median_by(name[free], length[free], name, min_count=1)
        return cls(start_ns, end_ns, name, np.where(known, of_name, shortest[name]))


@dataclass(frozen=True, slots=True)
class Constants:
    """One value an activity, ns: `latency_ns` from its call's return, `gap_ns` from the end of what came before.

    Where the call waits for its own copy (`is_staged`) the latency counts from the call's usual length. `has_gap` tells
    whether the recording shows any gap of its kind.
    """

    latency_ns: Int64
    gap_ns: Int64
    has_gap: Bool
    is_staged: Bool

    @classmethod
    def fit(cls, events: Events, host: Host, calls: Calls, activities: Activities, streams: Streams) -> "Constants":
        """Fit both from where the other cannot have decided."""
        call, start_ns = np.maximum(streams.call, 0), activities.start_ns
        has_call = streams.call >= 0
        busy_until = np.where(streams.before >= 0, activities.end_ns[streams.before], np.iinfo(np.int64).min)
        begun, returned = _at(calls.start_ns, call), _at(calls.end_ns, call)
        is_copy = events.kind[activities.row] == EventKind.MEMCPY
        is_staged = has_call & is_copy & ((returned > start_ns) | _at(host.call_is_blocking, call))
        ready = np.where(is_staged, begun + np.minimum(_at(calls.typical_ns, call), start_ns - begun), returned)
        leads = has_call & streams.is_first
        is_idle = leads & (streams.before >= 0) & (begun >= busy_until) & (start_ns - ready < 3 * UNEXPLAINED_NS)
        kind = events.kind[activities.row].astype(np.int64) * 4 + is_staged * 2 + streams.is_graph
        name = np.where(has_call, _at(calls.name, call), -1)
        latency, _ = _fitted(
            (kind * (len(events.names) + 1) + name, kind, streams.is_graph.astype(np.int64)),
            start_ns - ready,
            is_idle,
            _LATENCY_NS,
        )
        gap = start_ns - busy_until
        is_near = (streams.before >= 0) & (gap < UNEXPLAINED_NS) & (gap > -UNEXPLAINED_NS)
        is_behind = is_near & (streams.is_node | (leads & (ready + latency + 1_000 < busy_until)))
        pair = activities.name[streams.before].astype(np.int64) * len(events.names) + activities.name
        node = streams.is_node.astype(np.int64)
        gap_ns, has_gap = _fitted((pair * 2 + node, node * 8 + kind // 4, node), gap, is_behind, _GAP_NS)
        return cls(latency_ns=latency, gap_ns=gap_ns, has_gap=has_gap, is_staged=is_staged)


def _at(values: NDArray[_T], index: Index) -> NDArray[_T]:
    return values[index] if len(values) else np.zeros(len(index), dtype=values.dtype)


def _fitted(keys: tuple[Int64, ...], values: Int64, counted: Bool, otherwise: int) -> tuple[Int64, Bool]:
    """Return for each row the median of the counted rows that share its key, the finest of the keys that has enough.

    Also, for which rows there was one.
    """
    fitted, is_fitted = np.full(len(values), otherwise, dtype=np.int64), np.zeros(len(values), dtype=bool)
    for key, min_count in ((keys[-1], 1), *((key, _MIN_COUNT) for key in reversed(keys))):
        known, found = median_by(key[counted], values[counted], key, min_count=min_count)
        fitted[known] = found[known]
        is_fitted |= known
    return fitted, is_fitted


def median_by(key: Int64, values: Int64, wanted: Int64, *, min_count: int) -> tuple[Bool, Int64]:
    """Return for each wanted key whether it has so many values, and their lower median."""
    order = np.lexsort((values, key))
    key, values = key[order], values[order]
    distinct, first, counts = np.unique(key, return_index=True, return_counts=True)
    if not len(distinct):
        return np.zeros(len(wanted), dtype=bool), np.zeros(len(wanted), dtype=np.int64)
    place = np.minimum(np.searchsorted(distinct, wanted), len(distinct) - 1)
    known = (distinct[place] == wanted) & (counts[place] >= min_count)
    return known, values[first[place] + (counts[place] - 1) // 2]
