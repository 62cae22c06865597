"""The files of a server's traffic: lines appended to the newest, the oldest deleted, all of them read in order.

`traffic/SOURCE-NUMBER.jsonl.gz`, where the source is an engine or an API server. Each append is a gzip member of its
own, so that a file is whole up to wherever its writer died. Any file can be read without the others.
"""

import gzip
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from taxbreak_vllm.model.errors import SpoolError
from taxbreak_vllm.traffic.files import SUFFIX, files_of, number_of
from taxbreak_vllm.traffic.rows import SCHEMA, Row, Setup

FILES_KEPT = 16  # of a source; each has that share of its bytes
_LEVEL = 6
_MAX_MEMBER_BYTES = 2**28


class Log:
    """Appends to the files of one source; one thread writes."""

    def __init__(self, folder: Path, setup: Setup, *, max_bytes: int) -> None:
        self._folder = folder
        self._setup = setup
        self._max_file_bytes = max_bytes // FILES_KEPT
        self._number = max((number_of(path) for path in files_of(folder, setup.source)), default=-1)
        self._path: Path | None = None

    def append(self, rows: Sequence[Row]) -> None:
        """Keep lines; raises OSError where the disk refuses."""
        lines: list[Row | Setup] = [*rows]
        path = self._path
        if path is None or not path.exists() or path.stat().st_size >= self._max_file_bytes:
            path = self._begin()
            lines.insert(0, self._setup)
        data = gzip.compress(msgspec.json.Encoder().encode_lines(lines), compresslevel=_LEVEL, mtime=0)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        self._path = path
        self.touch()

    def touch(self) -> None:
        """Say that the server still runs; an append alone changes no folder."""
        os.utime(self._folder)

    def _begin(self) -> Path:
        self._folder.mkdir(mode=0o700, exist_ok=True)
        self._number += 1
        for old in files_of(self._folder, self._setup.source):
            if number_of(old) <= self._number - FILES_KEPT:
                old.unlink(missing_ok=True)
        return self._folder / f"{self._setup.source}-{self._number:08d}{SUFFIX}"


def read_log(folder: Path, source: str) -> tuple[Setup, list[Row]]:
    """Read all there is of one source, oldest first.

    Raises SpoolError where there is nothing, or a file is not what it should be; one that was cut off is read as far as
    it goes.
    """
    found: list[Row] = []
    setup: Setup | None = None
    for path in files_of(folder, source):
        lines = _lines(path)
        first = next(lines, None)
        if first is None:
            continue
        try:
            here = msgspec.json.decode(first, type=Setup)
            found.extend(map(_ROW.decode, lines))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise SpoolError(f"{path}: not a server's traffic: {error}") from error
        if here.schema != SCHEMA:
            raise SpoolError(f"{path}: its schema is {here.schema!r} and not {SCHEMA!r}; another version wrote it")
        setup = setup or here
    if setup is None:
        raise SpoolError(f"{folder}: holds no traffic of {source!r}")
    return setup, found


_ROW: msgspec.json.Decoder[Row] = msgspec.json.Decoder(Row)


def _lines(path: Path) -> Iterator[bytes]:
    """Yield whole lines, up to where the file was cut off."""
    try:
        data = path.read_bytes()
        while data:
            member = zlib.decompressobj(wbits=31)
            text = member.decompress(data, _MAX_MEMBER_BYTES)
            yield from text[: text.rfind(b"\n") + 1].splitlines()
            if not member.eof:
                return
            data = member.unused_data
    except OSError as error:
        raise SpoolError(f"{path}: {error.strerror or error}") from error
    except zlib.error as error:
        raise SpoolError(f"{path}: not a server's traffic: {error}") from error
