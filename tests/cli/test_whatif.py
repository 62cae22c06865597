"""`taxbreak whatif` as a user meets it."""

import json

import pytest


def test_text_tells_times_bounds_gates_and_how_to_refute_it_in_80_columns(taxbreak, real_trace, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    path = real_trace("h100_hf_bert-small_infer")
    done = taxbreak("whatif", path, "--host", "0.5..0.7", "--kernels", "gemm=0.6")

    assert done.returncode == 0, done.stderr
    assert all(len(line) <= 80 or str(path) in line for line in done.stdout.splitlines())
    for said in ("predicted", "no host", "refuted if", f"taxbreak diff {path} AFTER", "translation 100.00%"):
        assert said.replace(" ", "") in "".join(done.stdout.split())


def test_json_is_one_object_with_the_prediction_inside_its_interval(taxbreak, real_trace):
    done = taxbreak("whatif", real_trace("h100_hf_bert-small_infer"), "--host", "0.5..0.7", "--json")

    answer = json.loads(done.stdout)
    window = answer["window"]
    assert answer["schema"] == "taxbreak.whatif/1"
    assert window["host_free_ns"] < window["low_ns"] <= window["predicted_ns"] <= window["high_ns"]
    assert window["high_ns"] < window["observed_ns"]
    assert [gate["passes"] for gate in answer["gates"]] == [True] * 6


def test_without_a_change_the_recorded_time_comes_back(taxbreak, real_trace):
    done = taxbreak("whatif", real_trace("h100_hf_bert-small_infer"), "--json")

    window = json.loads(done.stdout)["window"]
    assert window["predicted_ns"] == window["observed_ns"]


def test_a_full_graph_costs_what_a_store_of_floors_says(taxbreak, real_trace, put_graph_floors, tmp_path):
    put_graph_floors(tmp_path / "h100.sqlite3")

    words = ("--graph", "full", "--baselines", tmp_path / "h100.sqlite3", "--json")
    answer = json.loads(taxbreak("whatif", real_trace("h100_hf_bert-small_infer"), *words).stdout)

    assert answer["refused"] is None
    window = answer["window"]
    assert window["host_free_ns"] < window["low_ns"] <= window["predicted_ns"] <= window["high_ns"]
    assert window["predicted_ns"] < window["observed_ns"] / 3  # 4.5 ms of launching; its kernels take 0.4 ms


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--host", "fast"], "--host fast: give a factor"),
        (["--host", "blocked=2"], "'blocked' is none of python, dispatch"),
        (["--kernels", "collective=0.5"], "'collective' is none of"),
        (["--host", "2..1001"], "a factor goes up to 1000"),
        (["--graph", "half"], "neither full nor piecewise"),
        (["--fuse", "alone"], "two or more names"),
        (["--no-sync", "nosuch"], "no blocking call of this recording is named so"),
        (["--baselines", "missing.sqlite"], "no such file"),
    ],
)
def test_what_makes_no_sense_is_one_line_and_exit_2(taxbreak, real_trace, words, reason):
    done = taxbreak("whatif", real_trace("h100_hf_bert-small_infer"), *words)

    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert reason in done.stderr


def test_a_file_that_is_no_trace_is_one_line_and_exit_2(taxbreak, tmp_path):
    (tmp_path / "no.json").write_text("hello")
    done = taxbreak("whatif", tmp_path / "no.json", "--host", "2")

    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


@pytest.mark.parametrize("words", [["--compiled"], ["--graph", "piecewise"], ["--graph", "full"]])
def test_what_no_recording_can_answer_is_refused_with_the_reason(taxbreak, real_trace, words):
    done = taxbreak("whatif", real_trace("h100_hf_bert-small_infer"), *words)

    assert done.returncode == 0
    assert "refused: " in done.stdout
    assert "predicted" not in done.stdout
