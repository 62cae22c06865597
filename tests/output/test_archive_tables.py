"""The tables of an archive: what the document says, the same bytes for the same rows, NULL for the unknown."""

import io
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from taxbreak_vllm.model.step import Server
from taxbreak_vllm.output.archive_tables import COLUMNS, SCHEMA, Table, server_row, write_table

DOCUMENT = (Path(__file__).parents[2] / "docs" / "fleet.md").read_text()
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
