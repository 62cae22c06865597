"""Requests for steps in the results: whether one may be made, and how far each has come."""

import sqlite3

from taxbreak_vllm.baselines.database import transaction
from taxbreak_vllm.model.step import Phase
from taxbreak_vllm.model.worker import CaptureRequest
from taxbreak_vllm.service.results.rows import CaptureRow, Refusal

_MINUTE_NS = 60 * 10**9
_CAPTURES = """
WITH chosen AS (
    SELECT * FROM captures
    WHERE (?1 IS NULL OR capture_id = ?1) AND (?2 IS NULL OR (created_unix_ns, capture_id)
        < (SELECT created_unix_ns, capture_id FROM captures WHERE capture_id = ?2))
    ORDER BY created_unix_ns DESC, capture_id DESC LIMIT ?3
), by_rank AS (
    SELECT capture_id, json_extract(CAST(state AS TEXT), '$.server.engine') AS engine,
        (SELECT count(*) FROM steps s WHERE s.capture_id = chosen.capture_id AND s.rank = w.rank) AS analyzed,
        (SELECT count(*) FROM failures f WHERE f.capture_id = chosen.capture_id AND f.rank = w.rank) AS failed
    FROM chosen JOIN workers w USING (server_id)
    WHERE json_extract(CAST(state AS TEXT), '$.records') IS NOT 0
), by_engine AS (
    SELECT capture_id, min(analyzed) AS analyzed, min(analyzed + failed) AS settled
    FROM by_rank GROUP BY capture_id, engine
)
SELECT capture_id, server_id, steps, phase, stacks, created_unix_ns, expires_unix_ns, recorded, is_cancelled,
    coalesce((SELECT max(analyzed) FROM by_engine b WHERE b.capture_id = chosen.capture_id), 0),
    coalesce((SELECT max(settled) FROM by_engine b WHERE b.capture_id = chosen.capture_id), 0)
FROM chosen ORDER BY created_unix_ns DESC, capture_id DESC
"""
_RUNNING = """
SELECT capture_id FROM captures
WHERE server_id = ? AND NOT is_cancelled AND recorded < steps AND expires_unix_ns > ?
"""
_NTH_NEWEST = "SELECT created_unix_ns FROM captures ORDER BY created_unix_ns DESC LIMIT 1 OFFSET ?"
_INSERT = """
INSERT INTO captures (capture_id, server_id, steps, phase, stacks, created_unix_ns, expires_unix_ns)
VALUES (?, ?, ?, ?, ?, ?, ?)
"""


def add_capture(
    db: sqlite3.Connection, server_id: str, request: CaptureRequest, *, per_minute: int | None
) -> Refusal | None:
    """Store a request, unless that server is recording another one or there were `per_minute` in the last minute."""
    now_ns = request.created_unix_ns
    asked = (request.capture_id, server_id, request.steps, request.phase, request.stacks)
    with transaction(db):
        running = db.execute(_RUNNING, (server_id, now_ns)).fetchone()
        if running is not None:
            return Refusal(running_id=running[0])
        oldest = None if per_minute is None else db.execute(_NTH_NEWEST, (per_minute - 1,)).fetchone()
        if oldest is not None and (retry_after_ns := oldest[0] + _MINUTE_NS - now_ns) > 0:
            return Refusal(retry_after_ns=retry_after_ns)
        db.execute(_INSERT, (*asked, now_ns, request.expires_unix_ns))
    return None


def read_captures(db: sqlite3.Connection, capture_id: str | None, *, limit: int, after: str | None) -> list[CaptureRow]:
    """Return the newest requests, newest first, or the one of this id; with `after` those that follow that one."""
    return [_capture_row(*row) for row in db.execute(_CAPTURES, (capture_id, after, limit))]


def _capture_row(
    capture_id: str, server_id: str, steps: int, phase: str | None, stacks: int, created_unix_ns: int, *others: int
) -> CaptureRow:
    expires_unix_ns, recorded, is_cancelled, analyzed, settled = others
    return CaptureRow(
        capture_id=capture_id,
        server_id=server_id,
        steps=steps,
        phase=Phase(phase) if phase else None,
        stacks=bool(stacks),
        created_unix_ns=created_unix_ns,
        expires_unix_ns=expires_unix_ns,
        recorded=recorded,
        is_cancelled=bool(is_cancelled),
        analyzed=analyzed,
        settled=settled,
    )
