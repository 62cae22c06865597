"""Breakdowns as Parquet: `steps.parquet`, `rows.parquet` (step, op and kernel), `dispatches.parquet` in one folder.

In: findings on recordings. Out: three files, each table beginning with the column `source`. Needs
pyarrow (the extra `parquet`).
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from taxbreak_vllm.insight.findings import Findings
from taxbreak_vllm.model.breakdown import Breakdown
from taxbreak_vllm.model.errors import TaxbreakError
from taxbreak_vllm.output.columns import Column, Columns, dispatch_columns, row_columns, step_columns
from taxbreak_vllm.output.files import replacing
from taxbreak_vllm.taxes.recording import Recording
from taxbreak_vllm.taxes.terms import Terms
from taxbreak_vllm.trace.dispatches import Bool

if TYPE_CHECKING:
    import pyarrow as pa

_ARROW_BY_KIND = {"Int64": "int64", "Float64": "double"}
_NUMPY_BY_KIND = {"boolean": "bool", "Int64": "int64", "Float64": "float64", "string": "string"}


class ParquetTables:
    """The three tables being made; raises TaxbreakError where pyarrow is missing."""

    def __init__(self) -> None:
        try:
            import pyarrow  # noqa: F401 - asked for before any work is done
        except ImportError:
            raise TaxbreakError(
                "writing Parquet needs the package pyarrow: pip install 'taxbreak-vllm[parquet]'"
            ) from None
        self._parts: dict[str, list[pa.Table]] = {"steps": [], "rows": [], "dispatches": []}

    def add(self, findings: Findings) -> None:
        """Add the steps, rows and dispatches of a recording, all on its terms."""
        breakdown, recording = findings.breakdown, findings.recording
        tables = {
            "steps": step_columns(breakdown),
            "rows": row_columns(breakdown),
            "dispatches": dispatch_columns(recording.measured, recording.windows),
        }
        for name, columns in tables.items():
            length = len(next(iter(columns.values())).values)
            source = {"source": Column.of("string", [breakdown.source.path] * length)}
            self._parts[name].append(arrow_table({**source, **columns}))

    def write(self, target: str | Path) -> None:
        """Write the files into a folder, made if it is missing; raises TaxbreakError where the disk refuses."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        folder = Path(target)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TaxbreakError(f"{folder}: cannot make the folder: {error.strerror or error}") from error
        for name, parts in self._parts.items():
            with replacing(folder / f"{name}.parquet") as temporary:
                pq.write_table(pa.concat_tables(parts), temporary)


def write_parquet(breakdowns: Sequence[Breakdown], folder: str | Path, *, floor_ns: int | None = None) -> None:
    """Write the tables of one or more breakdowns, made if it is missing; files of the same names are replaced.

    The dispatches are read again from each breakdown's `source.path`, with the same measured T_sys in ns, on the terms
    that the breakdown tells: its attribution, without baselines. Raises TaxbreakError where pyarrow is missing or the
    disk refuses, TraceFormatError or SpoolError where a source is gone.
    """
    tables = ParquetTables()
    for breakdown in breakdowns:
        terms = Terms(floor_ns=floor_ns, attribution=breakdown.attribution)
        with Recording.open(breakdown.source.path, terms) as recording:
            tables.add(Findings(recording, breakdown))
    tables.write(folder)


def arrow_table(columns: Columns, **about_table: str) -> "pa.Table":
    """Make a table of columns; its schema tells pandas which may be missing, and whatever else is said of the table."""
    import pyarrow as pa

    types = [
        {
            "name": name,
            "field_name": name,
            "pandas_type": "unicode" if column.kind == "string" else _NUMPY_BY_KIND[column.kind],
            "numpy_type": column.kind if column.known is not None else _NUMPY_BY_KIND[column.kind],
            "metadata": None,
        }
        for name, column in columns.items()
    ]
    about = {"index_columns": [], "column_indexes": [], "columns": types, "pandas_version": "2.2.0"}
    return pa.table(
        {name: _arrow_array(column) for name, column in columns.items()},
        metadata={"pandas": json.dumps(about), **about_table},
    )


def _arrow_array(column: Column) -> "pa.Array":
    # from buffers, as what takes numpy arrays or other types loads pandas and more, which takes longer than all of this
    import pyarrow as pa

    length = len(column.values)
    validity = None if column.known is None else _bits(column.known)
    if column.kind == "boolean":
        return pa.Array.from_buffers(pa.bool_(), length, [validity, _bits(column.values)])
    if column.kind != "string":
        kind = pa.type_for_alias(_ARROW_BY_KIND[column.kind])
        return pa.Array.from_buffers(kind, length, [validity, pa.py_buffer(np.ascontiguousarray(column.values))])
    texts = [text.encode() for text in column.texts] or [b""]
    places = column.values if column.known is None else np.where(column.known, column.values, 0)
    ends = np.zeros(length + 1, dtype=np.int64)
    np.cumsum(np.array([*map(len, texts)])[places], out=ends[1:])
    data = b"".join([texts[place] for place in places.tolist()])
    return pa.Array.from_buffers(pa.large_string(), length, [validity, pa.py_buffer(ends), pa.py_buffer(data)])


def _bits(flags: Bool) -> "pa.Buffer":
    import pyarrow as pa

    return pa.py_buffer(np.packbits(flags, bitorder="little"))
