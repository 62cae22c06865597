"""Rows of integers on their way from a thread of vLLM's to the one that counts them; neither waits for the other."""

import struct

import numpy as np

from taxbreak_vllm.iterations.rows import NUM_COLUMNS
from taxbreak_vllm.iterations.spans import Int64

_CAPACITY = 4096


class Ring:
    """One thread writes, one other takes; where that is too late, rows are lost and counted."""

    def __init__(self, capacity: int = _CAPACITY, *, num_columns: int = NUM_COLUMNS) -> None:
        layout = struct.Struct(f"={num_columns}q")
        self._num_columns = num_columns
        self._pack, self._size, self._capacity = layout.pack_into, layout.size, capacity
        self._bytes = bytearray(layout.size * capacity)
        self._num_written = 0
        self._num_taken = 0
        self.num_lost = 0

    def write(self, row: list[int]) -> None:
        """Keep a row; its integers are copied."""
        written = self._num_written
        if written - self._num_taken >= self._capacity:
            self.num_lost += 1
            return
        self._pack(self._bytes, written % self._capacity * self._size, *row)
        self._num_written = written + 1

    def take(self) -> Int64:
        """Return the rows written since the last time (rows, columns), oldest first."""
        begin, end = self._num_taken, self._num_written
        all_rows = np.frombuffer(self._bytes, dtype=np.int64).reshape(self._capacity, self._num_columns)
        rows: Int64 = all_rows[np.arange(begin, end) % self._capacity]
        self._num_taken = end
        return rows
