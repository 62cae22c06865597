"""Breakdowns as Parquet: `steps.parquet`, `rows.parquet` (step, op and kernel), `dispatches.parquet` in one folder.

In: breakdowns and the files they came from. Out: three files, each table beginning with the column `source`. Needs
pyarrow (the extra `parquet`).
"""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from taxbreak_vllm.model.breakdown import Breakdown, TopRow
from taxbreak_vllm.model.errors import TaxbreakError
from taxbreak_vllm.output.files import replacing
from taxbreak_vllm.output.tables import column_types, dispatches, step_table


def write_parquet(breakdowns: Sequence[Breakdown], folder: str | Path, *, floor_ns: int | None = None) -> None:
    """Write the tables of one or more breakdowns, made if it is missing; files of the same names are replaced.

    The dispatches are read again from each breakdown's `source.path`, with the same measured T_sys in ns. Raises
    TaxbreakError where pyarrow is missing or the disk refuses, TraceFormatError or SpoolError where a source is gone.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise TaxbreakError("writing Parquet needs the package pyarrow: pip install 'taxbreak-vllm[parquet]'") from None
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TaxbreakError(f"{folder}: cannot make the folder: {error.strerror or error}") from error
    sources = [breakdown.source.path for breakdown in breakdowns]
    tables = {
        "steps": [step_table(breakdown) for breakdown in breakdowns],
        "rows": [breakdown.to_pandas().astype(column_types(TopRow)) for breakdown in breakdowns],
        "dispatches": [dispatches(source, floor_ns=floor_ns) for source in sources],
    }
    for name, parts in tables.items():
        for source, part in zip(sources, parts, strict=True):
            part.insert(0, "source", pd.Series(source, index=part.index, dtype="string"))
        table = pa.Table.from_pandas(pd.concat(parts, ignore_index=True), preserve_index=False)
        with replacing(folder / f"{name}.parquet") as temporary:
            pq.write_table(table, temporary)
