"""SQLite files of ours: opened by any version of taxbreak, and fitted to its tables in place, rows and all.

In: a path and a `Schema`. Out: a connection to a file that has every table, column and index of it. What a file lacks
is added, with NULL or a default in the rows that are there. What only another version knows stays, so that versions may
take turns on one file; where it would refuse our rows, the table is built anew from the columns both have. That happens
in one transaction, which others that open the file wait for. A fingerprint in the file says that nothing is to be done.
"""

import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path

from taxbreak_vllm.model.errors import TaxbreakError

_LOG_BYTES = 16 * 2**20
_MARK = "taxbreak_schema"
_EMPTY = {"INTEGER": "0", "REAL": "0.0", "TEXT": "''", "BLOB": "x''"}


class StoreError(TaxbreakError):
    """A file cannot be opened as a database, is another one, or of a version to come."""


@dataclass(frozen=True)
class Schema:
    """The tables of one kind of file, as CREATE statements.

    `layout` is raised where the same columns come to mean something else: a file of a higher one is refused, and where
    it was lower the tables `anew` are begun again, without their rows. A file is of this kind if its mark says so or,
    written before there were marks, if it has the table `known_by`.
    """

    kind: str
    layout: int
    tables: str
    known_by: str
    anew: tuple[str, ...] = ()

    @cached_property
    def fingerprint(self) -> str:
        """What tells this schema from every other one."""
        return sha256(f"{self.layout} {self.tables}".encode()).hexdigest()[:16]


def open_database(path: Path, schema: Schema, *, wait_s: float, one_thread: bool = True) -> sqlite3.Connection:
    """Open a file, its owner's alone where it is made here; transactions wait `wait_s` for those of others.

    Raises StoreError, and leaves the file as it is, where it cannot be opened, is no such file, or of a newer layout.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)
        db = sqlite3.connect(path, timeout=wait_s, isolation_level=None, check_same_thread=one_thread)
    except (OSError, sqlite3.Error) as error:
        raise StoreError(f"{path}: cannot open the {schema.kind}: {error}") from None
    try:
        _fit(db, schema, path)
        _configure(db)
    except sqlite3.Error as error:
        db.close()
        raise StoreError(f"{path}: cannot use the {schema.kind}: {error}") from None
    except BaseException:
        db.close()
        raise
    return db


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """Run a block as one transaction that other writers wait for; nothing of it stays if it raises."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def _fit(db: sqlite3.Connection, schema: Schema, path: Path) -> None:
    layout, mark = _layout(db), _mark(db)
    if (layout, mark) == (schema.layout, (schema.kind, schema.fingerprint)):
        return
    tables = _statements(db, "table")
    is_ours = mark[0] == schema.kind if mark else layout > 0 and schema.known_by in tables
    if tables and not is_ours:
        raise StoreError(f"{path}: a database, but not of {schema.kind}")
    if layout > schema.layout:
        raise StoreError(f"{path}: {schema.kind} of another version of taxbreak ({layout}): upgrade, or use a new file")
    if _changes(db, schema):
        with transaction(db):
            for statement in _changes(db, schema):  # once more: another process may have been first
                db.execute(statement)


def _configure(db: sqlite3.Connection) -> None:
    # It lasts, and costs nothing where it is so already; SQLite waits for no lock here, so a later opening may do it.
    with suppress(sqlite3.OperationalError):
        db.execute("PRAGMA journal_mode = WAL")  # readers and a writer go on beside each other
    db.execute(f"PRAGMA journal_size_limit = {_LOG_BYTES}")
    db.execute("PRAGMA foreign_keys = ON")
    db.execute("PRAGMA temp_store = MEMORY")  # a sidecar may have no other folder to write to


