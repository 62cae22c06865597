"""The tables of an archive: what the document says, the same bytes for the same rows, NULL for the unknown."""

import io
import re
from pathlib import Path

import pandas
import pyarrow.parquet as pq
import pytest

from taxbreak_vllm.archive.layout import TABLES, Key
from taxbreak_vllm.archive.store import Store
from taxbreak_vllm.model.step import Server
from taxbreak_vllm.output.archive_tables import COLUMNS, SCHEMA, Table, server_row, write_table

DOCUMENT = (Path(__file__).parents[2] / "docs" / "fleet.md").read_text()
QUERIES = [text for text in re.findall(r"^```sql\n(.*?)^```", DOCUMENT, re.DOTALL | re.MULTILINE) if "tables/" in text]
SERVER_COLUMNS = set(server_row(Server(server_id="a")))


@pytest.mark.parametrize("table", Table)
def test_the_document_lists_the_columns(table):
    (listed,) = re.findall(rf"\*\*`tables/v1/{table}`\*\*.*?```\n(.*?)```", DOCUMENT, re.DOTALL)
    (shared,) = re.findall(r"Each row says whose it is:(.*?)\.\n", DOCUMENT, re.DOTALL)

    assert listed.split() == [name for name in COLUMNS[table] if name not in SERVER_COLUMNS]
    assert set(re.findall(r"`(\w+)`", shared)) == SERVER_COLUMNS <= set(COLUMNS[table])


@pytest.mark.parametrize("table", Table)
def test_a_table_is_the_same_bytes_for_the_same_rows_and_null_where_nothing_is_known(table):
    rows = [server_row(Server(server_id="a", model_name="tiny")), {}]

    data = write_table(table, rows)

    assert data == write_table(table, rows)
    read = pq.read_table(io.BytesIO(data))
    assert read.column_names == list(COLUMNS[table])
    assert read.schema.metadata[b"schema"] == SCHEMA.encode()
    first, second = read.to_pylist()
    assert {name: value for name, value in first.items() if value is not None} == {
        "server_id": "a",
        "model_name": "tiny",
    }
    assert set(second.values()) == {None}


@pytest.fixture
def archive(tmp_path):
    """An archive with a row of each table that a query asks."""
    server = Server(server_id="s/1", model_name="meta-llama/Llama 3", vllm="0.32.0", device_name="NVIDIA H100")
    rows = {
        Table.BREAKDOWNS: {"step_id": "a", "phase": "decode", "hdbi": 0.5, "taxes.delta_ft_ns": 10**6},
        Table.WATERFALLS: {"api": "0", "number": 1, "started_unix_ns": 5, "total_ns": 10**6, "queue_kv_ns": 10**5},
    }
    store = Store(f"file://{tmp_path}")
    for table, row in rows.items():
        data = write_table(table, [{**server_row(server), **row}])
        about = {"model": server.model_name, "vllm": server.vllm, "gpu": server.device_name, "server": server.server_id}
        store.put(Key.of(f"{TABLES}/{table}", data, suffix="parquet", unix_ns=1_700_000_000 * 10**9, **about), data)
    return tmp_path


@pytest.mark.parametrize("query", QUERIES)
def test_a_query_of_the_document_answers(query, archive):
    duckdb = pytest.importorskip("duckdb")

    (row,) = duckdb.sql(query.replace("s3://bucket/taxbreak", str(archive))).fetchall()

    assert row[0] == "meta-llama/Llama 3"
    assert None not in row


def test_pandas_reads_a_table_with_its_partitions_and_skips_other_models(archive):
    folder = archive / "tables" / "v1" / "breakdowns"

    (found,) = pandas.read_parquet(folder, filters=[("model", "==", "meta-llama/Llama 3")]).to_dict("records")

    assert (found["model"], found["vllm"], found["gpu"]) == ("meta-llama/Llama 3", "0.32.0", "NVIDIA H100")
    assert (found["date"], found["server"], found["step_id"]) == ("2023-11-14", "s/1", "a")
    assert pandas.read_parquet(folder, filters=[("model", "==", "another")]).empty
