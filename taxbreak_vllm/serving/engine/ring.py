"""Rows of integers on their way from a thread of vLLM's to the one that counts them; neither waits for the other."""

from collections import deque

import numpy as np

from taxbreak_vllm.iterations.rows import NUM_COLUMNS
from taxbreak_vllm.iterations.spans import Int64

_CAPACITY = 4096


class Ring:
    """One thread writes, one other takes; where that is too late, rows are lost and counted."""

    def __init__(self, capacity: int = _CAPACITY, *, num_columns: int = NUM_COLUMNS) -> None:
        self._num_columns, self._capacity = num_columns, capacity
        self._rows: deque[list[int]] = deque()
        self.num_lost = 0

    def write(self, row: list[int]) -> None:
        """Keep a copy of a row: a twentieth of what it takes to turn its integers into 64 bits each."""
        if len(self._rows) < self._capacity:
            self._rows.append(row.copy())
        else:
            self.num_lost += 1

    def take(self) -> Int64:
        """Return the rows written since the last time (rows, columns), oldest first; raises where one is none."""
        rows = [self._rows.popleft() for _ in range(len(self._rows))]
        return np.array(rows, dtype=np.int64).reshape(len(rows), self._num_columns)
