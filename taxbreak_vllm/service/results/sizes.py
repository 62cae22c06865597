"""What the transition is read from: the newest analyzed steps with the sizes of their batches, without breakdowns."""

import sqlite3
from collections.abc import Sequence
from typing import NamedTuple

from taxbreak_vllm.model.transition import SizedStep
from taxbreak_vllm.service.results.rows import Series
from taxbreak_vllm.service.results.steps import NEWEST

_COLUMNS = {
    "requests": '"batch.requests"',
    "prompt_tokens": '"batch.prompt_tokens"',
    "device_window_ns": '"device.window_ns"',
    "floor_ns": '"taxes.delta_kt_ns"',
    "exposed_ns": '"device.idle.host_ns"',
}
_SIZED = f"""
SELECT server_id, model_name, engine, series.rank, {", ".join(_COLUMNS.get(name, name) for name in SizedStep._fields)}
FROM steps JOIN series USING (series_id) WHERE
"""


class SizedRow(NamedTuple):
    """A step and whose it is."""

    server_id: str
    series: Series
    step: SizedStep


def read_sizes(db: sqlite3.Connection, where: str, values: Sequence[object]) -> list[SizedRow]:
    """Return the newest steps that fit `where`, newest first; the last of `values` is how many."""
    return [
        SizedRow(row[0], Series(row[1], row[2], row[3], row[4]), SizedStep._make(row[4:]))  # its first is the phase
        for row in db.execute(f"{_SIZED} {where} {NEWEST}", values)
    ]
