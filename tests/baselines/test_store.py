"""The store of baselines: whole under concurrent use, closed to what was measured elsewhere, shared as a file."""

import gzip
import sqlite3
import stat
import subprocess
import sys
from dataclasses import replace

import pytest

from taxbreak_vllm.baselines.store import Baselines
from taxbreak_vllm.model.baseline import Baseline, Environment, Floor, FloorKind, Floors, Match, Outcome, Spread
from taxbreak_vllm.model.ceilings import MeasuredCeilings, Rate
from taxbreak_vllm.model.errors import BaselineError

HERE = Environment(device_type="cuda", device_name="NVIDIA H100", torch="2.9.0", driver="12080")
FLOORS = Floors(
    floors=(
        Floor(kind=FloorKind.KERNEL, spread=Spread(4500, 30, 200), nodes=1),
        *(Floor(kind=FloorKind.GRAPH, spread=Spread(ns, 10, 50), nodes=n) for n, ns in ((64, 14_000), (1, 7700))),
    ),
    clock="cupti",
    measured_unix_ns=100,
)


def entry(signature, *, ns=1000, at=100, outcome=Outcome.MEASURED):
    return Baseline(
        signature=signature,
        op="aten::mm",
        outcome=outcome,
        dispatch=Spread(ns, 10, 30),
        launch=Spread(5000, 20, 30),
        match=Match.CONFIGURATION,
        match_ratio=1.0,
        measured_unix_ns=at,
    )


@pytest.fixture
def path(tmp_path):
    return tmp_path / "folder" / "store.sqlite3"


@pytest.fixture
def store(path):
    with Baselines(path) as store:
        yield store


def test_what_was_put_comes_back_and_a_later_entry_takes_its_place(store):
    store.put(HERE, [entry("a"), entry("b")])
    store.put(HERE, [entry("a", ns=2000)])
    store.put_floors(HERE, FLOORS)

    assert store.get(HERE, ["a", "b", "c"]) == {"a": entry("a", ns=2000), "b": entry("b")}
    assert sorted(e.signature for e in store.entries(HERE)) == ["a", "b"]
    assert store.floors(HERE) == FLOORS
    assert store.environments() == [HERE]


def test_ceilings_are_raised_and_never_lowered(store, path, tmp_path):
    def reached(per_s):
        return MeasuredCeilings(bytes_per_s={2**20: Rate(per_s=per_s, by="copy")}, measured_unix_ns=int(per_s))

    assert store.ceilings(HERE) is None
    assert store.raise_ceilings(HERE, reached(5)) == reached(5)
    assert store.raise_ceilings(HERE, reached(3)).bytes_per_s[2**20].per_s == 5
    assert store.raise_ceilings(HERE, reached(7)) == store.ceilings(HERE) == reached(7)
    store.put_floors(HERE, FLOORS)
    told = {"device_type": "cuda", "device_name": "NVIDIA H100"}
    assert store.view(told).ceilings == reached(7)

    store.export(tmp_path / "export.jsonl")
    with Baselines(tmp_path / "other.sqlite3") as other:
        other.raise_ceilings(HERE, reached(6))
        other.take(tmp_path / "export.jsonl")
        assert other.ceilings(HERE).bytes_per_s[2**20].per_s == 7


def test_thousands_of_signatures_are_looked_up_at_once(store):
    store.put(HERE, [entry(str(n)) for n in range(0, 4000, 2)])

    assert store.get(HERE, [str(n) for n in range(4000)]).keys() == {str(n) for n in range(0, 4000, 2)}


def test_the_file_is_its_owners_alone(store, path):
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_all_entries_of_one_put_are_stored_or_none(store):
    def breaks():
        yield entry("a")
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError):
        store.put(HERE, breaks())

    assert store.get(HERE, ["a"]) == {}


ELSEWHERE = {
    "torch": replace(HERE, torch="2.9.1"),
    "driver": replace(HERE, driver="13000"),
    "device_name": replace(HERE, device_name="NVIDIA H200"),
    "device_type": replace(HERE, device_type="rocm"),
}


