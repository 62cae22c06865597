"""Two ranks of a real vLLM, tensor-parallel or pipelined, without a word between them, record the same steps."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def tensor_parallel(run):
    return run("tensor")


@pytest.fixture(scope="module")
def pipelined(run):
    return run("pipeline")


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_llama):
    return lambda parallel: _run(parallel, tmp_path_factory.mktemp("ranks"), tiny_llama)


def _run(parallel, folder, model):
    env = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("TAXBREAK_", "VLLM_"))},
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "TAXBREAK_SPOOL": str(folder / "spool"),
        "TAXBREAK_SAMPLE_EVERY": "4",
        "TAXBREAK_OVERHEAD_BUDGET_RATIO": "1",
        "TAXBREAK_MAX_STEP_S": "60",
        "TAXBREAK_RECORD_ALL_RANKS": "true",
    }
    script = Path(__file__).with_name("offline_ranks.py")
    command = [sys.executable, str(script), str(model), str(folder), parallel]
    with open(folder / "log", "wb") as log:
        done = subprocess.run(command, env=env, stdout=log, stderr=log, timeout=850, check=False)
    assert done.returncode == 0, (folder / "log").read_text()[-4000:]
    return json.loads((folder / "said.json").read_text())


def test_what_one_rank_recorded_the_other_did_too_or_says_why_not(tensor_parallel):
    first, second = (tensor_parallel["recorded"][rank] for rank in ("0", "1"))
    num_dropped = sum(sum(status["dropped"].values()) for status in tensor_parallel["status"])

    common = first.keys() & second.keys()
    assert len(common) >= 2
    assert all(first[step][0] == second[step][0] for step in common)
    # one more on each may still be on its way to the spool
    assert len(first.keys() ^ second.keys()) <= num_dropped + 2


def test_of_a_pipeline_only_the_last_rank_is_recorded(pipelined):
    """The first one's steps end before what they sent has arrived, and torch's profiler would crash on that."""
    assert not pipelined["recorded"]["0"]
    assert len(pipelined["recorded"]["1"]) >= 30


@pytest.mark.parametrize("parallel", ["tensor_parallel", "pipelined"])
def test_each_rank_is_told_apart_and_times_its_own_steps(request, parallel):
    said = request.getfixturevalue(parallel)
    assert [status["server"]["rank"] for status in said["status"]] == [0, 1]
    for status in said["status"]:
        assert status["enabled"]
        assert sum(kind["num_steps"] for kind in status["steps"] if kind["phase"] == "decode") > 0
