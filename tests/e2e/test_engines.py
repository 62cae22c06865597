"""Two data-parallel engines of one server: each samples its own steps, under its own label, and answers as ever."""

import pytest

from taxbreak_vllm.demo.load import send
from taxbreak_vllm.demo.servers import WORKER_EXTENSION, start_vllm

pytestmark = [pytest.mark.e2e, pytest.mark.nightly, pytest.mark.timeout(900)]

ENGINES = ("0", "1")


@pytest.fixture(scope="module")
def spool(processes):
    return processes.folder / "spool"


@pytest.fixture(scope="module")
def server(processes, tiny_llama, spool, sample_often):
    env = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1", "TAXBREAK_SPOOL": str(spool)}
    flags = (*WORKER_EXTENSION, "--data-parallel-size", "2")
    return start_vllm(processes, tiny_llama, flags=flags, env=sample_often | env).wait()


@pytest.fixture(scope="module")
def watched(watch_spool, processes, spool, server):
    return watch_spool(processes, spool)


def test_each_engine_is_sampled_and_told_apart(server, watched):
    seeds = iter(range(1, 10**6))

    def are_sampled():
        send(server.url, "tiny-llama", seed=next(seeds))
        return all(watched.value("sampled_steps_total", engine=engine, phase="decode") >= 2 for engine in ENGINES)

    watched.wait_until(are_sampled, "sampled on both engines", timeout_s=300)

    workers = watched.get("/v1/taxbreak/status").json()["servers"]
    assert sorted((worker["server"]["engine"], worker["server"]["rank"]) for worker in workers) == [("0", 0), ("1", 1)]
    assert len({worker["server"]["server_id"] for worker in workers}) == 1
    for engine in ENGINES:
        assert watched.value("steps_total", engine=engine) > watched.value("sampled_steps_total", engine=engine)


def test_answers_are_byte_for_byte_those_of_a_server_without_the_plugin(server, answers, plain_answers):
    assert answers(server) == plain_answers
