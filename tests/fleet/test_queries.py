"""Every query of docs/fleet.md runs in DuckDB on a fleet's rows and answers something."""

import re
from pathlib import Path

import pytest
from rig.fleet import Fleet, fill

from taxbreak_vllm.archive.store import Store
from taxbreak_vllm.fleet.analyze import plan
from taxbreak_vllm.fleet.batch import analyze_batch

duckdb = pytest.importorskip("duckdb")
PAGE = (Path(__file__).parents[2] / "docs" / "fleet.md").read_text()
QUERIES = [
    text for text in re.findall(r"^```sql\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE) if "analyses/" in text
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("archive")
    store = Store(f"file://{folder}")
    fill(store, Fleet(num_hosts=3, num_captures=8).captures())
    for batch in plan(store, "0.1.0").batches:
        analyze_batch(batch)
    return folder


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: query.splitlines()[0].removeprefix("-- "))
def test_a_query_answers_something(query, folder):
    found = duckdb.sql(query.replace("s3://bucket/taxbreak", str(folder))).fetchall()

    assert found
    assert all(any(value is not None for value in row) for row in found)


def test_there_are_queries():
    assert len(QUERIES) >= 4
