"""The results file itself: its tables, how it is opened, what a transaction is.

SQLite with a write-ahead log, so readers never wait for the analyzer; commits reach the disk before they return, for a
capture is marked as analyzed right after. The file is 0600 and says the version of its tables in `user_version`.

A step is one narrow row of everything that adds up, under its path in the breakdown (`"host.python_ns"`); its dearest
ops and its families are rows too, so that a window is summed in C, without the interpreter's lock. Its whole JSON is
kept aside. What a scrape reads of a step is in the index by start.
"""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from taxbreak_vllm.model.errors import SettingsError
from taxbreak_vllm.service.window import SUMMED, TIER_SUMS

VERSION = 2

_BUSY_TIMEOUT_S = 10.0
_LOG_BYTES = 16 * 2**20
_SUMMED = ", ".join(f'"{path}" INTEGER' for path in SUMMED)
_TIERS = ", ".join(f'"{path}"' for path in TIER_SUMS)
_TABLES = f"""
CREATE TABLE series (
    series_id INTEGER PRIMARY KEY, model_name TEXT, engine TEXT, rank INTEGER, phase TEXT,
    UNIQUE (model_name, engine, rank, phase)
);
CREATE TABLE steps (
    seq INTEGER PRIMARY KEY, series_id INTEGER NOT NULL, step_id TEXT NOT NULL UNIQUE, server_id TEXT NOT NULL,
    rank INTEGER NOT NULL, graph_mode TEXT NOT NULL, started_unix_ns INTEGER NOT NULL,
    analyzed_unix_ns INTEGER NOT NULL, capture_id TEXT, bucket INTEGER NOT NULL, hdbi REAL, dilation REAL,
    residual REAL, calibration TEXT NOT NULL, replay TEXT NOT NULL, source TEXT NOT NULL, notes TEXT NOT NULL,
    step_notes TEXT NOT NULL, unique_kernels INTEGER NOT NULL, {_SUMMED}
);
CREATE INDEX steps_by_start ON steps (
    started_unix_ns, seq, series_id, bucket, "device.active_ns", "taxes.orchestration_ns", hdbi, dilation,
    {_TIERS}
);
CREATE INDEX steps_by_age ON steps (analyzed_unix_ns);
CREATE INDEX steps_by_capture ON steps (capture_id) WHERE capture_id IS NOT NULL;
CREATE TABLE breakdowns (
    seq INTEGER PRIMARY KEY REFERENCES steps ON DELETE CASCADE, breakdown BLOB NOT NULL
);
CREATE TABLE families (
    seq INTEGER REFERENCES steps ON DELETE CASCADE, family TEXT, kernels INTEGER, active_ns INTEGER, launches INTEGER,
    PRIMARY KEY (seq, family)
) WITHOUT ROWID;
CREATE TABLE ops (
    op_id INTEGER PRIMARY KEY, op TEXT, kernel TEXT, family TEXT, i_lib INTEGER, UNIQUE (op, kernel)
);
CREATE TABLE top (
    seq INTEGER REFERENCES steps ON DELETE CASCADE, position INTEGER, op_id INTEGER NOT NULL, count INTEGER,
    delta_ft_ns INTEGER, delta_ct_ns INTEGER, delta_kt_ns INTEGER, active_ns INTEGER, tier INTEGER,
    PRIMARY KEY (seq, position)
) WITHOUT ROWID;
CREATE TABLE totals (
    model_name TEXT, engine TEXT, rank INTEGER, phase TEXT, counter TEXT, label TEXT, value INTEGER NOT NULL,
    PRIMARY KEY (model_name, engine, rank, phase, counter, label)
) WITHOUT ROWID;
CREATE TABLE workers (server_id TEXT, rank INTEGER, state BLOB NOT NULL, PRIMARY KEY (server_id, rank));
CREATE TABLE attempts (step_id TEXT PRIMARY KEY, num INTEGER NOT NULL);
CREATE TABLE failures (
    step_id TEXT PRIMARY KEY, server_id TEXT NOT NULL, rank INTEGER NOT NULL, capture_id TEXT,
    reason TEXT NOT NULL, detail TEXT NOT NULL, failed_unix_ns INTEGER NOT NULL
);
CREATE INDEX failures_by_capture ON failures (capture_id) WHERE capture_id IS NOT NULL;
CREATE TABLE captures (
    capture_id TEXT PRIMARY KEY, server_id TEXT NOT NULL, steps INTEGER NOT NULL, phase TEXT, stacks INTEGER NOT NULL,
    created_unix_ns INTEGER NOT NULL, expires_unix_ns INTEGER NOT NULL,
    recorded INTEGER NOT NULL DEFAULT 0, is_cancelled INTEGER NOT NULL DEFAULT 0
);
"""


def open_database(path: Path) -> sqlite3.Connection:
    """Open the results file, created where there is none.

    Raises SettingsError where it cannot be, is something else, or was written by a newer version.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _keep_private(path)
        # One thread at a time uses a connection, but FastAPI may enter and leave a request in different threads.
        db = sqlite3.connect(path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
    except (OSError, sqlite3.Error) as error:
        raise SettingsError(f"{path}: cannot open the results: {error}; set TAXBREAK_RESULTS to another file") from None
    try:
        _prepare(db, path)
    except sqlite3.Error as error:
        db.close()
        raise SettingsError(f"{path}: cannot use the results: {error}; set TAXBREAK_RESULTS to another file") from None
    except BaseException:
        db.close()
        raise
    return db


def _keep_private(path: Path) -> None:
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if os.fstat(file).st_mode & 0o077:
            os.fchmod(file, 0o600)
    finally:
        os.close(file)


def _prepare(db: sqlite3.Connection, path: Path) -> None:
    if _version(db) == 0:
        with transaction(db):
            if _version(db) == 0:  # another process may have been first
                for statement in filter(str.strip, _TABLES.split(";")):
                    db.execute(statement)
                db.execute(f"PRAGMA user_version = {VERSION}")
    if (found := _version(db)) != VERSION:
        advice = "upgrade it" if found > VERSION else "remove the file"
        raise SettingsError(
            f"{path}: the results are of version {found}, this taxbreak writes {VERSION};"
            f" {advice} or set TAXBREAK_RESULTS to another file"
        )
    # It lasts, and costs nothing where it is so already; SQLite waits for no lock here, so a later opening may do it.
    with suppress(sqlite3.OperationalError):
        db.execute("PRAGMA journal_mode = WAL")
    db.execute(f"PRAGMA journal_size_limit = {_LOG_BYTES}")
    db.execute("PRAGMA foreign_keys = ON")  # what hangs on a step goes with it
    db.execute("PRAGMA temp_store = MEMORY")  # a sidecar may have no other folder to write to


def _version(db: sqlite3.Connection) -> int:
    version: int = db.execute("PRAGMA user_version").fetchone()[0]
    return version


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
