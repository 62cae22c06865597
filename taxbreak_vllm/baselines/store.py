"""The store of floors, ceilings and replayed baselines: one SQLite file, many readers and one writer at a time.

Entries belong to an `Environment`, the device and software they were measured with, and are never read for another: a
new driver or torch starts afresh. A fleet with one kind of device measures once and shares the file or its export.
Nothing is measured here.
"""

import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from taxbreak_vllm.baselines.database import Schema, StoreError, open_database, transaction
from taxbreak_vllm.baselines.records import Records, parse_records
from taxbreak_vllm.model.baseline import Baseline, Environment, Floors, Outcome
from taxbreak_vllm.model.ceilings import MeasuredCeilings
from taxbreak_vllm.model.errors import BaselineError

_WAIT_S = 30.0

_MAX_VARIABLES = 500

_MAGIC = b"SQLite format 3"

_TABLES = """
CREATE TABLE environments (id INTEGER PRIMARY KEY, body TEXT NOT NULL UNIQUE);
CREATE TABLE floors (environment INTEGER PRIMARY KEY, body BLOB NOT NULL);
CREATE TABLE ceilings (environment INTEGER PRIMARY KEY, body BLOB NOT NULL);
CREATE TABLE baselines (
    environment INTEGER NOT NULL, signature TEXT NOT NULL, body BLOB NOT NULL, PRIMARY KEY (environment, signature)
) WITHOUT ROWID;
"""
_SCHEMA = Schema(kind="baselines", layout=1, tables=_TABLES, known_by="baselines")


