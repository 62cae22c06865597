"""Loops of the host that ask for an event until it has passed: they wait as a blocking call does.

In: calls and the host's order. Out: `Polls`: from which query to which each loop goes. Queries within ops are none: an
allocator asks for events so, and goes on whatever it hears.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from taxbreak_vllm.trace.dispatches import Host, containing
from taxbreak_vllm.trace.events import Events
from taxbreak_vllm.trace.intervals import Index
from taxbreak_vllm.trace.steps import StepWindow
from taxbreak_vllm.whatif.constants import median_by

WAITER_QUIET_NS = 20_000  # one that neither launches work nor has steps: it does little else than wait
_NEVER = np.iinfo(np.int64).max
_IN_A_STEP, _SPREAD = 2, 4  # queries that fit into a step at least; pauses differ by a part of so many
_QUERIES = ("EventQuery", "StreamQuery")


@dataclass(frozen=True, slots=True)
class Polls:
    """Loops as places in Host.call_*: their first query, the last but one (the same of one query), and the last."""

    first: Index
    before: Index
    last: Index

    @classmethod
    def of(cls, events: Events, host: Host, windows: Sequence[StepWindow]) -> "Polls":
        """Find queries of one name that follow one another on a thread with nothing between.

        Where a thread launches nothing it may do much that is not seen: there they follow soon, or after its usual
        pause, if several of these fit into the shortest step.
        """
        is_query = np.array([name.endswith(_QUERIES) for name in events.names] or [False])
        name = events.name[host.call_row]
        query = np.flatnonzero(is_query[name])
        query = query[containing(host.root_start, host.root_end, host.call_start[query]) < 0]
        query = query[np.argsort(host.call_start[query], kind="stable")]
        if not len(query):
            return cls(query, query, query)
        window_thread = np.array([window.thread for window in windows], dtype=np.int32)
        bounds = [
            host.key(window_thread, np.array(at_ns, dtype=np.int64))
            for at_ns in ([window.start_ns for window in windows], [window.end_ns for window in windows])
        ]
        others = np.delete(host.call_start, query)
        between = np.sort(np.concatenate((others, host.root_start, *bounds)))
        key, end = host.call_start[query], host.call_end[query]
        thread = events.thread[host.call_row[query]]
        launching = np.unique(events.thread[host.call_row[host.call_is_launch]])
        pause_ns = key[1:] - end[:-1]
        is_within = thread[1:] == thread[:-1]
        wide = thread[1:].astype(np.int64)
        _, usual_ns = median_by(wide[is_within], pause_ns[is_within], wide, min_count=1)
        starts_ns = np.sort([window.start_ns for window in windows])
        step_ns = int(np.diff(starts_ns).min()) if len(starts_ns) > 1 else _NEVER
        is_soon = (pause_ns <= WAITER_QUIET_NS) & (usual_ns <= WAITER_QUIET_NS)
        is_soon |= (usual_ns < step_ns / _IN_A_STEP) & (np.abs(pause_ns - usual_ns) <= usual_ns // _SPREAD)
        opens = np.ones(len(query), dtype=bool)
        opens[1:] = (
            (np.diff(np.searchsorted(between, key, side="right")) > 0)
            | ~is_within
            | (name[query][1:] != name[query][:-1])
            | ~(is_soon | np.isin(thread[1:], launching))
        )
        first = np.flatnonzero(opens)
        last = np.append(first[1:], len(query)) - 1
        return cls(query[first], query[np.maximum(last - 1, first)], query[last])
