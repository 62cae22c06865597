"""What an API server tells of its requests' time is what a client of theirs measured, whatever is asked."""

import os
from pathlib import Path

import httpx
import pytest

from taxbreak_vllm.demo.servers import ONE_PROCESS, start_vllm
from taxbreak_vllm.model.engine import Between, EnginePart
from taxbreak_vllm.model.frontend import DELIVERY, Stage
from taxbreak_vllm.model.step import Phase
from taxbreak_vllm.spool.spool import Spool

pytestmark = [pytest.mark.e2e, pytest.mark.nightly, pytest.mark.timeout(900)]

SHARE = 0.95  # of requests, whose times are those of the client
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
TESTS = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def spool(processes):
    return Spool(processes.folder / "spool", max_bytes=2**30, max_captures=1000)


def _start(processes, model, spool, flags):
    """Start a server that follows every request."""
    path = os.pathsep.join(filter(None, (str(TESTS), os.environ.get("PYTHONPATH"))))
    env = {"VLLM_PLUGINS": "taxbreak", "TAXBREAK_SPOOL": str(spool.root), "PYTHONPATH": path}
    # a thread that spins takes the client's core
    env |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
    flags = (*flags, "--middleware", "rig.follow_all.PassOn", "--chat-template", TEMPLATE)
    return start_vllm(processes, model, flags=flags, env=env).wait()


@pytest.fixture(scope="module")
def server(processes, tiny_llama, spool):
    return _start(processes, tiny_llama, spool, ONE_PROCESS)


@pytest.fixture
def counted(server, spool):
    """Return what waits until so many more requests are counted, and returns the state then."""
    before = _state(spool)

    def counted(num):
        server.process.wait_until(
            lambda: _state(spool).num_requests >= before.num_requests + num, f"counting {num}", timeout_s=60
        )
        return before, _state(spool)

    return counted


def _state(spool):
    (state,) = spool.frontend_states()
    return state


def _post(server, path, **asked):
    asked = {"model": "tiny-llama", "temperature": 0} | asked
    return httpx.post(f"{server.url}{path}", json=asked, timeout=60.0)


def test_times_are_those_that_a_client_measured(server, spool, share_as_measured, record_property):
    within = share_as_measured(server, spool, SHARE)
    record_property("within", within)

    assert min(within) >= SHARE


BUILT = {
    "a worker of its own": (),
    "two API servers": ("--api-server-count", "2"),
    "two ranks": ("--tensor-parallel-size", "2"),
}


@pytest.mark.nightly
@pytest.mark.parametrize("built", BUILT)
def test_however_a_server_is_built_its_account_closes(
    built, forking, tiny_llama, tmp_path, share_as_measured, record_property
):
    spool = Spool(tmp_path / "spool", max_bytes=2**30, max_captures=1000)
    with forking(tmp_path) as processes:
        server = _start(processes, tiny_llama, spool, BUILT[built])
        within = share_as_measured(server, spool, SHARE)
        record_property("within", within)

    (engine,) = spool.engine_states()
    decode = engine.phases[Phase.DECODE]
    spent = {**decode.exposed_ns, **decode.between_ns}
    unexplained = decode.exposed_ns[EnginePart.LOOP] / (decode.total_ns - decode.between_ns[Between.NO_WORK])
    record_property("unexplained", unexplained)
    assert (engine.num_unjoined, engine.num_lost, engine.off_reason) == (0, 0, None)
    assert decode.num > 1000
    assert decode.worker_ns + sum(spent.values()) == decode.total_ns
    assert unexplained <= 0.03
    assert min(within) >= SHARE


def test_every_waterfall_is_cut_to_the_nanosecond(server, spool, counted):
    _post(server, "/v1/completions", prompt="a few words", max_tokens=5, ignore_eos=True)
    counted(1)
    (api,) = spool.frontend_states()
    server.process.wait_until(lambda: bool(spool.waterfalls(api.server_id, api.api)), "telling", timeout_s=60)

    for waterfall in spool.waterfalls(api.server_id, api.api):
        assert set(waterfall.stages_ns) == set(Stage)
        assert set(waterfall.first_token_ns) == set(DELIVERY)
        assert sum(waterfall.stages_ns.values()) == waterfall.total_ns
        assert all(span_ns >= 0 for span_ns in waterfall.stages_ns.values())
        assert waterfall.engine == "0"


ASKED = {
    "completion": ("/v1/completions", {"prompt": "some words"}),
    "completion, streamed": ("/v1/completions", {"prompt": "some words", "stream": True}),
    "choices": ("/v1/completions", {"prompt": "some words", "n": 3, "temperature": 1}),
    "prompts, streamed": ("/v1/completions", {"prompt": ["some", "words"], "stream": True}),
    "tokens": ("/v1/completions", {"prompt": [5, 6, 7]}),
    "chat": ("/v1/chat/completions", {"messages": [{"role": "user", "content": "words"}]}),
    "chat, streamed": ("/v1/chat/completions", {"messages": [{"role": "user", "content": "words"}], "stream": True}),
    "response": ("/v1/responses", {"input": "words", "max_output_tokens": 8}),
    "response, streamed": ("/v1/responses", {"input": "words", "max_output_tokens": 8, "stream": True}),
}


@pytest.mark.parametrize(("path", "asked"), ASKED.values(), ids=ASKED)
def test_whatever_is_asked_its_stages_are_known(server, counted, path, asked):
    response = _post(server, path, **({"max_tokens": 8} if "responses" not in path else {}), **asked)
    assert response.is_success, response.text

    before, after = counted(1)

    assert after.num_requests == before.num_requests + 1
    assert (after.num_failed, after.num_unknown) == (before.num_failed, before.num_unknown)
    assert after.total.num == before.total.num + 1
    spans = [after.stages[stage].sum_ns - (before.stages[stage].sum_ns if before.stages else 0) for stage in Stage]
    assert sum(spans) == after.total.sum_ns - before.total.sum_ns


def test_what_does_not_reach_the_engine_is_not_counted_and_who_leaves_has_failed(server, counted):
    assert _post(server, "/v1/completions", prompt="x" * 4000).status_code == 400
    assert _post(server, "/v1/completions", prompt="x", max_tokens=-5).status_code == 400
    assert _post(server, "/v1/nowhere").status_code == 404
    assert _post(server, "/tokenize", prompt="x").is_success
    asked = {"model": "tiny-llama", "prompt": "x", "max_tokens": 400, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", f"{server.url}/v1/completions", json=asked, timeout=60.0) as response:
        next(response.iter_bytes())

    before, after = counted(1)

    assert after.num_requests == before.num_requests + 1
    assert after.num_failed == before.num_failed + 1
    assert after.total == before.total


def test_the_loop_is_asked_how_late_it_is(server, counted):
    _post(server, "/v1/completions", prompt="a", max_tokens=100, ignore_eos=True)

    before, after = counted(1)

    assert after.loop_lag.num > before.loop_lag.num
    assert after.off_reason is None
    assert after.runqueue_wait_ratio is None or 0 <= after.runqueue_wait_ratio <= 1
