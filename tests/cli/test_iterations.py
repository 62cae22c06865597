"""`analyze` of an engine's iterations: a table or a JSON object a path, one line and exit 2 for what cannot be read."""

import json

import pytest

from tests.cli.test_cli import SERVING
from tests.iterations.test_report import DECODE, PREFILL, with_phases
from tests.iterations.test_window import window


@pytest.fixture
def engine(tmp_path):
    """The folder of an engine with two windows."""
    folder = tmp_path / "engine-3"
    folder.mkdir()
    for number in range(2):
        one = with_phases(window(4, begin=number * 10**9), PREFILL, DECODE, DECODE, DECODE)
        (folder / f"iterations-{number}.json.gz").write_bytes(one.encode())
    return folder


def test_a_window_is_a_table_for_each_phase(engine, taxbreak):
    done = taxbreak("analyze", engine / "iterations-0.json.gz")

    assert done.returncode == 0, done.stderr
    assert "engine 3: 4 turns of its loop in 1 window" in done.stdout
    assert "prefill: 1 iterations" in done.stdout
    assert "decode: 2 iterations" in done.stdout
    assert "ipc_return" in done.stdout


@pytest.mark.parametrize("words", [("--json",), ("--json", "--top", "1")], ids=["without a parser", "with one"])
def test_all_windows_of_an_engine_are_one_json_object(engine, words, taxbreak):
    done = taxbreak("analyze", engine, *words)

    found = json.loads(done.stdout)
    assert (found["path"], found["num_windows"], found["num_turns"]) == (str(engine), 2, 8)
    assert {phase: each["num"] for phase, each in found["phases"].items()} == {"prefill": 2, "decode": 4}


def test_a_phase_is_chosen_as_of_a_trace(engine, taxbreak):
    found = json.loads(taxbreak("analyze", engine, "--json", "--phase", "decode").stdout)

    assert found["phases"].keys() == {"decode"}


def test_traces_and_iterations_are_told_apart_in_one_object(engine, taxbreak):
    found = json.loads(taxbreak("analyze", "--json", SERVING, engine).stdout)

    assert [len(found["breakdowns"]), len(found["iterations"])] == [1, 1]
    assert found["iterations"][0]["engine"] == "3"


def empty(engine):
    for path in engine.iterdir():
        path.unlink()


def cut_short(engine):
    path = engine / "iterations-0.json.gz"
    path.write_bytes(path.read_bytes()[:-9])


BAD = {
    "no window": (empty, (), "holds no window yet"),
    "one cut short": (cut_short, (), "iterations-0.json.gz: truncated"),
    "no such phase": (None, ("--phase", "mixed"), "no iteration of phase 'mixed'"),
    "a page": (None, ("--html", "page.html"), "exported to no file"),
    "a step": (None, ("--step", "1"), "none of them has a name"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_cannot_be_told_is_one_line_and_exit_2(engine, what, taxbreak):
    change, words, reason = BAD[what]
    if change is not None:
        change(engine)

    done = taxbreak("analyze", engine, *words)

    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert str(engine) in done.stderr
    assert reason in done.stderr
