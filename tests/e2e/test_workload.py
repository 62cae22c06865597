"""vLLM's own scheduler, told what a real server's was told, batches every step as it did, however the server is set."""

import json

import pytest
from rig.knobs import Knobs
from rig.plugins import python_path
from rig.varied_client import ask_all

from taxbreak_vllm.demo.servers import ONE_PROCESS, WORKER_EXTENSION, start_vllm

pytestmark = [pytest.mark.e2e, pytest.mark.nightly, pytest.mark.timeout(900)]

NUM_REQUESTS = 150
WORKER = "rig.simulated.Worker"
FLAGS = {
    "as_served": (),
    "no_prefix_cache": ("--no-enable-prefix-caching",),
    "small_blocks": ("--block-size", "32"),
    "preemption": ("--block-size", "32", "--num-gpu-blocks-override", "30"),
    "chunked_prefill": ("--max-num-batched-tokens", "64", "--block-size", "32"),
    "priorities": ("--scheduling-policy", "priority", "--num-gpu-blocks-override", "30", "--block-size", "32"),
}
NOBIND = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}


def _environment(folder):
    return NOBIND | {"VLLM_PLUGINS": "taxbreak", "TAXBREAK_SPOOL": str(folder)}


@pytest.mark.parametrize("setting", FLAGS)
def test_every_step_is_batched_alike(processes, tiny_llama, batched_again, setting):
    spool = processes.folder / f"spool-{setting}"
    flags = (*ONE_PROCESS, *FLAGS[setting])
    server = start_vllm(processes, tiny_llama, flags=flags, env=_environment(spool), name=setting).wait()
    ids = ask_all(server.url, "tiny-llama", num=NUM_REQUESTS, num_priorities=3 if setting == "priorities" else 1)

    (engine,) = batched_again(server, spool, len(ids))
    server.process.stop()

    assert engine.is_identical, engine
    assert engine.is_whole
    assert engine.num_steps > 300
    assert (engine.num_hit_tokens > 0) == (setting != "no_prefix_cache")
    assert (engine.num_preemptions > 0) == (setting in {"preemption", "priorities"})


def test_of_two_api_servers_and_a_worker_of_its_own_too(processes, tiny_llama, batched_again):
    spool = processes.folder / "spool-two"
    flags = (*WORKER_EXTENSION, "--api-server-count", "2")
    server = start_vllm(processes, tiny_llama, flags=flags, env=_environment(spool), name="two").wait()
    ids = ask_all(server.url, "tiny-llama", num=NUM_REQUESTS)

    (engine,) = batched_again(server, spool, len(ids))
    server.process.stop()

    assert engine.is_identical, engine
    assert len(list(spool.glob("*/traffic/api-*-00000000.jsonl.gz"))) == 2


def test_an_engine_that_schedules_ahead_of_its_device_too(processes, tiny_llama, batched_again):
    spool, folder = processes.folder / "spool-ahead", processes.folder / "simulated"
    folder.mkdir()
    Knobs(folder / "knobs").turn(device=2_000_000)
    env = _environment(spool) | {
        "PYTHONPATH": python_path(folder / "plugins"),
        "SIMULATED": str(folder),
        "VLLM_PLUGINS": "taxbreak,simulated",
    }
    flags = (*ONE_PROCESS, "--async-scheduling", "--worker-cls", WORKER, "--block-size", "32")
    server = start_vllm(processes, tiny_llama, flags=flags, env=env, name="ahead").wait()
    ids = ask_all(server.url, "tiny-llama", num=NUM_REQUESTS)

    (engine,) = batched_again(server, spool, len(ids))
    server.process.stop()

    assert engine.is_identical, engine
    assert engine.num_hit_tokens > 0


def test_a_server_whose_every_instant_is_known_is_predicted_and_what_cannot_be_is_refused(run_offline, tmp_path):
    run_offline("offline_predict.py", tmp_path, tmp_path / "found.json")

    found = json.loads((tmp_path / "found.json").read_bytes())
    answered = {name: told for name, told in found.items() if told.get("predicted")}
    assert answered.keys() == {"1.5 times the rate", "half the rate", "max_num_seqs 4", "a faster device"}
    for name, told in answered.items():
        for figure, most in (("tokens_per_s", 0.02), ("tpot_mean", 0.05), ("e2e_mean", 0.05), ("ttft_mean", 0.1)):
            assert told["predicted"][figure] == pytest.approx(told["measured"][figure], rel=most), (name, figure)
    assert "does not batch" in found["another prompt"]["reason"]
    assert "stalls take" in found["stalls"]["reason"]
    assert "wait for an answer" in found["closed"]["reason"]


def test_a_step_that_is_repeated_is_the_one_that_vllm_would_have_chosen(run_offline, tmp_path):
    run_offline("offline_repeats.py", tmp_path, tmp_path / "found.json")

    found = json.loads((tmp_path / "found.json").read_bytes())
    assert {name: told["first difference"] for name, told in found.items()} == dict.fromkeys(found)
    is_short = {name: told["preempted"] > 0 for name, told in found.items()}
    assert [name for name in found if is_short[name]] == ["few blocks", "few blocks, ahead", "priorities"]
    assert all(told["repeated"] > (0 if is_short[name] else told["steps"] / 4) for name, told in found.items()), found
