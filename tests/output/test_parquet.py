"""Three Parquet files with the tables of Python, or one line that says what to install."""

import sys
from pathlib import Path

import pandas as pd
import pytest

from taxbreak_vllm import analyze
from taxbreak_vllm.model.errors import TaxbreakError
from taxbreak_vllm.output.parquet import write_parquet
from taxbreak_vllm.output.tables import dispatches

DATA = Path(__file__).parents[1] / "data"
SERVING = DATA / "serving.json"


def test_without_pyarrow_one_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)  # how Python marks what is not installed

    with pytest.raises(TaxbreakError, match=r"^writing Parquet needs [^\n]*pip install 'taxbreak-vllm\[parquet\]'$"):
        write_parquet([analyze(SERVING)], tmp_path)


def test_three_tables_are_written_with_their_source(tmp_path):
    pytest.importorskip("pyarrow", reason="needs the extra parquet")
    breakdown = analyze(SERVING)

    write_parquet([breakdown], tmp_path / "new")

    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        "dispatches.parquet",
        "rows.parquet",
        "steps.parquet",
    ]
    tables = {path.stem: pd.read_parquet(path) for path in (tmp_path / "new").iterdir()}
    assert {name: len(table) for name, table in tables.items()} == {
        "steps": 4,
        "rows": sum(len(step.top) for step in breakdown.steps),
        "dispatches": len(dispatches(SERVING)),
    }
    assert {source for table in tables.values() for source in table["source"]} == {str(SERVING)}


def test_several_breakdowns_share_the_tables(tmp_path):
    pytest.importorskip("pyarrow", reason="needs the extra parquet")

    write_parquet([analyze(SERVING)] * 2, tmp_path)

    assert len(pd.read_parquet(tmp_path / "steps.parquet")) == 8


def test_a_column_keeps_its_type_where_all_is_unknown(tmp_path):
    pq = pytest.importorskip("pyarrow.parquet", reason="needs the extra parquet")

    write_parquet([analyze(next(iter((DATA / "traces").glob("*.json.gz"))))], tmp_path)  # it has no phases

    assert pd.read_parquet(tmp_path / "rows.parquet")["phase"].dtype == "string"
    assert pd.read_parquet(tmp_path / "dispatches.parquet")["delta_ct_ns"].dtype == "Int64"
    for name in ("steps", "rows", "dispatches"):
        types = {field.name: str(field.type) for field in pq.read_schema(tmp_path / f"{name}.parquet")}
        assert "null" not in types.values()
        assert {types[column] for column in types if column.endswith("_ns")} == {"int64"}
