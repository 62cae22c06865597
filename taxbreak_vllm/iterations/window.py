"""Consecutive turns of an engine's loop as a file: `iterations-K.json.gz` beside the engine's state.

One JSON object: whose loop, the names of the columns and a row of integers a turn, and the requests that were on their
way meanwhile, as `waits.Arrivals` reads them. Columns that are not known here are passed over.
"""

import gzip
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from taxbreak_vllm.iterations.rows import Column
from taxbreak_vllm.iterations.spans import Int64
from taxbreak_vllm.model.errors import SpoolError
from taxbreak_vllm.model.frontend import UNKNOWN_ENGINE
from taxbreak_vllm.model.step import Int64 as Integer

SCHEMA = "taxbreak.iterations/1"
NUM_TURNS = 256

_FOLDER = "engine-"
_PATTERN = "iterations-*.json.gz"
_COLUMNS = tuple(column.name.lower() for column in Column)
_NUM_SLOT = 4
_MAX_BYTES = 2**26
_BEGINNING = 64  # bytes that tell a window


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Turns of one engine's loop, `rows` (turns, columns); `slots` (requests, 4) are those on their way meanwhile."""

    engine: str
    server_id: str
    works_ahead: bool
    rows: Int64
    slots: Int64

    def encode(self) -> bytes:
        """Return the bytes of its file."""
        stored = _File(
            schema=SCHEMA,
            engine=self.engine,
            server_id=self.server_id,
            works_ahead=self.works_ahead,
            columns=_COLUMNS,
            rows=self.rows.tolist(),
            arrivals=self._slots_meanwhile().tolist(),
        )
        return gzip.compress(msgspec.json.encode(stored), compresslevel=3, mtime=0)

    def _slots_meanwhile(self) -> Int64:
        arrived, sent, engine = self.slots[:, 0], self.slots[:, 1], self.slots[:, 2]
        begin, end = int(self.rows[0, Column.INPUT0]), int(self.rows[-1, Column.END])
        is_meanwhile = (arrived > 0) & (arrived <= end) & ((sent == 0) | (sent >= begin))
        is_meanwhile &= (engine == int(self.engine)) | (engine == UNKNOWN_ENGINE)
        meanwhile: Int64 = self.slots[is_meanwhile]
        return meanwhile


def holds_windows(path: Path) -> bool:
    """Tell a window's file, or the folder of an engine, from anything else that could be analyzed."""
    if path.is_dir():
        return path.name.startswith(_FOLDER) or any(path.glob(_PATTERN))
    try:
        with open(path, "rb") as file:
            begin = file.read(_BEGINNING)
            if begin[:2] == b"\x1f\x8b":
                file.seek(0)
                begin = gzip.GzipFile(fileobj=file).read(_BEGINNING)
    except (OSError, EOFError, zlib.error):
        return False
    return b'"taxbreak.iterations/' in begin


def read_windows(path: Path) -> list[Window]:
    """Read a window's file, or all those of an engine's folder, oldest first; raises SpoolError for one it cannot."""
    windows = [read_window(each) for each in (path.glob(_PATTERN) if path.is_dir() else [path])]
    if not windows:
        raise SpoolError(f"{path}: holds no window yet; the first comes with an engine's first {NUM_TURNS} turns")
    return sorted(windows, key=lambda window: int(window.rows[0, Column.INPUT0]))


def read_window(path: Path) -> Window:
    """Read a window's file; raises SpoolError for one that is missing, damaged or something else."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SpoolError(f"{path}: {error.strerror or error}") from error
    return decode_window(data, path)


def decode_window(data: bytes, path: Path) -> Window:
    """Read the content of a window's file; raises SpoolError for one that is damaged or something else."""
    try:
        if data[:2] == b"\x1f\x8b":
            decompressor = zlib.decompressobj(wbits=31)
            data = decompressor.decompress(data, _MAX_BYTES)
            if not decompressor.eof:
                raise SpoolError(f"{path}: truncated, or larger than any window")
        stored = msgspec.json.decode(data, type=_File)
    except (zlib.error, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise SpoolError(f"{path}: not a window of an engine's iterations: {error}") from error
    if stored.schema != SCHEMA:
        raise SpoolError(f"{path}: its schema is {stored.schema!r} and not {SCHEMA!r}; another version wrote it")
    missing = next((name for name in _COLUMNS if name not in stored.columns), None)
    if missing is not None:
        raise SpoolError(f"{path}: has no column {missing!r}; another version wrote it")
    if not stored.rows:
        raise SpoolError(f"{path}: holds no turn")
    places = [stored.columns.index(name) for name in _COLUMNS]
    return Window(
        engine=stored.engine,
        server_id=stored.server_id,
        works_ahead=stored.works_ahead,
        rows=_table(path, "row", stored.rows, len(stored.columns))[:, places],
        slots=_table(path, "arrival", stored.arrivals, _NUM_SLOT),
    )


class _File(msgspec.Struct, kw_only=True):
    schema: str
    engine: str
    server_id: str
    works_ahead: bool = False
    columns: Sequence[str]
    rows: list[list[Integer]]
    arrivals: list[list[Integer]] = []


def _table(path: Path, what: str, rows: list[list[int]], num_columns: int) -> Int64:
    if any(len(row) != num_columns for row in rows):
        raise SpoolError(f"{path}: damaged: each {what} should be of {num_columns} numbers")
    return np.array(rows, dtype=np.int64).reshape(-1, num_columns)
