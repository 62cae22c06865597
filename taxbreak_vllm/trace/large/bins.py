"""Rows on disk, sorted into numbered bins: what a trace too large for memory is passed through.

In: arrays of rows and the bin of each. Out: all rows of one bin, in the order they came.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from types import TracebackType
from typing import IO, Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from taxbreak_vllm.model.errors import TaxbreakError
from taxbreak_vllm.trace.intervals import Index, Int64

Rows = NDArray[np.void]


class Room(Protocol):
    """Where rows wait: `folder` and `remedy` are for the words of what goes wrong there."""

    @property
    def folder(self) -> str: ...
    @property
    def remedy(self) -> str: ...
    def open(self) -> IO[bytes]:
        """Return an empty file that is gone once it is closed, or its process is."""
        ...

    def claim(self, file: IO[bytes], size_bytes: int) -> None:
        """Let a file grow to a size; raises TaxbreakError where that is more than it may."""
        ...


class TemporaryRoom:
    """Nameless files in the temporary folder (TMPDIR), as large as its disk."""

    remedy = "set TMPDIR to a folder with room"

    @property
    def folder(self) -> str:
        import tempfile  # slow to load, and small traces never get here

        return tempfile.gettempdir()

    def open(self) -> IO[bytes]:
        import tempfile

        return tempfile.TemporaryFile(prefix="taxbreak-")

    def claim(self, file: IO[bytes], size_bytes: int) -> None: ...


FindRoom = Callable[[], Room]


class Bins:
    """A file in a room, both looked for at the first row and gone on leaving the context.

    Memory holds 8 bytes for each addition and bin.
    """

    def __init__(self, dtype: DTypeLike, num_bins: int, find_room: FindRoom = TemporaryRoom) -> None:
        self.dtype: np.dtype[Any] = np.dtype(dtype)
        self.num_rows = 0
        self.find_room = find_room
        self._num_bins = num_bins
        self._room: Room | None = None
        self._file: IO[bytes] | None = None
        self._places: list[Int64] = []  # per addition: the row at which each bin begins, and the end

    def __enter__(self) -> "Bins":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._file is not None:
            with suppress(OSError):  # what a full disk did not take, it does not take now
                self._file.close()

    def add(self, rows: Rows, bins: Index) -> None:
        """Append rows, each to its bin; raises TaxbreakError where the room or its disk takes no more."""
        counts = np.bincount(bins, minlength=self._num_bins)
        self._places.append(self.num_rows + np.concatenate(([0], np.cumsum(counts))))
        begin, self.num_rows = self.num_rows, self.num_rows + len(rows)
        room = self._room = self._room or self.find_room()
        try:
            if self._file is None:
                self._file = room.open()
            room.claim(self._file, self.num_rows * self.dtype.itemsize)
            self._file.seek(begin * self.dtype.itemsize)
            self._file.write(rows[np.argsort(bins, kind="stable")].tobytes())
            self._file.flush()
        except OSError as error:
            reason = f"{error.strerror or error}: a large trace is analyzed through a file there"
            raise TaxbreakError(f"{room.folder}: {reason}; {room.remedy}") from None

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
