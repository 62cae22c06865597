"""Rows on disk, sorted into numbered bins: what a trace too large for memory is passed through.

In: arrays of rows and the bin of each. Out: all rows of one bin, in the order they came.
"""

from collections.abc import Iterator
from types import TracebackType
from typing import IO, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from taxbreak_vllm.model.errors import TaxbreakError
from taxbreak_vllm.trace.intervals import Index, Int64

Rows = NDArray[np.void]


class Bins:
    """A nameless file in the temporary folder (TMPDIR), made at the first row and gone on leaving the context.

    Memory holds 8 bytes for each addition and bin.
    """

    def __init__(self, dtype: DTypeLike, num_bins: int) -> None:
        self.dtype: np.dtype[Any] = np.dtype(dtype)
        self.num_rows = 0
        self._num_bins = num_bins
        self._file: IO[bytes] | None = None
        self._places: list[Int64] = []  # per addition: the row at which each bin begins, and the end

    def __enter__(self) -> "Bins":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, rows: Rows, bins: Index) -> None:
        """Append rows, each to its bin; raises TaxbreakError where the disk takes no more."""
        import tempfile  # slow to load, and small traces never get here

        counts = np.bincount(bins, minlength=self._num_bins)
        self._places.append(self.num_rows + np.concatenate(([0], np.cumsum(counts))))
        self.num_rows += len(rows)
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(prefix="taxbreak-")  # noqa: SIM115 - __exit__ closes it
            self._file.seek(0, 2)
            self._file.write(rows[np.argsort(bins, kind="stable")].tobytes())
            self._file.flush()
        except OSError as error:
            raise TaxbreakError(
                f"{tempfile.gettempdir()}: {error.strerror or error}: a large trace is analyzed through a file there; "
                "set TMPDIR to a folder with room"
            ) from None

    def read(self, number: int) -> Rows:
        """Return the rows of one bin."""
        return self._read([(int(place[number]), int(place[number + 1])) for place in self._places])

    def additions(self) -> Iterator[Rows]:
        """Return all rows, one addition after the other."""
        return (self._read([(int(place[0]), int(place[-1]))]) for place in self._places)

    def _read(self, pieces: list[tuple[int, int]]) -> Rows:
        rows = np.empty(sum(end - begin for begin, end in pieces), dtype=self.dtype)
        target, at, size = memoryview(rows.view(np.uint8).data), 0, self.dtype.itemsize
        for begin, end in pieces:
            if self._file is not None and end > begin:
                self._file.seek(begin * size)
                at += self._file.readinto(target[at : at + (end - begin) * size])  # type: ignore[attr-defined]
        return rows
