"""What a scrape reads of the analyzed steps: their balances and dilations, by series."""

import sqlite3
from collections import defaultdict
from dataclasses import fields

from taxbreak_vllm.service.results.rows import Balance, Series
from taxbreak_vllm.service.results.window import BALANCE_SUMS, TIERS

_SUMS = ", ".join(f"sum_{index}" for index in range(3 + len(TIERS)))
_BALANCES = f"""
WITH sums (series_id, bucket, seq, {_SUMS}) AS (
    SELECT series_id, bucket, max(seq), {BALANCE_SUMS} FROM steps WHERE started_unix_ns >= ? GROUP BY series_id, bucket
)
SELECT model_name, engine, series.rank, phase, sums.bucket, step_id, started_unix_ns, window_ns, {_SUMS}
FROM sums JOIN steps USING (seq) JOIN series ON series.series_id = sums.series_id
"""
_DILATIONS = "SELECT series_id, dilation FROM steps WHERE started_unix_ns >= ? AND dilation IS NOT NULL"


def read_balances(db: sqlite3.Connection, *, since_ns: int) -> list[Balance]:
    """Return the balance of every series and bucket that has a step since then."""
    names = [field.name for field in fields(Balance)[1:-1]]
    return [
        Balance(series=Series(*row[:4]), **dict(zip(names, row[4:11], strict=True)), tier_sums=row[11:])
        for row in db.execute(_BALANCES, (since_ns,))
    ]


def read_dilations(db: sqlite3.Connection, *, since_ns: int) -> dict[Series, list[float]]:
    """Return for every series the dilations of its steps since then."""
    found: dict[int, list[float]] = defaultdict(list)
    for series_id, dilation in db.execute(_DILATIONS, (since_ns,)):
        found[series_id].append(dilation)
    series = db.execute("SELECT series_id, model_name, engine, rank, phase FROM series")
    return {Series(*labels): found[series_id] for series_id, *labels in series if series_id in found}


def read_servers(db: sqlite3.Connection, *, since_ns: int) -> dict[tuple[str, str], int]:
    """Return the model and id of every server that has a step since then, with when its newest one started."""
    query = (
        "SELECT model_name, server_id, max(started_unix_ns) FROM steps JOIN series USING (series_id)"
        " WHERE started_unix_ns >= ? GROUP BY model_name, server_id"
    )
    return {(model_name, server_id): at_ns for model_name, server_id, at_ns in db.execute(query, (since_ns,))}
