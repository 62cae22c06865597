"""`VLLM_PLUGINS=taxbreak` alone on a server of two API servers and two engines: API and metrics are mounted on both.

With several API servers, vLLM's own metrics come out of files that its processes share.
"""

import httpx
import pytest

from taxbreak_vllm import Breakdown
from taxbreak_vllm.demo.load import send
from taxbreak_vllm.demo.servers import start_vllm

pytestmark = [pytest.mark.e2e, pytest.mark.nightly, pytest.mark.timeout(600)]

KEY = {"Authorization": "Bearer none"}  # the key that `send` carries
ENGINES = {"0", "1"}


@pytest.fixture(scope="module")
def server(processes, tiny_llama, sample_often):
    env = sample_often | {"VLLM_PLUGINS": "taxbreak", "TAXBREAK_SPOOL": str(processes.folder / "spool")}
    env |= {"TAXBREAK_SAMPLE_EVERY": "4", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
    flags = ("--api-key", "none", "--api-server-count", "2", "--data-parallel-size", "2")
    return start_vllm(processes, tiny_llama, flags=flags, env=env).wait()


def _get(server, path, **query):
    return httpx.get(f"{server.url}/v1/taxbreak/{path}", params=query, headers=KEY, timeout=30.0)


def test_the_routes_are_behind_the_servers_own_key(server):
    assert httpx.get(f"{server.url}/v1/taxbreak/status", timeout=30.0).status_code == 401
    assert _get(server, "status").status_code == 200


def test_vllms_own_routes_still_answer(server):
    assert httpx.get(f"{server.url}/metrics", timeout=30.0).is_success
    assert httpx.get(f"{server.url}/v1/models", headers=KEY, timeout=30.0).is_success


def test_each_of_its_api_servers_knows_which_server_it_belongs_to(server):
    """Connections are spread over both; the engine's id is not theirs."""
    found = [_get(server, "control") for _ in range(24)]

    assert [response.status_code for response in found] == [200] * 24
    assert len({response.json()["server_id"] for response in found}) == 1


def test_the_server_tells_its_own_breakdown_without_a_sidecar(server):
    seeds = iter(range(1, 10**6))

    def has_both_phases():
        send(server.url, "tiny-llama", seed=next(seeds))
        found = [_get(server, "breakdown", phase=phase) for phase in ("prefill", "decode")]
        return all(response.is_success and Breakdown.from_json(response.content).steps for response in found)

    server.process.wait_until(has_both_phases, "sampled in both phases", timeout_s=120)


def test_vllms_own_metrics_hold_ours_too_and_tell_its_engines_apart(server, scrape):
    """From whichever API server answers."""

    def engines():
        return {labels["engine"] for labels, value in scrape(server)["taxbreak_sampled_steps_total"] if value > 0}

    def are_sampled():
        send(server.url, "tiny-llama", seed=1)
        return engines() == ENGINES

    server.process.wait_until(are_sampled, "sampled on both engines, in its metrics", timeout_s=240)
    for found in [scrape(server) for _ in range(10)]:
        assert all(0 < value < 1 for labels, value in found["taxbreak_hdbi"])
        assert sum(value for _, value in found["vllm:generation_tokens_total"]) > 0


def test_the_loop_of_each_engine_is_accounted_for(server):
    def loops():
        return _get(server, "iterations").json()["engines"]

    def are_counted():
        send(server.url, "tiny-llama", seed=1)
        return {loop["engine"] for loop in loops() if loop["num_iterations"]} == ENGINES

    server.process.wait_until(are_counted, "counting both loops", timeout_s=120)

    for loop in loops():
        assert loop["num_iterations"] > 0
        parts = loop["exposed_ns"] | loop["between_ns"]
        assert loop["worker_ns"] + sum(parts.values()) == loop["iterations_ns"]


def test_its_status_names_both_engines_of_one_server(server):
    workers = _get(server, "status").json()["servers"]

    assert sorted((worker["server"]["engine"], worker["server"]["rank"]) for worker in workers) == [("0", 0), ("1", 1)]
    assert len({worker["server"]["server_id"] for worker in workers}) == 1


def test_answers_are_byte_for_byte_those_of_a_server_without_the_plugin(server, answers, plain_answers):
    assert answers(server) == plain_answers
