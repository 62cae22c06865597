"""`taxbreak workload` of what holds no traffic ends in a line; recorded requests and steps come out as Parquet."""

import pyarrow.parquet as pq
import pytest

from taxbreak_vllm.traffic.log import Log
from taxbreak_vllm.traffic.rows import Added, Ended, Scheduled, Setup, Stamped

SETUP = Setup(server_id="s", source="engine-0", columns=("scheduled", "schedule0", "end"), instants=(1, 2))


@pytest.fixture
def spool(tmp_path):
    folder = tmp_path / "spool" / "server" / "traffic"
    folder.mkdir(parents=True)
    Log(folder, SETUP, max_bytes=2**20).append(
        [
            Added(0, 5, 3, 100, 16, 0, 0, True, [], [11]),
            Scheduled(1, 100, 1, 0, 0, 0, "none", False, 77),
            Stamped(1000, [1, 1, 21]),
            Ended(0, "length", 16, 32, 1, [13]),
            Added(1, 9, 8, 50, 16, 0, 0, True, [], []),
        ]
    )
    return tmp_path / "spool"


@pytest.mark.parametrize("command", ["check", "fit", "predict", "sweep"])
def test_a_folder_without_traffic_is_refused_in_a_line(taxbreak, tmp_path, command):
    options = ("--load", "1x,2x") if command == "sweep" else ()
    done = taxbreak("workload", command, tmp_path, *options)

    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert f"{tmp_path}: holds no traffic of an engine" in done.stderr


@pytest.mark.parametrize("command", ["predict", "sweep"])
@pytest.mark.parametrize("options", [("--load", "0x"), ("--set", "x"), ("--slo", "y=1"), ("--arrivals", "z")])
def test_an_option_that_is_none_is_refused_in_a_line(taxbreak, spool, command, options):
    done = taxbreak("workload", command, spool, *options)

    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert " ".join(options) in done.stderr


def test_requests_and_steps_come_out_as_parquet(taxbreak, spool, tmp_path):
    done = taxbreak("workload", "export", spool, tmp_path / "out")

    assert (done.returncode, done.stderr) == (0, "")
    requests = pq.read_table(tmp_path / "out" / "requests.parquet").to_pylist()
    assert [(r["number"], r["num_prompt_tokens"], r["num_output_tokens"], r["hashes"]) for r in requests] == [
        (0, 100, 16, [11, 13]),
        (1, 50, None, []),
    ]
    (step,) = pq.read_table(tmp_path / "out" / "steps.parquet").to_pylist()
    assert (step["number"], step["prompt_tokens"], step["schedule0"], step["end"]) == (1, 100, 1001, 1021)


MORE = {"predict": (), "sweep": ("--replicas", "1,2")}


@pytest.mark.parametrize("command", ["predict", "sweep"])
def test_a_setting_that_the_recorded_scheduler_does_not_have_is_refused_in_a_line(taxbreak, spool, command):
    done = taxbreak("workload", command, spool, "--set", "max_num_sequences=2", "--load", "2x", *MORE[command])

    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert "--set max_num_sequences: no field of vLLM" in done.stderr