class Baselines:
    """A store, created on first use; a context manager."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._db = open_database(path, _SCHEMA, wait_s=_WAIT_S)
        except StoreError as error:
            raise BaselineError(str(error)) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._db.close()

    def environments(self) -> list[Environment]:
        """List the environments that have entries."""
        with self._errors():
            rows = self._db.execute("SELECT body FROM environments ORDER BY id").fetchall()
            return [msgspec.json.decode(body, type=Environment) for (body,) in rows]

    def view(self, told: Mapping[str, str]) -> "View | None":
        """Return what was measured where a trace says it was made; None where nothing or several places fit."""
        fitting = [environment for environment in self.environments() if environment.fits(**told)]
        if len(fitting) != 1:
            return None
        return View(self, fitting[0], self.floors(fitting[0]), self.ceilings(fitting[0]))

    def put(self, environment: Environment, baselines: Iterable[Baseline]) -> None:
        """Add entries, each in place of an earlier one of its signature, all or none."""
        with self._errors(), transaction(self._db):
            key = self._id(environment)
            self._db.executemany(
                "INSERT OR REPLACE INTO baselines (environment, signature, body) VALUES (?, ?, ?)",
                [(key, entry.signature, msgspec.json.encode(entry)) for entry in baselines],
            )

    def forget(self, environment: Environment, signatures: Iterable[str]) -> None:
        """Drop those of these entries that failed, crashed, timed out or took too much memory."""
        own = self.get(environment, list(signatures))
        again = [key for key, entry in own.items() if entry.outcome not in (Outcome.MEASURED, Outcome.DENIED)]
        with self._errors(), transaction(self._db):
            key = self._id(environment)
            self._db.executemany(
                "DELETE FROM baselines WHERE environment = ? AND signature = ?", [(key, one) for one in again]
            )

    def put_floors(self, environment: Environment, floors: Floors) -> None:
        """Store the floors in place of earlier ones."""
        with self._errors(), transaction(self._db):
            row = (self._id(environment), msgspec.json.encode(floors))
            self._db.execute("INSERT OR REPLACE INTO floors (environment, body) VALUES (?, ?)", row)

    def floors(self, environment: Environment) -> Floors | None:
        """Return the floors of an environment, None where they were not measured."""
        query = "SELECT f.body FROM floors f JOIN environments e ON e.id = f.environment WHERE e.body = ?"
        with self._errors():
            row = self._db.execute(query, (_text(environment),)).fetchone()
            return msgspec.json.decode(row[0], type=Floors) if row else None

    def raise_ceilings(self, environment: Environment, measured: MeasuredCeilings) -> MeasuredCeilings:
        """Store what was reached where it is above what was reached before; return what stands there now."""
        with self._errors(), transaction(self._db):
            best = measured.raised(self.ceilings(environment))
            row = (self._id(environment), msgspec.json.encode(best))
            self._db.execute("INSERT OR REPLACE INTO ceilings (environment, body) VALUES (?, ?)", row)
        return best

    def ceilings(self, environment: Environment) -> MeasuredCeilings | None:
        """Return the ceilings of an environment, None where they were not measured."""
        query = "SELECT c.body FROM ceilings c JOIN environments e ON e.id = c.environment WHERE e.body = ?"
        with self._errors():
            row = self._db.execute(query, (_text(environment),)).fetchone()
            return msgspec.json.decode(row[0], type=MeasuredCeilings) if row else None

    def get(self, environment: Environment, signatures: Sequence[str]) -> dict[str, Baseline]:
        """Return the entries of these signatures that there are, whatever their outcome."""
        found: dict[str, Baseline] = {}
        with self._errors():
            for begin in range(0, len(signatures), _MAX_VARIABLES):
                part = signatures[begin : begin + _MAX_VARIABLES]
                query = (
                    "SELECT b.body FROM baselines b JOIN environments e ON e.id = b.environment"
                    f" WHERE e.body = ? AND b.signature IN ({', '.join('?' * len(part))})"
                )
                for (body,) in self._db.execute(query, (_text(environment), *part)):
                    entry = msgspec.json.decode(body, type=Baseline)
                    found[entry.signature] = entry
        return found

    def entries(self, environment: Environment) -> Iterator[Baseline]:
        """Iterate over all entries of an environment."""
        query = "SELECT b.body FROM baselines b JOIN environments e ON e.id = b.environment WHERE e.body = ?"
        with self._errors():
            for (body,) in self._db.execute(query, (_text(environment),)):
                yield msgspec.json.decode(body, type=Baseline)

    def records(self, environment: Environment) -> Records:
        """Return all that was measured in an environment."""
        return Records(
            environment=environment,
            floors=self.floors(environment),
            ceilings=self.ceilings(environment),
            entries={entry.signature: entry for entry in self.entries(environment)},
        )

    def merge(self, records: Records) -> int:
        """Take in what is better than what is here, or not here at all; return how many entries that were."""
        own = self.records(records.environment)
        fresh = records.beyond(own)
        if fresh.entries:
            self.put(fresh.environment, fresh.entries.values())
        if fresh.floors is not None:
            self.put_floors(fresh.environment, fresh.floors)
        if fresh.ceilings is not None:
            self.raise_ceilings(fresh.environment, fresh.ceilings)
        return len(fresh.entries)

    def export(self, path: Path) -> int:
        """Write everything as JSON lines, one head an environment before its entries; return how many entries.

        Raises BaselineError where the disk refuses, or a database, such as this one, would be replaced.
        """
        count = 0
        temporary = path.with_name(f".{path.name}.tmp")
        try:
            if _is_database(path):
                raise BaselineError(f"{path}: a database, which an export does not replace; name another file")
            with open(temporary, "wb") as file:
                for records in map(self.records, self.environments()):
                    file.writelines(line + b"\n" for line in records.lines())
                    count += len(records.entries)
            temporary.rename(path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise BaselineError(f"{path}: cannot be written: {error.strerror or error}") from error
        return count

    def take(self, path: Path) -> int:
        """Add all entries of an export, the better measurement of a signature winning; return how many were read."""
        try:
            lines = path.read_bytes().splitlines()
        except OSError as error:
            raise BaselineError(f"{path}: {error.strerror or error}") from error
        parts = parse_records(lines, where=str(path))
        for records in parts:
            self.merge(records)
        return sum(len(records.entries) for records in parts)

    def _id(self, environment: Environment) -> int:
        body = _text(environment)
        self._db.execute("INSERT OR IGNORE INTO environments (body) VALUES (?)", (body,))
        return int(self._db.execute("SELECT id FROM environments WHERE body = ?", (body,)).fetchone()[0])

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, msgspec.DecodeError) as error:
            raise BaselineError(f"{self.path}: {error}") from error


@dataclass(frozen=True, slots=True)
class View:
    """The entries, floors and ceilings of one environment, for reading."""

    store: Baselines
    environment: Environment
    floors: Floors | None
    ceilings: MeasuredCeilings | None = None

    def get(self, signatures: Sequence[str]) -> dict[str, Baseline]:
        """Return the entries of these signatures that there are."""
        return self.store.get(self.environment, signatures)


def _is_database(path: Path) -> bool:
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def _text(environment: Environment) -> str:
    return msgspec.json.encode(environment).decode()
