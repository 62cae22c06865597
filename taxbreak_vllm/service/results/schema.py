"""The results file itself: its tables, how it is opened, what a transaction is.

SQLite with a write-ahead log, so readers never wait for the analyzer; commits reach the disk before they return, for a
capture is marked as analyzed right after. The file is 0600; one that another version wrote is fitted to these tables.

A step is one narrow row of everything that adds up, under its path in the breakdown (`"host.python_ns"`); its dearest
ops and its families are rows too, so that a window is summed in C, without the interpreter's lock. Its whole JSON is
kept aside. What a scrape reads of a step is in the index by start.
"""

import sqlite3
from contextlib import suppress
from pathlib import Path

from taxbreak_vllm.baselines.database import Schema, StoreError, open_database
from taxbreak_vllm.model.errors import SettingsError
from taxbreak_vllm.service.results.window import FAMILY_SUMS, SUMMED, TIER_SUMS, TOP_SUMS

_WAIT_S = 10.0
_SUMMED, _FAMILY_SUMS, _TOP_SUMS = (
    ", ".join(f'"{path}" INTEGER' for path in paths) for paths in (SUMMED, FAMILY_SUMS, TOP_SUMS)
)
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
    step_notes TEXT NOT NULL, unique_kernels INTEGER NOT NULL, limit_ns INTEGER, {_SUMMED}
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
CREATE TABLE limits (
    seq INTEGER PRIMARY KEY REFERENCES steps ON DELETE CASCADE, step_bar BLOB NOT NULL
);
CREATE TABLE families (
    seq INTEGER REFERENCES steps ON DELETE CASCADE, family TEXT, {_FAMILY_SUMS}, PRIMARY KEY (seq, family)
) WITHOUT ROWID;
CREATE TABLE ops (
    op_id INTEGER PRIMARY KEY, op TEXT, kernel TEXT, family TEXT, i_lib INTEGER, UNIQUE (op, kernel)
);
CREATE TABLE top (
    seq INTEGER REFERENCES steps ON DELETE CASCADE, position INTEGER, op_id INTEGER NOT NULL,
    {_TOP_SUMS}, tier INTEGER, PRIMARY KEY (seq, position)
) WITHOUT ROWID;
CREATE TABLE totals (
    model_name TEXT, engine TEXT, rank INTEGER, phase TEXT, counter TEXT, label TEXT, value INTEGER NOT NULL,
    PRIMARY KEY (model_name, engine, rank, phase, counter, label)
) WITHOUT ROWID;
CREATE TABLE workers (server_id TEXT, rank INTEGER, state BLOB NOT NULL, PRIMARY KEY (server_id, rank));
CREATE TABLE engines (server_id TEXT, engine TEXT, state BLOB NOT NULL, PRIMARY KEY (server_id, engine));
CREATE TABLE frontends (server_id TEXT, api TEXT, state BLOB NOT NULL, PRIMARY KEY (server_id, api));
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


SCHEMA = Schema(
    kind="results",
    layout=2,
    tables=_TABLES,
    known_by="totals",
    anew=("steps", "breakdowns", "limits", "families", "ops", "top", "series"),  # counters and what was asked for stay
)


def open_results(path: Path) -> sqlite3.Connection:
    """Open the results file, created where there is none.

    Raises SettingsError where it cannot be, is something else, or was written by a newer version.
    """
    try:
        with suppress(FileNotFoundError):
            if path.stat().st_mode & 0o077:
                path.chmod(0o600)
        # One thread at a time uses a connection, but FastAPI may enter and leave a request in different threads.
        return open_database(path, SCHEMA, wait_s=_WAIT_S, one_thread=False)
    except OSError as error:
        reason = f"{path}: cannot open the results: {error.strerror or error}"
    except StoreError as error:
        reason = str(error)
    raise SettingsError(f"{reason}; set TAXBREAK_RESULTS to another file")