def _changes(db: sqlite3.Connection, schema: Schema) -> list[str]:
    """Return the statements that fit a file to a schema."""
    changes: list[str] = []
    found, fresh = _statements(db, "table"), set()
    if 0 < _layout(db) < schema.layout:
        changes += [f"DROP TABLE {name}" for name in schema.anew if name in found]
        found = {name: sql for name, sql in found.items() if name not in schema.anew}
    with closing(sqlite3.connect(":memory:")) as wanted:
        wanted.executescript(schema.tables)
        for name, sql in _statements(wanted, "table").items():
            own, others = _columns(wanted, name), _columns(db, name)
            if name not in found:
                changes.append(sql)
                fresh.add(name)
            elif _can_stay(own, others):
                changes += [f"ALTER TABLE {name} ADD COLUMN {own[new].definition}" for new in own if new not in others]
            else:
                changes += _rebuild(name, sql, own, others)
                fresh.add(name)
        indexes = _statements(db, "index")
        for name, sql in _statements(wanted, "index").items():
            (table,) = wanted.execute("SELECT tbl_name FROM sqlite_master WHERE name = ?", (name,)).fetchone()
            is_there = name in indexes and table not in fresh
            if not is_there:
                changes.append(sql)
            elif not _indexed(wanted, name) <= _indexed(db, name):
                changes += [f"DROP INDEX {name}", sql]
    if changes or _MARK not in found:
        changes += _marks(schema)
    return changes


def _marks(schema: Schema) -> Iterable[str]:
    yield f"CREATE TABLE IF NOT EXISTS {_MARK} (kind TEXT PRIMARY KEY, fingerprint TEXT NOT NULL)"
    yield f"INSERT OR REPLACE INTO {_MARK} (kind, fingerprint) VALUES ('{schema.kind}', '{schema.fingerprint}')"
    yield f"PRAGMA user_version = {schema.layout}"


@dataclass(frozen=True, slots=True)
class _Column:
    name: str
    kind: str
    is_required: bool
    default: str | None
    key: int

    @property
    def filling(self) -> str:
        """What stands in it where nothing was given, as SQL."""
        return self.default or (_EMPTY[self.kind] if self.is_required else "NULL")

    @property
    def definition(self) -> str:
        return f'"{self.name}" {self.kind} {"NOT NULL" if self.is_required else ""} DEFAULT {self.filling}'


def _can_stay(own: Mapping[str, _Column], others: Mapping[str, _Column]) -> bool:
    """Whether a table takes our rows, once the columns it lacks are added."""
    foreign = [column for name, column in others.items() if name not in own]
    return (
        all(_form(column) == _form(others[name]) for name, column in own.items() if name in others)
        and not any(column.key for name, column in own.items() if name not in others)
        and not any(column.key or (column.is_required and column.default is None) for column in foreign)
    )


def _form(column: _Column) -> tuple[str, bool, int]:
    return column.kind, column.is_required, column.key


def _rebuild(name: str, sql: str, own: Mapping[str, _Column], others: Mapping[str, _Column]) -> Iterable[str]:
    """Yield the statements that make a table anew and keep its rows, for a connection that checks no foreign keys."""
    kept = {new: f'coalesce("{new}", {own[new].filling})' if own[new].is_required else f'"{new}"' for new in own}
    values = (kept[new] if new in others else own[new].filling for new in own)
    yield sql.replace(f"CREATE TABLE {name}", f"CREATE TABLE new_{name}", 1)
    yield f"INSERT INTO new_{name} ({_quoted(own)}) SELECT {', '.join(values)} FROM {name}"
    yield f"DROP TABLE {name}"
    yield f"ALTER TABLE new_{name} RENAME TO {name}"


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)


def _statements(db: sqlite3.Connection, kind: str) -> dict[str, str]:
    """Return the CREATE statement of every table or index that has one, by name."""
    query = "SELECT name, sql FROM sqlite_master WHERE type = ? AND sql IS NOT NULL AND name NOT LIKE 'sqlite%'"
    return dict(db.execute(query, (kind,)))


def _columns(db: sqlite3.Connection, table: str) -> dict[str, _Column]:
    rows = db.execute('SELECT name, type, "notnull", dflt_value, pk FROM pragma_table_info(?)', (table,))
    return {
        name: _Column(name, kind, bool(is_required), default, key) for name, kind, is_required, default, key in rows
    }


def _indexed(db: sqlite3.Connection, index: str) -> set[str]:
    return {name for (name,) in db.execute("SELECT name FROM pragma_index_info(?)", (index,))}


def _layout(db: sqlite3.Connection) -> int:
    layout: int = db.execute("PRAGMA user_version").fetchone()[0]
    return layout


def _mark(db: sqlite3.Connection) -> tuple[str, str] | None:
    """Return of which kind a file says it is, and with which fingerprint."""
    if db.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (_MARK,)).fetchone() is None:
        return None
    mark: tuple[str, str] | None = db.execute(f"SELECT kind, fingerprint FROM {_MARK}").fetchone()
    return mark
