"""`taxbreak transition` of traces in a row: a table or one JSON object, one line and exit 2 for what cannot be told."""

import json

import pytest
from rig.batches import Batches
from rig.server import run
from rig.trace import to_json, whole

SIZES = (2, 8, 32)


@pytest.fixture
def traces(tmp_path):
    """A trace of each batch, of a server whose device decides from 17 requests on; none tells its batch."""
    batches = Batches()
    paths = [tmp_path / f"batch-{size}.json" for size in SIZES]
    for size, path in zip(SIZES, paths, strict=True):
        path.write_text(to_json(whole(run(batches.server(size)))))
    return paths


BATCHES = [word for size in SIZES for word in ("--batch", size)]


def test_traces_in_a_row_tell_from_which_batch_on_the_device_decides(taxbreak, traces):
    done = taxbreak("transition", *traces, *BATCHES, "--json")

    (found,) = json.loads(done.stdout)["transitions"]
    assert (found["between"], found["by"]) == ([8, 32], "tklqt")
    assert [bucket["num_steps"] for bucket in found["buckets"]] == [5, 5, 5]


def test_the_text_says_it_and_shows_a_row_for_each_batch(taxbreak, traces, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")

    lines = taxbreak("transition", *traces, *BATCHES).stdout.splitlines()

    assert lines[0] == "these steps: from 32 requests on the device decides; at 8 requests the host still did"
    assert "TKLQT per launch doubles between 8 and 32 requests" in lines
    rows = [line.split() for line in lines if line.endswith((" host", " device"))]
    assert [(row[0], row[-1]) for row in rows] == [("2", "host"), ("8", "host"), ("32", "device")]


def test_of_a_load_on_one_side_the_reason_is_said(taxbreak, traces):
    text = " ".join(taxbreak("transition", *traces[:2], *BATCHES[:4]).stdout.split())

    assert "no transition: launches do not queue up at 8 requests, the largest batch recorded" in text


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ((), "does not tell how many requests a step has: say it with --batch"),
        (("--batch", 2), "--batch is given 1 times for 3 traces"),
        ((*BATCHES, "--phase", "decode"), "no step of phase decode"),
    ],
    ids=["no batch", "too few", "no such phase"],
)
def test_what_cannot_be_told_is_one_line_and_exit_2(taxbreak, traces, words, reason):
    done = taxbreak("transition", *traces, *words)

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert reason in done.stderr


def test_a_batch_without_traces_is_refused(taxbreak):
    done = taxbreak("transition", "--batch", 2)

    assert done.returncode == 2
    assert "--batch is of traces" in done.stderr