@pytest.mark.parametrize("what", ELSEWHERE)
def test_entries_of_another_torch_driver_or_device_are_never_used(store, what):
    store.put(ELSEWHERE[what], [entry("a")])
    store.put_floors(ELSEWHERE[what], FLOORS)

    assert store.get(HERE, ["a"]) == {}
    assert store.floors(HERE) is None
    assert list(store.entries(HERE)) == []
    assert store.view({what: getattr(HERE, what)}) is None


def test_a_view_is_of_the_one_place_that_fits_all_a_trace_tells(store):
    store.put(HERE, [entry("a")])
    store.put_floors(HERE, FLOORS)
    store.put(ELSEWHERE["torch"], [entry("a", ns=9)])

    view = store.view({"device_name": "NVIDIA H100", "torch": "2.9.0", "driver": ""})

    assert view.environment == HERE
    assert view.floors == FLOORS
    assert view.get(["a"]) == {"a": entry("a")}
    assert store.view({"device_name": "NVIDIA H100"}) is None  # of which torch?
    assert store.view({"device_name": "NVIDIA B200"}) is None


def test_only_what_went_wrong_is_forgotten(store):
    wrong = (Outcome.FAILED, Outcome.CRASHED, Outcome.TIMED_OUT, Outcome.OUT_OF_MEMORY)
    store.put(HERE, [entry(outcome, outcome=outcome) for outcome in Outcome])

    store.forget(HERE, list(Outcome))

    assert store.get(HERE, list(Outcome)).keys() == set(Outcome) - set(wrong)


def test_graph_floors_are_points_and_a_line():
    assert FLOORS.graph_points() == ((1, 7700), (64, 14_000))
    assert FLOORS.graph_line() == (7600, 100)  # 6300 ns over 63 nodes
    assert FLOORS.median_ns(FloorKind.KERNEL, 1) == 4500
    assert FLOORS.median_ns(FloorKind.DISPATCH) is None
    assert Floors().graph_line() is None


def test_a_spread_is_median_and_median_absolute_deviation():
    assert Spread.of([1, 2, 3, 4, 100]) == Spread(3, 1, 5)
    assert Spread.of([7]) == Spread(7, 0, 1)


def test_an_export_taken_in_elsewhere_is_the_same_store(store, tmp_path):
    store.put(HERE, [entry("a"), entry("b", outcome=Outcome.DENIED)])
    store.put_floors(HERE, FLOORS)
    store.put(ELSEWHERE["torch"], [entry("a", ns=9)])

    written = store.export(tmp_path / "export.jsonl")

    with Baselines(tmp_path / "other.sqlite3") as other:
        assert other.take(tmp_path / "export.jsonl") == written == 3
        assert other.environments() == store.environments()
        for environment in store.environments():
            assert list(other.entries(environment)) == list(store.entries(environment))
            assert other.floors(environment) == store.floors(environment)


def test_of_two_measurements_the_later_wins_whichever_way_they_meet(store, tmp_path):
    file = tmp_path / "export.jsonl"
    store.put(HERE, [entry("old", ns=1, at=1), entry("new", ns=2, at=300)])
    store.put_floors(HERE, replace(FLOORS, measured_unix_ns=300))
    store.export(file)
    with Baselines(tmp_path / "other.sqlite3") as other:
        other.put(HERE, [entry("old", ns=8, at=200), entry("new", ns=9, at=200)])
        other.put_floors(HERE, replace(FLOORS, measured_unix_ns=200))

        other.take(file)

        assert {e.signature: e.dispatch.median_ns for e in other.entries(HERE)} == {"old": 8, "new": 2}
        assert other.floors(HERE).measured_unix_ns == 300


