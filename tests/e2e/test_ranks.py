"""Two ranks of a real vLLM, tensor-parallel or pipelined, without a word between them, record the same steps."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]


@pytest.fixture(scope="module", params=["tensor", "pipeline"])
def said(request, tmp_path_factory, tiny_llama):
    folder = tmp_path_factory.mktemp("ranks")
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
    command = [sys.executable, str(script), str(tiny_llama), str(folder), request.param]
    with open(folder / "log", "wb") as log:
        done = subprocess.run(command, env=env, stdout=log, stderr=log, timeout=850, check=False)
    assert done.returncode == 0, (folder / "log").read_text()[-4000:]
    return json.loads((folder / "said.json").read_text())


def test_what_one_rank_recorded_the_other_did_too_or_says_why_not(said):
    first, second = (said["recorded"][rank] for rank in ("0", "1"))
    num_dropped = sum(sum(status["dropped"].values()) for status in said["status"])

    common = first.keys() & second.keys()
    assert len(common) >= 2
    assert all(first[step][0] == second[step][0] for step in common)
    # one more on each may still be on its way to the spool
    assert len(first.keys() ^ second.keys()) <= num_dropped + 2


def test_each_rank_is_told_apart_and_times_its_own_steps(said):
    assert [status["server"]["rank"] for status in said["status"]] == [0, 1]
    for status in said["status"]:
        assert status["enabled"]
        assert sum(kind["num_steps"] for kind in status["steps"] if kind["phase"] == "decode") > 0
