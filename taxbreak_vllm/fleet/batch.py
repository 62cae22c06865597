"""Some captures of an archive in, one object of their rows out: what each worker of a fleet's analysis does, and all.

A capture that cannot be analyzed is set aside by name. Nothing here hangs on what else was analyzed or where, so the
same captures give the same objects from a process of this machine and from a task of Ray.
"""

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from taxbreak_vllm.archive.bundle import unpack
from taxbreak_vllm.archive.layout import Key, digest_of
from taxbreak_vllm.archive.store import Store
from taxbreak_vllm.fleet.rows import analyzed, row_of
from taxbreak_vllm.fleet.table import to_parquet
from taxbreak_vllm.model.errors import Away, Refused, TaxbreakError
from taxbreak_vllm.model.fleet import Broken, StepRow

ANALYSES = "analyses/{}"  # and the version of this package that made them
BROKEN = "analyses/{}/broken"
LIMIT_S = 120  # an analysis that takes longer has hung

logger = logging.getLogger("taxbreak.fleet")

_MAX_REASON = 500


@dataclass(frozen=True, slots=True)
class Batch:
    """Captures of one server and day, analyzed together by this version."""

    archive: str
    version: str
    captures: tuple[Key, ...]

    def alone(self) -> Iterator["Batch"]:
        """Yield each capture as a batch of its own."""
        for key in self.captures:
            yield Batch(self.archive, self.version, (key,))


@dataclass(frozen=True, slots=True)
class Outcome:
    """How many captures of a batch have rows now, and those set aside."""

    num_analyzed: int
    broken: tuple[Broken, ...] = ()


def analyze_batch(batch: Batch) -> Outcome:
    """Analyze captures and store their rows; raises Away or Refused where the archive does not let that be."""
    store = _store(batch.archive)
    rows: list[StepRow] = []
    broken: list[Broken] = []
    for key in batch.captures:
        try:
            rows.append(_row(store, key))
        except (Away, Refused):
            raise
        except Exception as error:
            if not isinstance(error, TaxbreakError):
                logger.exception("a fault of taxbreak's own over %s", key.path)
            reason = str(error) if isinstance(error, TaxbreakError) else f"{type(error).__name__}: {error}"
            broken.append(set_aside(store, batch.version, key, reason))
    if rows:
        data = to_parquet(rows)
        store.put(_beside(batch.captures[0], ANALYSES.format(batch.version), data, "parquet"), data)
    return Outcome(len(rows), tuple(broken))


def set_aside(store: Store, version: str, key: Key, reason: str) -> Broken:
    """Note in the archive that a capture cannot be analyzed by this version, and why."""
    broken = Broken(capture=key.digest, key=key.path, reason=" ".join(reason.split())[:_MAX_REASON])
    data = msgspec.json.encode(broken)
    store.put(_beside(key, BROKEN.format(version), data, "json"), data)
    return broken


def _row(store: Store, key: Key) -> StepRow:
    data = store.get(key)
    with TemporaryDirectory(prefix="taxbreak-fleet-") as folder, _in_time():
        path = unpack(data, Path(folder)).path
        try:
            return row_of(key.digest, *analyzed(path))
        except TaxbreakError as error:
            raise type(error)(str(error).replace(str(path), key.path)) from error


@contextmanager
def _in_time() -> Iterator[None]:
    """Let SIGALRM end this process where an analysis hangs, in C code as well: whoever started it finds which."""
    with suppress(ValueError):  # not the main thread: whoever runs it there has bounds of his own
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(LIMIT_S)
    try:
        yield
    finally:
        signal.alarm(0)


def _beside(key: Key, kind: str, data: bytes, suffix: str) -> Key:
    """Name an object beside that of a capture: of the same model, versions, day and server."""
    named = {"kind": kind, "digest": digest_of(data), "suffix": suffix}
    return Key(model=key.model, vllm=key.vllm, gpu=key.gpu, date=key.date, server=key.server, **named)


@lru_cache(maxsize=1)
def _store(archive: str) -> Store:
    return Store(archive)
