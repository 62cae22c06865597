"""Breakdowns as Parquet: `steps.parquet`, `rows.parquet` (step, op and kernel), `dispatches.parquet` in one folder.

In: findings on recordings. Out: three files, each table beginning with the column `source`. Needs
pyarrow (the extra `parquet`).
"""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from taxbreak_vllm.insight.findings import Findings
from taxbreak_vllm.model.breakdown import Breakdown, TopRow
from taxbreak_vllm.model.errors import TaxbreakError
from taxbreak_vllm.output.files import replacing
from taxbreak_vllm.output.tables import column_types, dispatches, step_table
from taxbreak_vllm.taxes.recording import Recording
from taxbreak_vllm.taxes.terms import Terms


class ParquetTables:
    """The three tables being made; raises TaxbreakError where pyarrow is missing."""

    def __init__(self) -> None:
        try:
            import pyarrow  # noqa: F401 - asked for before any work is done
        except ImportError:
            raise TaxbreakError(
                "writing Parquet needs the package pyarrow: pip install 'taxbreak-vllm[parquet]'"
            ) from None
        self._parts: dict[str, list[pd.DataFrame]] = {"steps": [], "rows": [], "dispatches": []}

    def add(self, findings: Findings) -> None:
        """Add the steps, rows and dispatches of a recording, all on its terms."""
        breakdown = findings.breakdown
        tables = {
            "steps": step_table(breakdown),
            "rows": breakdown.to_pandas().astype(column_types(TopRow)),
            "dispatches": dispatches(findings.recording),
        }
        for name, table in tables.items():
            table.insert(0, "source", pd.Series(breakdown.source.path, index=table.index, dtype="string"))
            self._parts[name].append(table)

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
            table = pa.Table.from_pandas(pd.concat(parts, ignore_index=True), preserve_index=False)
            with replacing(folder / f"{name}.parquet") as temporary:
                pq.write_table(table, temporary)


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
