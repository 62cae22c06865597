"""Values in the spool's files: read strictly, written whole or not at all."""

import os
from pathlib import Path
from typing import TypeVar

import msgspec

from taxbreak_vllm.model.errors import SpoolError
from taxbreak_vllm.spool.layout import open_private

T = TypeVar("T")


def read_value(path: Path, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except OSError as error:
        raise SpoolError(f"{path}: {error.strerror or error}") from error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise SpoolError(f"{path}: {error}") from error


def write_value(path: Path, value: object) -> None:
    write_bytes(path, msgspec.json.encode(value))


def write_bytes(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with os.fdopen(open_private(temporary, os.O_TRUNC), "wb") as file:
            file.write(data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
