"""A trace too large for memory: its rows wait in a temporary file, and it is measured part by part.

In: a path. Out: `Events` for a small trace, `SpilledEvents` for a large one, and what is known of that as a whole.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from taxbreak_vllm.trace.intervals import Int64
from taxbreak_vllm.trace.large.bins import Bins, Rows
from taxbreak_vllm.trace.read.blocks import BLOCK_BYTES
from taxbreak_vllm.trace.read.kineto import TYPES, Columns, EventKind, Events, read_events
from taxbreak_vllm.trace.steps import StepWindow, events_by_thread, find_steps, is_step_name, whole_window

# Of JSON text: the columns of the densest traces seen take a third of it, and measuring them as much again.
SPILL_ABOVE_BYTES = 512_000_000

ROWS_PER_PART = 200_000

_COLUMNS = tuple(field.name for field in dataclasses.fields(Events)[1 : len(TYPES) + 1])
ROW = np.dtype(list(zip(_COLUMNS, TYPES, strict=True)))


@dataclass(frozen=True, slots=True)
class SpilledEvents:
    """A trace whose rows are on disk, in file order; `head` has everything else of it, and no rows."""

    head: Events
    rows: Bins
    rows_per_part: int

    def events(self, rows: Rows) -> Events:
        """Make columns of some of the rows."""
        columns: dict[str, Any] = {name: np.ascontiguousarray(rows[name]) for name in _COLUMNS}
        return dataclasses.replace(self.head, **columns)

    def load(self) -> Events:
        """Return all of it, in memory."""
        return self.events(self.rows.read(0))


@contextmanager
def open_trace(
    path: str | Path,
    *,
    spill_above_bytes: int = SPILL_ABOVE_BYTES,
    rows_per_part: int = ROWS_PER_PART,
    block_bytes: int = BLOCK_BYTES,
) -> Iterator[Events | SpilledEvents]:
    """Read a trace file; where it has more than `spill_above_bytes` of JSON, onto disk until the context is left.

    A spilled trace will be measured about `rows_per_part` rows at a time. Raises as `read_events` does.
    """
    with Bins(ROW, 1) as rows:
        waiting: list[Rows] = []

        def spill(columns: Columns) -> None:
            added = np.empty(len(columns[0]), dtype=ROW)
            for name, column in zip(_COLUMNS, columns, strict=True):
                added[name] = column
            waiting.append(added)
            if sum(map(len, waiting)) >= rows_per_part:
                write()

        def write() -> None:
            added = np.concatenate(waiting)
            waiting.clear()
            for first in range(0, len(added), rows_per_part):
                chunk = added[first : first + rows_per_part]
                rows.add(chunk, np.zeros(len(chunk), dtype=np.intp))

        events = read_events(path, block_bytes=block_bytes, spill=spill, spill_above_bytes=spill_above_bytes)
        if waiting:
            write()
        yield SpilledEvents(events, rows, rows_per_part) if rows.num_rows else events


@dataclass(frozen=True, slots=True)
class TraceSurvey:
    """What must be known of a trace as a whole before a part of it can be measured.

    `windows` are its steps (none: `whole` is the one), `device` the one with most activities (-1: none), `calls` the
    names of runtime calls. `known_from_ns` is each thread's first op, call or own step, the maximum int64 for none.
    """

    windows: tuple[StepWindow, ...]
    whole: StepWindow
    num_ops: int
    num_activities: int
    device: int
    calls: frozenset[str]
    known_from_ns: Int64

    @classmethod
    def of(cls, trace: SpilledEvents) -> "TraceSurvey":
        """Read all rows once."""
        head = trace.head
        by_thread = np.zeros((2, len(head.threads)), dtype=np.int64)
        host_end_ns = head.first_ns
        known_from_ns = np.full(len(head.threads), np.iinfo(np.int64).max)
        is_called = np.zeros(len(head.names), dtype=bool)
        is_step = np.array([is_step_name(name) for name in head.names], dtype=bool)
        steps = []
        num_ops = 0
        devices: Counter[int] = Counter()
        for rows in trace.rows.additions():
            events = trace.events(rows)
            by_thread += events_by_thread(events)
            num_ops += len(events.rows(EventKind.OP))
            on_host = events.rows(EventKind.OP, EventKind.RUNTIME, EventKind.ANNOTATION)
            host_end_ns = max(host_end_ns, int(events.end_ns[on_host].max(initial=host_end_ns)))
            working = events.rows(EventKind.OP, EventKind.RUNTIME)
            np.minimum.at(known_from_ns, events.thread[working], events.start_ns[working])
            is_called[events.name[events.rows(EventKind.RUNTIME)]] = True
            ids, counts = np.unique(
                events.device[events.rows(EventKind.KERNEL, EventKind.MEMCPY, EventKind.MEMSET)], return_counts=True
            )
            devices.update(dict(zip(ids.tolist(), counts.tolist(), strict=True)))
            steps.append(rows[(events.kind == EventKind.ANNOTATION) & is_step[events.name]])
        windows = tuple(find_steps(trace.events(np.concatenate(steps))))
        whole = whole_window(head.first_ns, host_end_ns, by_thread)
        for window in windows or (whole,):
            known_from_ns[window.thread] = min(known_from_ns[window.thread], window.start_ns)
        return cls(
            windows=windows,
            whole=whole,
            num_ops=num_ops,
            num_activities=devices.total(),
            device=max(devices, key=lambda device: (devices[device], -device), default=-1),
            calls=frozenset(head.names[name] for name in np.flatnonzero(is_called).tolist()),
            known_from_ns=known_from_ns,
        )
