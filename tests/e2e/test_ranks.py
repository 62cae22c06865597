"""Two ranks of a real vLLM, tensor-parallel, also as Ray's actors, or pipelined, record the same steps on their own."""

import json

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.nightly, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def tensor_parallel(run):
    return run("tensor")


@pytest.fixture(scope="module")
def on_ray(run):
    pytest.importorskip("ray")
    return run("tensor", "ray")


@pytest.fixture(scope="module")
def pipelined(run):
    return run("pipeline")


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_llama, run_offline):
    def run(parallel, backend="mp"):
        folder = tmp_path_factory.mktemp("ranks")
        settings = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
        settings |= {"TAXBREAK_SAMPLE_EVERY": "4", "TAXBREAK_MAX_STEP_S": "60", "TAXBREAK_RECORD_ALL_RANKS": "true"}
        if backend == "ray":  # its driver is the engine, for Ray's GPUs are explained to that process
            settings |= {"RAY_USAGE_STATS_ENABLED": "0", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
        run_offline("offline_ranks.py", folder, tiny_llama, folder, parallel, backend, **settings)
        return json.loads((folder / "said.json").read_text())

    return run


@pytest.mark.parametrize("parallel", ["tensor_parallel", "on_ray"])
def test_what_one_rank_recorded_the_other_did_too_or_says_why_not(request, parallel):
    said = request.getfixturevalue(parallel)
    first, second = (said["recorded"][rank] for rank in ("0", "1"))
    num_dropped = sum(sum(status["dropped"].values()) for status in said["status"])

    common = first.keys() & second.keys()
    assert len(common) >= 2
    assert all(first[step][0] == second[step][0] for step in common)
    # one more on each may still be on its way to the spool
    assert len(first.keys() ^ second.keys()) <= num_dropped + 2


def test_of_a_pipeline_only_the_last_rank_is_recorded(pipelined):
    """The first one's steps end before what they sent has arrived, and torch's profiler would crash on that."""
    assert not pipelined["recorded"]["0"]
    assert len(pipelined["recorded"]["1"]) >= 30


@pytest.mark.parametrize("parallel", ["tensor_parallel", "on_ray", "pipelined"])
def test_each_rank_is_told_apart_and_times_its_own_steps(request, parallel):
    said = request.getfixturevalue(parallel)
    assert [status["server"]["rank"] for status in said["status"]] == [0, 1]
    for status in said["status"]:
        assert status["enabled"]
        assert sum(kind["num_steps"] for kind in status["steps"] if kind["phase"] == "decode") > 0
