"""What went into an archive and what waits for it: a small SQLite file beside the results, written by one process;
each archive has its own.

A thing is seen, stored or lost: gone from the spool before it was stored. Each change is one transaction and is on disk
before it returns, so that a process that is killed anywhere puts again, under the same name, what it may have put. Rows
wait as batches of finished bytes, which hold each once, however often they are sent.
"""

from collections.abc import Iterable, Mapping
from datetime import date
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from taxbreak_vllm.archive.layout import day_of
from taxbreak_vllm.baselines.database import Schema, StoreError, open_database, transaction
from taxbreak_vllm.model.errors import SettingsError

_WAIT_S = 10.0
_TABLES = """
CREATE TABLE things (
    kind TEXT, name TEXT, is_stored INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (kind, name)
) WITHOUT ROWID;
CREATE TABLE steps (step_id TEXT PRIMARY KEY, info BLOB NOT NULL, stored_unix_ns INTEGER NOT NULL);
CREATE TABLE told (kind TEXT, name TEXT, PRIMARY KEY (kind, name)) WITHOUT ROWID;
CREATE TABLE batches (path TEXT PRIMARY KEY, data BLOB NOT NULL);
CREATE TABLE totals (counter TEXT, label TEXT, value INTEGER NOT NULL, PRIMARY KEY (counter, label)) WITHOUT ROWID;
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""
_SCHEMA = Schema(kind="archive", layout=1, tables=_TABLES, known_by="things")


def ledger_path(results_path: Path, url: str) -> Path:
    """Return the file of an archive, beside the results: each archive has its own."""
    return results_path.with_name(f"archive-{sha256(url.encode()).hexdigest()[:8]}.sqlite3")


class Batch(NamedTuple):
    """A finished object and its path."""

    path: str
    data: bytes


class Look(NamedTuple):
    """What a look at a spool shows: the names of what is not stored, oldest first, and of what went before it was."""

    waiting: list[str]
    lost: list[str]


class Standing(NamedTuple):
    """How an archive stands: counters by name and label, the Unix times in ns of the last look and of what waits."""

    totals: Mapping[tuple[str, str], int]
    looked_unix_ns: int | None
    oldest_unix_ns: int | None


class Ledger:
    """An open ledger; a context manager. Raises SettingsError for a file that is something else."""

    def __init__(self, path: Path) -> None:
        try:
            self._db = open_database(path, _SCHEMA, wait_s=_WAIT_S)
        except StoreError as error:
            raise SettingsError(f"{error}; remove the file, or set TAXBREAK_RESULTS to another folder") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._db.close()

    def things(self, kind: str) -> dict[str, bool]:
        """Return the things of a kind that were seen, and whether each is stored."""
        rows = self._db.execute("SELECT name, is_stored FROM things WHERE kind = ?", (kind,))
        return {name: bool(is_stored) for name, is_stored in rows}

    def look(self, kind: str, seen: Mapping[str, int], *, now_ns: int) -> Look:
        """Take over which things of a kind there are now, by name the Unix time of each in ns; count what is lost."""
        with transaction(self._db):
            known = self.things(kind)
            gone = known.keys() - seen.keys()
            fresh = seen.keys() - known.keys()
            found = Look(
                waiting=sorted((name for name in seen if not known.get(name)), key=lambda name: (seen[name], name)),
                lost=sorted(name for name in gone if not known[name]),
            )
            self._db.executemany("DELETE FROM things WHERE kind = ? AND name = ?", [(kind, name) for name in gone])
            self._db.executemany("INSERT INTO things (kind, name) VALUES (?, ?)", [(kind, name) for name in fresh])
            if found.lost:
                self._add("lost", kind, len(found.lost))
            self._put_fact("looked", str(now_ns))
            self._put_fact("oldest", str(seen[found.waiting[0]]) if found.waiting else None)
        return found

    def store(
        self, kind: str, name: str, *, num_bytes: int, now_ns: int, step: tuple[str, bytes] | None = None
    ) -> None:
        """Note that a thing is in the archive; `step` is the id and `step.json` of a capture, whose row follows."""
        with transaction(self._db):
            self._db.execute("INSERT OR REPLACE INTO things (kind, name, is_stored) VALUES (?, ?, 1)", (kind, name))
            self._add("objects", kind, 1)
            self._spend(num_bytes, now_ns)
            if step is not None:
                self._db.execute("INSERT OR IGNORE INTO steps VALUES (?, ?, ?)", (*step, now_ns))

    def pass_over(self, kind: str, name: str, reason: str) -> None:
        """Note that a thing will never be stored, counted as a failure."""
        with transaction(self._db):
            self._db.execute("INSERT OR REPLACE INTO things (kind, name, is_stored) VALUES (?, ?, 1)", (kind, name))
            self._add("failures", reason, 1)

    def fail(self, reason: str) -> None:
        """Count a failure."""
        with transaction(self._db):
            self._add("failures", reason, 1)

    def steps(self) -> list[tuple[str, bytes]]:
        """Return the ids of stored steps without a row, with their `step.json`, in the order they were stored."""
        return self._db.execute("SELECT step_id, info FROM steps ORDER BY stored_unix_ns, step_id").fetchall()

    def told(self, kind: str) -> set[str]:
        """Return the names of a kind that were told last."""
        return {name for (name,) in self._db.execute("SELECT name FROM told WHERE kind = ?", (kind,))}

    def add(
        self, batches: Iterable[Batch], *, steps: Iterable[str] = (), told: Mapping[str, Iterable[str]] | None = None
    ) -> None:
        """Take batches in and, with them, that these steps have their rows and what was told last of some kinds."""
        with transaction(self._db):
            self._db.executemany("INSERT OR IGNORE INTO batches VALUES (?, ?)", batches)
            self._db.executemany("DELETE FROM steps WHERE step_id = ?", [(step_id,) for step_id in steps])
            for kind, names in (told or {}).items():
                self._db.execute("DELETE FROM told WHERE kind = ?", (kind,))
                self._db.executemany("INSERT OR IGNORE INTO told VALUES (?, ?)", [(kind, name) for name in names])

    def batches(self) -> list[Batch]:
        """Return the batches that are not stored yet."""
        return [Batch(*row) for row in self._db.execute("SELECT path, data FROM batches ORDER BY path")]

    def store_batch(self, batch: Batch, kind: str, *, now_ns: int) -> None:
        """Note that a batch is in the archive."""
        with transaction(self._db):
            if self._db.execute("DELETE FROM batches WHERE path = ?", (batch.path,)).rowcount:
                self._add("objects", kind, 1)
                self._spend(len(batch.data), now_ns)

    def spent(self, day: date) -> int:
        """Return how many bytes were stored on a day, if it is the last on which any were."""
        return int(self.fact("day_bytes") or 0) if self.fact("day") == day.isoformat() else 0

    def fill(self, day: date) -> bool:
        """Note, and count as a failure, that no more goes out on a day; return whether that is new."""
        with transaction(self._db):
            is_new = self.fact("full") != day.isoformat()
            if is_new:
                self._put_fact("full", day.isoformat())
                self._add("failures", "day_full", 1)
        return is_new

    def fact(self, name: str) -> str | None:
        """Return a fact, None where it was not noted."""
        row = self._db.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return None if row is None else str(row[0])

    def standing(self) -> Standing:
        """Return how the archive stands."""
        totals = {(counter, label): value for counter, label, value in self._db.execute("SELECT * FROM totals")}
        looked, oldest = self.fact("looked"), self.fact("oldest")
        return Standing(totals, None if looked is None else int(looked), None if oldest is None else int(oldest))

    def _spend(self, num_bytes: int, now_ns: int) -> None:
        day = day_of(now_ns)
        spent = self.spent(day) + num_bytes
        self._put_fact("day", day.isoformat())
        self._put_fact("day_bytes", str(spent))
        self._add("bytes", "", num_bytes)

    def _put_fact(self, name: str, value: str | None) -> None:
        if value is None:
            self._db.execute("DELETE FROM facts WHERE name = ?", (name,))
        else:
            self._db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))

    def _add(self, counter: str, label: str, value: int) -> None:
        self._db.execute(
            "INSERT INTO totals VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET value = value + excluded.value",
            (counter, label, value),
        )
