"""Analyzed steps as rows: one of all that adds up, its families and dearest ops beside it, its JSON kept aside.

In: a step's breakdown, within a transaction of the caller's. Out: rows, newest first, without the breakdowns.
"""

import sqlite3
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import replace

import msgspec

from taxbreak_vllm.limit.phases import step_bar
from taxbreak_vllm.model.breakdown import Breakdown, Tier
from taxbreak_vllm.model.step import STEP_BUCKETS_NS, Phase, StepInfo
from taxbreak_vllm.service.results.rows import StepRow
from taxbreak_vllm.service.results.window import TIERS, family_values, summed_values, top_values

NEWEST = "ORDER BY started_unix_ns DESC, seq DESC LIMIT ?"
_COLUMNS = {
    "rank": "series.rank",
    "active_ns": '"device.active_ns"',
    "exposed_ns": '"device.idle.host_ns"',
    **{f"{tax}_ns": f'"taxes.{tax}_ns"' for tax in ("delta_ft", "delta_ct", "delta_kt", "orchestration")},
}
_decode_replay = msgspec.json.Decoder(dict[Tier, float]).decode


def insert_step(db: sqlite3.Connection, step_id: str, info: StepInfo, breakdown: Breakdown, *, now_ns: int) -> None:
    """Store the breakdown of one step under its id."""
    (step,) = breakdown.steps
    server, calibration = info.server, breakdown.calibration
    labels = {"model_name": server.model_name, "engine": server.engine, "rank": server.rank, "phase": info.phase}
    row = {
        "series_id": _intern(db, "series", "series_id", labels),
        "step_id": step_id,
        "server_id": server.server_id,
        "rank": server.rank,
        "graph_mode": info.graph_mode,
        "started_unix_ns": info.started_unix_ns,
        "analyzed_unix_ns": now_ns,
        "capture_id": info.capture_id,
        "bucket": bisect_left(STEP_BUCKETS_NS, step.window_ns),
        "hdbi": step.hdbi,
        "dilation": calibration.dilation,
        "residual": calibration.residual,
        "calibration": calibration.state,
        "replay": _text(breakdown.coverage.replay),
        "source": _text(replace(breakdown.source, path="")),
        "notes": _text(breakdown.notes),
        "step_notes": _text(step.notes),
        "unique_kernels": step.unique_kernels,
        "limit_ns": None if step.limit is None else step.limit.bar.limit_ns or None,
    }
    insert(db, "steps", row | summed_values(breakdown))
    seq = {"seq": db.execute("SELECT last_insert_rowid()").fetchone()[0]}
    named = replace(breakdown, steps=(replace(step, name=step_id),))
    insert(db, "breakdowns", seq | {"breakdown": named.to_json()})
    insert(db, "limits", seq | {"step_bar": msgspec.json.encode(step_bar(step))})
    for family, share in step.families.items():
        insert(db, "families", seq | {"family": family} | family_values(share))
    for position, top in enumerate(step.top):
        op = {"op": top.op, "kernel": top.kernel}
        op_id = _intern(db, "ops", "op_id", op, {"family": top.family, "i_lib": top.i_lib})
        place = {"position": position, "op_id": op_id, "tier": TIERS.index(top.tier)}
        insert(db, "top", seq | place | top_values(top))


def read_steps(
    db: sqlite3.Connection,
    *,
    since_ns: int | None,
    limit: int,
    after: str | None,
    **equal: str | None,
) -> list[StepRow]:
    """Return the newest steps, newest first; with `after`, the id of a step, those that follow it in that order.

    `equal` names columns and what they hold, as in `condition`.
    """
    where, values = condition(since_ns=since_ns, **equal)
    if after is not None:
        where += " AND (started_unix_ns, seq) < (SELECT started_unix_ns, seq FROM steps WHERE step_id = ?)"
        values.append(after)
    names = StepRow.__dataclass_fields__
    columns = ", ".join(_COLUMNS.get(name, name) for name in names)
    query = f"SELECT {columns} FROM steps JOIN series USING (series_id) WHERE {where} {NEWEST}"
    rows = (dict(zip(names, row, strict=True)) for row in db.execute(query, (*values, limit)))
    return [StepRow(**row | {"phase": Phase(row["phase"]), "replay": _decode_replay(row["replay"])}) for row in rows]


def condition(*, since_ns: int | None, **equal: str | None) -> tuple[str, list[object]]:
    """Return the condition that chooses steps by start and whatever else is not None, and the values for it."""
    wanted = {name: value for name, value in equal.items() if value is not None}
    where = " AND ".join(["started_unix_ns >= ?", *(f"{name} = ?" for name in wanted)])
    return where, [since_ns or 0, *wanted.values()]


def insert(db: sqlite3.Connection, table: str, row: Mapping[str, object]) -> bool:
    """Insert a row unless its key is there; return whether it was new."""
    columns = ", ".join(f'"{column}"' for column in row)
    query = f"INSERT INTO {table} ({columns}) VALUES ({', '.join('?' * len(row))}) ON CONFLICT DO NOTHING"
    return db.execute(query, tuple(row.values())).rowcount == 1


def _intern(
    db: sqlite3.Connection,
    table: str,
    id_column: str,
    key: Mapping[str, object],
    others: Mapping[str, object] | None = None,
) -> int:
    """Return the id of the row with this key, which is inserted where it is new."""
    query = f"SELECT {id_column} FROM {table} WHERE {' AND '.join(f'{column} = ?' for column in key)}"
    found = db.execute(query, tuple(key.values())).fetchone()
    if found is None:
        insert(db, table, {**key, **(others or {})})
        found = db.execute(query, tuple(key.values())).fetchone()
    return int(found[0])


def _text(value: object) -> str:
    return msgspec.json.encode(value).decode()
