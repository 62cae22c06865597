"""A window comes back from its file as it was, and whatever else lies there is told in one line."""

import gzip
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from taxbreak_vllm.iterations.account import Turns
from taxbreak_vllm.iterations.rows import NUM_COLUMNS, Column
from taxbreak_vllm.iterations.waits import Arrivals
from taxbreak_vllm.iterations.window import Window, holds_windows, read_window, read_windows
from taxbreak_vllm.model.errors import SpoolError
from tests.iterations.test_account import SPANS, US, Clock, worker_elsewhere


def window(num_turns=5, *, slots=(), begin=0, **members):
    clock = Clock()
    clock.now += begin
    for _ in range(num_turns):
        worker_elsewhere(clock, SPANS | {"idle": 100 * US})
    members = {"engine": "3", "server_id": "server", "works_ahead": False} | members
    return Window(rows=clock.table(), slots=np.array(slots, dtype=np.int64).reshape(-1, 4), **members)


def same(a, b):
    rest = {"rows": None, "slots": None}
    return (
        replace(a, **rest) == replace(b, **rest)
        and a.rows.tolist() == b.rows.tolist()
        and a.slots.tolist() == b.slots.tolist()
    )


@pytest.fixture
def path(tmp_path):
    return tmp_path / "iterations-0.json.gz"


def stored(**changes):
    return json.loads(gzip.decompress(window().encode())) | changes


def test_a_window_comes_back_as_it_was(path):
    written = window(works_ahead=True)
    path.write_bytes(written.encode())

    assert same(read_window(path), written)
    assert holds_windows(path)


def test_its_columns_are_named_in_lower_case_and_a_schema_says_what_it_is():
    found = stored()

    assert found["schema"] == "taxbreak.iterations/1"
    assert (found["server_id"], found["engine"]) == ("server", "3")
    assert found["columns"] == [column.name.lower() for column in Column]
    assert {len(row) for row in found["rows"]} == {NUM_COLUMNS}


def test_of_the_requests_only_those_that_were_on_their_way_meanwhile_are_kept(path):
    plain = window()
    begin, end = int(plain.rows[0, Column.INPUT0]), int(plain.rows[-1, Column.END])
    meanwhile = [(begin - 9, begin + 9, 3, 0), (begin + 1, 0, -1, 0), (end - 1, end + 9, 3, 0)]
    others = [(0, 0, 0, 0), (begin + 1, begin + 2, 4, 0), (begin - 9, begin - 1, 3, 0), (end + 1, end + 2, 3, 0)]
    path.write_bytes(window(slots=[*others, *meanwhile]).encode())

    found = read_window(path)

    assert found.slots.tolist() == [list(slot) for slot in meanwhile]
    kept, all_of_them = (Arrivals.of(np.array(slots), 3) for slots in (found.slots, [*others, *meanwhile]))
    cut = [Turns(found.rows, arrivals).iterations().parts_ns for arrivals in (kept, all_of_them)]
    assert all((cut[0][label] == cut[1][label]).all() for label in cut[0])


def test_a_file_unpacked_and_one_with_columns_of_a_later_version_are_read_too(path):
    later = stored()
    later["columns"].insert(3, "gravity")
    for row in later["rows"]:
        row.insert(3, -1)
    path.write_text(json.dumps(later))

    assert read_window(path).rows.tolist() == window().rows.tolist()


def test_a_folder_has_its_windows_oldest_first(tmp_path):
    for number, begin in enumerate((3, 1, 2)):
        (tmp_path / f"iterations-{number}.json.gz").write_bytes(window(begin=begin * 10**9).encode())
    (tmp_path / "state.json").write_text("{}")

    begins = [int(found.rows[0, Column.INPUT0]) for found in read_windows(tmp_path)]

    assert holds_windows(tmp_path)
    assert len(begins) == 3
    assert begins == sorted(begins)


def test_the_folder_of_an_engine_without_any_says_so(tmp_path):
    folder = tmp_path / "engine-0"
    folder.mkdir()

    assert holds_windows(folder)
    with pytest.raises(SpoolError, match="holds no window yet"):
        read_windows(folder)


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"\x1f\x8bnothing", b'{"traceEvents": []}', gzip.compress(b"[]", mtime=0)]
)
def test_anything_else_holds_no_windows(path, content):
    path.write_bytes(content)

    assert not holds_windows(path)
    assert not holds_windows(path.with_name("missing"))
    assert not holds_windows(path.parent / "a folder")


BAD = {
    "missing": (None, "No such file"),
    "empty": (b"", "not a window"),
    "something else": (b'{"traceEvents": []}', "not a window"),
    "not JSON": (gzip.compress(b"hello"), "not a window"),
    "truncated": (window().encode()[:-9], "truncated"),
    "damaged": (window().encode()[:60] + b"\0\0\0\0" + window().encode()[64:], "not a window"),
    "another schema": (json.dumps(stored(schema="taxbreak.iterations/9")).encode(), "another version"),
    "a column less": (json.dumps(stored(columns=["scheduled"], rows=[[1]])).encode(), "has no column 'updated'"),
    "a short row": (json.dumps(stored(rows=[[1, 2, 3]])).encode(), "damaged"),
    "no row": (json.dumps(stored(rows=[])).encode(), "holds no turn"),
    "a number too large": (json.dumps(stored(rows=[[2**63] * NUM_COLUMNS])).encode(), "not a window"),
    "a number that is none": (json.dumps(stored(rows=[[1.5] * NUM_COLUMNS])).encode(), "not a window"),
    "a slot of three": (json.dumps(stored(arrivals=[[1, 2, 3]])).encode(), "damaged"),
    "deep": (b"[" * 100_000, "not a window"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_is_wrong_with_a_file_is_one_line_with_its_name(path, what):
    content, reason = BAD[what]
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(SpoolError) as caught:
        read_window(path)

    assert str(caught.value).startswith(f"{path}: ")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_small_file_that_unpacks_to_a_large_one_is_not_unpacked(path):
    path.write_bytes(gzip.compress(b"[" + b" " * 2**27, compresslevel=9))

    with pytest.raises(SpoolError, match="larger than any window"):
        read_window(path)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 10**9), byte=st.integers(0, 255))
def test_whatever_byte_of_a_file_is_wrong_it_is_read_or_refused(path, place, byte):
    data = bytearray(json.dumps(stored()).encode())
    data[place % len(data)] = byte
    path.write_bytes(bytes(data))

    try:
        found = read_window(path)
    except SpoolError:
        return
    Turns(found.rows, Arrivals.of(found.slots, 3)).iterations()
