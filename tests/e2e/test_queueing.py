"""What requests wait for in a real engine's queue is told apart: a place in a step, KV blocks, a grammar."""

import os
import random
import string
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from taxbreak_vllm.demo.servers import ONE_PROCESS, start_vllm
from taxbreak_vllm.model.frontend import QUEUED, Stage
from taxbreak_vllm.spool.spool import Spool

pytestmark = [pytest.mark.e2e, pytest.mark.nightly, pytest.mark.timeout(600)]

TESTS = Path(__file__).parents[1]
MS = 10**6
NUM_BLOCKS = 40  # of 32 tokens: two long requests, or as many short ones as there are places
LONG, SHORT = {"prompt": "x" * 400, "max_tokens": 100}, {"prompt": "y", "max_tokens": 120}


@pytest.fixture(scope="module")
def spool(processes):
    return Spool(processes.folder / "spool", max_bytes=2**30, max_captures=1000)


@pytest.fixture(scope="module")
def server(processes, tiny_llama, spool):
    path = os.pathsep.join(filter(None, (str(TESTS), os.environ.get("PYTHONPATH"))))
    env = {"VLLM_PLUGINS": "taxbreak", "TAXBREAK_SPOOL": str(spool.root), "PYTHONPATH": path}
    flags = (*ONE_PROCESS, "--middleware", "rig.follow_all.PassOn", "--block-size", "32")
    flags += ("--num-gpu-blocks-override", str(NUM_BLOCKS), "--no-enable-prefix-caching")
    return start_vllm(processes, tiny_llama, flags=flags, env=env).wait()


@pytest.fixture
def served(server, spool):
    """Return what sends requests at once and returns what each of them waited for, those that began first first."""

    def kept():
        return [found for api in spool.frontend_states() for found in spool.waterfalls(api.server_id, api.api)]

    def served(*requests):
        before = {found.number for found in kept()}
        # one client: to make one for each takes so long that they would come one after the other
        with ThreadPoolExecutor(len(requests)) as pool, httpx.Client(verify=False, timeout=120.0) as client:
            answers = list(pool.map(lambda asked: _post(client, server, asked), requests))
        assert all(answer.is_success for answer in answers), answers[0].text

        def new():
            return [found for found in kept() if found.number not in before]

        server.process.wait_until(lambda: len(new()) >= len(requests), "telling all requests", timeout_s=60)
        found = sorted(new(), key=lambda found: found.started_unix_ns)
        for each in found:
            assert set(each.stages_ns) == set(Stage)
            assert sum(each.stages_ns.values()) == each.total_ns
        return [{stage: each.stages_ns[stage] for stage in QUEUED} for each in found]

    return served


def _post(client, server, asked):
    asked = {"model": "tiny-llama", "temperature": 0, "ignore_eos": True} | asked
    return client.post(f"{server.url}/v1/completions", json=asked)


def _others(waits, *stages):
    return max(waits[stage] for stage in QUEUED if stage not in stages)


def test_a_request_alone_waits_for_nothing(served):
    (waits,) = served(SHORT)

    assert _others(waits, Stage.QUEUE) == 0


def test_requests_that_the_cache_has_no_room_for_wait_for_blocks(served, record_property):
    waits = served(*[LONG] * 6)
    record_property("waits", [{str(stage): ns for stage, ns in each.items()} for each in waits])

    by_wait = sorted(waits, key=lambda each: each[Stage.QUEUE_KV])
    assert by_wait[0][Stage.QUEUE_KV] == 0
    for each in by_wait[3:]:
        assert each[Stage.QUEUE_KV] > 0.8 * sum(each.values()) > 20 * MS
    assert max(_others(each, Stage.QUEUE, Stage.QUEUE_KV) for each in waits) == 0


def test_requests_that_have_room_and_no_place_wait_for_no_blocks(served):
    """Of 24 requests an engine with 8 places takes 8."""
    waits = served(*[SHORT] * 24)

    assert sorted(each[Stage.QUEUE] for each in waits)[-8] > 5 * MS
    assert max(_others(each, Stage.QUEUE) for each in waits) == 0


def test_a_request_with_a_grammar_waits_until_that_is_compiled(served, record_property):
    draw = random.Random(7)
    words = ["".join(draw.choices(string.ascii_lowercase, k=12)) for _ in range(2000)]
    asked = SHORT | {"structured_outputs": {"choice": words}, "ignore_eos": False}
    served(SHORT | {"structured_outputs": {"regex": "a|b"}, "ignore_eos": False})  # loads what compiles

    ((first,), (again,)) = served(asked), served(asked)
    record_property("compiled_ms", first[Stage.QUEUE_GRAMMAR] / MS)

    assert first[Stage.QUEUE_GRAMMAR] > 0.5 * sum(first.values())
    assert first[Stage.QUEUE_GRAMMAR] > 2 * again[Stage.QUEUE_GRAMMAR]  # which is in a cache by then
    assert _others(first, Stage.QUEUE, Stage.QUEUE_GRAMMAR) == 0


def test_the_engine_says_that_it_tells_all_of_it(server, spool, served):
    served(SHORT)

    (engine,), (api,) = spool.engine_states(), spool.frontend_states()
    assert engine.queue_off_reason is None
    assert api.num_undivided == 0
