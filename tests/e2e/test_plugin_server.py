"""`VLLM_PLUGINS=taxbreak` alone samples as the flag does, and mounts API and metrics on vLLM's own server."""

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from taxbreak_vllm import Breakdown
from taxbreak_vllm.demo.load import send
from taxbreak_vllm.demo.servers import ONE_PROCESS, start_vllm

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("vllm"), pytest.mark.timeout(600)]

KEY = {"Authorization": "Bearer none"}  # the key that `send` carries


@pytest.fixture(scope="module")
def servers(processes, tiny_llama):
    """By their number of API servers; with several, vLLM's own metrics come out of files that its processes share.

    Where there is one, the engine and its worker are one process, as on one GPU.
    """

    def start(num_api_servers):
        spool = processes.folder / f"spool{num_api_servers}"
        env = {"VLLM_PLUGINS": "taxbreak", "TAXBREAK_SPOOL": str(spool), "TAXBREAK_SAMPLE_EVERY": "4"}
        env |= {"TAXBREAK_OVERHEAD_BUDGET_RATIO": "1"}
        env |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
        flags = ("--api-key", "none", "--api-server-count", str(num_api_servers))
        if num_api_servers == 1:
            flags += ONE_PROCESS
        return start_vllm(processes, tiny_llama, flags=flags, env=env, name=f"vllm{num_api_servers}")

    starting = {number: start(number) for number in (1, 2)}
    return {number: server.wait() for number, server in starting.items()}


@pytest.fixture(scope="module")
def server(servers):
    return servers[2]


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


@pytest.mark.parametrize("num_api_servers", [1, 2])
def test_vllms_own_metrics_hold_ours_too(servers, num_api_servers):
    """From whichever API server answers, each family once, and those of vLLM as without us."""
    server = servers[num_api_servers]

    def scrape():
        families = list(text_string_to_metric_families(httpx.get(f"{server.url}/metrics", timeout=30.0).text))
        names = [family.name for family in families]
        assert len(set(names)) == len(names)
        return {s.name: s.value for family in families for s in family.samples if s.labels.get("phase") != "prefill"}

    def is_sampled():
        send(server.url, "tiny-llama", seed=1)
        return "taxbreak_hdbi" in scrape()

    server.process.wait_until(is_sampled, "sampled in its metrics", timeout_s=120)
    for found in [scrape() for _ in range(10)]:
        assert 0 < found["taxbreak_hdbi"] < 1
        assert found["taxbreak_sampled_steps_total"] > 0
        assert found["vllm:generation_tokens_total"] > 0


@pytest.mark.parametrize("num_api_servers", [1, 2])
def test_answers_are_byte_for_byte_those_of_a_server_without_the_plugin(
    servers, num_api_servers, answers, plain_answers
):
    assert answers(servers[num_api_servers]) == plain_answers
