"""A server's traffic as Parquet: `requests.parquet` and `steps.parquet` in one folder, a row each, no content.

Needs pyarrow (the extra `parquet`). Requests and steps go by the columns of `traffic.rows`, stamps by those of the
engine's loop, in ns.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from taxbreak_vllm.model.errors import TaxbreakError
from taxbreak_vllm.output.files import replacing
from taxbreak_vllm.traffic.rows import Added, Ended, Scheduled, Stamped, unstamped
from taxbreak_vllm.workload.recording import Recorded


def write_traffic(engines: Sequence[Recorded], folder: Path) -> None:
    """Write the tables; raises TaxbreakError where pyarrow is missing or the disk refuses."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise TaxbreakError("writing Parquet needs the package pyarrow: pip install 'taxbreak-vllm[parquet]'") from None
    tables = {
        "requests": [row for engine in engines for row in _requests(engine)],
        "steps": [row for engine in engines for row in _steps(engine)],
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, rows in tables.items():
            with replacing(folder / f"{name}.parquet") as path:
                pq.write_table(pa.Table.from_pylist(rows), path)
    except OSError as error:
        raise TaxbreakError(f"{folder}: {error.strerror or error}") from error


def _requests(engine: Recorded) -> list[dict[str, Any]]:
    ends = {row.number: row for row in engine.rows if isinstance(row, Ended)}
    found = []
    for row in engine.rows:
        if isinstance(row, Added):
            end = ends.get(row.number)
            ended = {
                "reason": end and end.reason,
                "num_output_tokens": end and end.num_output_tokens,
                "num_hit_tokens": end and end.num_hit_tokens,
                "num_preemptions": end and end.num_preemptions,
            }
            told = msgspec.structs.asdict(row)
            hashes = [*row.hashes, *(end.hashes if end else ())]
            found.append({"engine": engine.setup.source} | told | ended | {"hashes": hashes})
    return found


def _steps(engine: Recorded) -> list[dict[str, Any]]:
    columns = engine.setup.columns
    turns = unstamped([row for row in engine.rows if isinstance(row, Stamped)], engine.setup, columns)
    place = columns.index("scheduled")
    stamps = {row[place]: dict(zip(columns, row, strict=True)) for row in turns.tolist()}
    return [
        {"engine": engine.setup.source} | msgspec.structs.asdict(row) | stamps.get(row.number, {})
        for row in engine.rows
        if isinstance(row, Scheduled)
    ]
