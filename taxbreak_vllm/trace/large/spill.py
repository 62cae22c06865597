"""A trace too large for memory: its rows wait on disk, and it is measured part by part.

In: a path. Out: `Events` for a small trace, `SpilledEvents` for a large one, and what is known of that as a whole.
"""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from taxbreak_vllm.trace.events import COLUMNS, Events
from taxbreak_vllm.trace.large.bins import Bins, FindRoom, Rows, TemporaryRoom
from taxbreak_vllm.trace.read.blocks import BLOCK_BYTES
from taxbreak_vllm.trace.read.kineto import TYPES, Columns, read_events

# Of JSON text: the columns of the densest traces seen take a third of it, and measuring them as much again.
SPILL_ABOVE_BYTES = 512_000_000

ROWS_PER_PART = 200_000

ROW = np.dtype(list(zip(COLUMNS, TYPES, strict=True)))


@dataclass(frozen=True, slots=True)
class SpilledEvents:
    """A trace whose rows are on disk, in file order; `head` has everything else of it, and no rows."""

    head: Events
    rows: Bins
    rows_per_part: int

    def events(self, rows: Rows) -> Events:
        """Make columns of some of the rows."""
        columns: dict[str, Any] = {name: np.ascontiguousarray(rows[name]) for name in COLUMNS}
        return dataclasses.replace(self.head, **columns)

    def chunks(self) -> Iterator[Events]:
        """Return all events, some at a time, in file order."""
        return map(self.events, self.additions())

    def additions(self) -> Iterator[Rows]:
        """Return all rows, some at a time, those aside that lie far from all others in time."""
        return map(self._within, self.rows.additions())

    def load(self) -> Events:
        """Return all of it, in memory."""
        return self.events(self._within(self.rows.read(0)))

    def _within(self, rows: Rows) -> Rows:
        head = self.head
        is_within = (rows["start_ns"] >= head.first_ns) & (rows["start_ns"] <= head.last_ns)
        return np.asarray(rows if is_within.all() else rows[is_within])


@contextmanager
def open_trace(
    path: str | Path,
    *,
    spill_above_bytes: int = SPILL_ABOVE_BYTES,
    rows_per_part: int = ROWS_PER_PART,
    block_bytes: int = BLOCK_BYTES,
    find_room: FindRoom = TemporaryRoom,
    with_frames: bool = False,
) -> Iterator[Events | SpilledEvents]:
    """Read a trace file; where it has more than `spill_above_bytes` of JSON, onto disk until the context is left.

    A spilled trace will be measured about `rows_per_part` rows at a time; its rows wait where `find_room`
    says, by default in the temporary folder. Python functions, where asked for `with_frames`, stay in memory. Raises as
    `read_events` does, and TaxbreakError where there is no room.
    """
    with Bins(ROW, 1, find_room) as rows:
        waiting: list[Rows] = []

        def spill(columns: Columns) -> None:
            added = np.empty(len(columns[0]), dtype=ROW)
            for name, column in zip(COLUMNS, columns, strict=True):
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

        events = read_events(
            path, block_bytes=block_bytes, spill=spill, spill_above_bytes=spill_above_bytes, with_frames=with_frames
        )
        if waiting:
            write()
        yield SpilledEvents(events, rows, rows_per_part) if rows.num_rows else events