def test_a_truncated_export_changes_nothing(store, tmp_path):
    store.put(HERE, [entry(str(n)) for n in range(20)])
    store.export(tmp_path / "export.jsonl")
    whole = (tmp_path / "export.jsonl").read_bytes()
    (tmp_path / "half.jsonl").write_bytes(whole[: len(whole) // 2])

    with Baselines(tmp_path / "other.sqlite3") as other:
        with pytest.raises(BaselineError, match=r"half\.jsonl: not an export of baselines"):
            other.take(tmp_path / "half.jsonl")
        assert other.environments() == []


NO_EXPORTS = {
    "nothing": b"",
    "text": b"hello\n",
    "bytes": bytes(range(256)),
    "gzip": gzip.compress(b"hello"),
    "no head": b'{"signature":"a","op":"b","outcome":"measured"}\n',
    "another schema": b'{"schema":"taxbreak.baselines/9","environment":'
    b'{"device_type":"cpu","device_name":"x","torch":"2"}}',
}


@pytest.mark.parametrize("what", NO_EXPORTS)
def test_what_is_no_export_is_one_clear_line(store, tmp_path, what):
    (tmp_path / "file").write_bytes(NO_EXPORTS[what])

    with pytest.raises(BaselineError, match="file: not an export of baselines") as error:
        store.take(tmp_path / "file")

    assert "\n" not in str(error.value)


def test_an_export_that_cannot_be_read_or_written_is_one_clear_line(store, tmp_path):
    with pytest.raises(BaselineError, match="No such file"):
        store.take(tmp_path / "missing")
    with pytest.raises(BaselineError, match=r"nowhere/file: cannot be written"):
        store.export(tmp_path / "nowhere" / "file")


def other_database(path):
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE songs (name)")
    db.close()


def newer_version(path):
    Baselines(path).__exit__(None, None, None)
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()


WRONG_FILES = {
    "text": (lambda path: path.write_text("hello " * 1000), "not a database"),
    "a folder": (lambda path: path.mkdir(), "cannot be opened|unable to open"),
    "another database": (other_database, "a database, but not of baselines"),
    "another version": (newer_version, r"another version of taxbreak \(99\)"),
}


@pytest.mark.parametrize("what", WRONG_FILES)
def test_a_wrong_file_is_one_clear_line_and_left_as_it_is(tmp_path, what):
    make, reason = WRONG_FILES[what]
    path = tmp_path / "wrong.sqlite3"
    make(path)
    path.chmod(0o755)
    before = path.read_bytes() if path.is_file() else None

    with pytest.raises(BaselineError, match=reason) as error:
        Baselines(path)

    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert before == (path.read_bytes() if path.is_file() else None)
    assert stat.S_IMODE(path.stat().st_mode) == 0o755


def test_an_entry_that_makes_no_sense_is_one_clear_line(store, path):
    store.put(HERE, [entry("a")])
    with sqlite3.connect(path) as db:
        db.execute("""UPDATE baselines SET body = '{"outcome": "sublime"}'""")
    db.close()

    with pytest.raises(BaselineError, match=r"store\.sqlite3: "):
        store.get(HERE, ["a"])


def test_a_damaged_page_is_one_clear_line(path):
    with Baselines(path) as store:
        store.put(HERE, [entry(str(n)) for n in range(500)])
    whole = bytearray(path.read_bytes())
    whole[4096:] = b"\xff" * (len(whole) - 4096)
    path.write_bytes(whole)

    with pytest.raises(BaselineError, match=r"malformed|not a database|corrupt"), Baselines(path) as store:
        store.get(HERE, ["1"])


WRITER = """
import sys
from pathlib import Path
from taxbreak_vllm.baselines.store import *
here = Environment(device_type="cpu", device_name="x", torch="2")
with Baselines(Path(sys.argv[1])) as store:
    for n in range(100):
        pair = [Baseline(signature=f"{sys.argv[2]}.{n}.{side}", op="o", outcome=Outcome.MEASURED) for side in "ab"]
        store.put(here, pair)
"""
READER = """
import sys
from pathlib import Path
from taxbreak_vllm.baselines.store import *
here = Environment(device_type="cpu", device_name="x", torch="2")
most = 0
with Baselines(Path(sys.argv[1])) as store:
    while most < 400:
        found = sum(1 for _ in store.entries(here))
        assert found % 2 == 0, "half of a put"
        assert found >= most, "an entry was lost"
        most = found
"""


@pytest.mark.timeout(120)
def test_two_writers_and_three_readers_at_once_lose_nothing_and_see_no_half(path):
    """All five open the store at the same time, before there is one."""
    scripts = [(WRITER, "one"), (WRITER, "two"), *[(READER, "")] * 3]
    processes = [
        subprocess.Popen([sys.executable, "-c", script, str(path), name], stderr=subprocess.PIPE, text=True)
        for script, name in scripts
    ]

    try:
        said = [process.communicate(timeout=100)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()

    assert said == [""] * 5
    with Baselines(path) as store:
        (environment,) = store.environments()
        assert sum(1 for _ in store.entries(environment)) == 400
