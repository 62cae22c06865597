"""What an API server publishes of its requests."""

import asyncio
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from starlette.middleware.base import BaseHTTPMiddleware

from taxbreak_vllm.model.frontend import DELIVERY, NUM_WATERFALLS, Stage
from taxbreak_vllm.serving.frontend.in_flight import FOLLOWED_EVERY
from taxbreak_vllm.serving.frontend.install import Frontend
from taxbreak_vllm.serving.frontend.middleware import RequestMiddleware
from taxbreak_vllm.settings import Settings
from taxbreak_vllm.spool.layout import ARRIVALS
from taxbreak_vllm.spool.spool import Spool


@pytest.fixture
def settings(tmp_path):
    return Settings(spool=tmp_path / "spool")


@pytest.fixture
def spool(settings):
    return Spool(settings.spool, max_bytes=2**30, max_captures=100)


@pytest.fixture
def start(settings, monkeypatch):
    """Start a watch whose thread does not run: the test takes its turns."""

    def start(server):
        monkeypatch.setattr("taxbreak_vllm.serving.frontend.watch.FrontendWatch.start", lambda watch: None)
        watch = Frontend(server.app).start(server.llm, "server", settings)
        watch.now_ns = time.time_ns()
        watch._unix_ns = lambda: watch.now_ns
        return watch

    return start


def test_requests_are_counted_once_and_published(serve, start, spool):
    async def use(server):
        watch = start(server)
        for _ in range(FOLLOWED_EVERY + 1):
            await server.post(stream=True)
        watch.now_ns += 10**10
        watch.turn()
        watch.turn()
        return watch.state

    state = serve(use, client_index=3)

    (published,) = spool.frontend_states()
    assert replace(published, runqueue_wait_ratio=state.runqueue_wait_ratio) == state
    assert (state.server_id, state.api, state.model_name) == ("server", "3", "tiny")
    assert (state.num_requests, state.num_failed, state.num_unknown, state.num_lost) == (65, 0, 0, 0)
    assert {stage: found.num for stage, found in state.stages.items()} == dict.fromkeys(Stage, 65)
    assert sum(found.sum_ns for found in state.stages.values()) == state.total.sum_ns
    assert state.total.num == state.ttft.num == sum(state.total.bucket_counts) == 65
    assert {stage: found.num for stage, found in state.tokens.items()} == dict.fromkeys(DELIVERY, 8)
    assert state.off_reason is None


def test_followed_requests_become_waterfalls(serve, start, spool):
    async def use(server):
        watch = start(server)
        begun_ns = time.time_ns()
        await server.post(stream=True, prompt=["words"])
        watch.now_ns += 10**10
        watch.turn()
        return begun_ns

    begun_ns = serve(use)
    (waterfall,) = spool.waterfalls("server", "0")

    assert sum(waterfall.stages_ns.values()) == waterfall.total_ns
    assert abs(waterfall.started_unix_ns - begun_ns - 10**10) < 10**9  # the clock was put on
    assert (waterfall.engine, waterfall.is_streamed) == ("0", True)
    assert (waterfall.num_prompt_tokens, waterfall.num_output_tokens) == (5, 4)
    assert 0 < waterfall.number < 2**32
    assert set(waterfall.first_token_ns) == set(DELIVERY)
    assert 0 < waterfall.ttft_ns <= waterfall.total_ns


def test_waterfalls_are_written_now_and_then_and_the_newest_are_kept(serve, start, spool, monkeypatch):
    monkeypatch.setattr("taxbreak_vllm.serving.frontend.in_flight.FOLLOWED_EVERY", 1)

    async def use(server):
        watch = start(server)
        seen = []
        for step in range(NUM_WATERFALLS + 10):
            await server.post(prompt=["x" * (step + 1)])
            if step in (0, 1):
                watch.now_ns += 10**9 if step else 10**10
                watch.turn()
                seen.append(len(spool.waterfalls("server", "0")))
        watch.now_ns += 10**10
        watch.turn()
        return seen

    assert serve(use) == [1, 1]
    kept = spool.waterfalls("server", "0")
    assert [waterfall.num_prompt_tokens for waterfall in kept] == list(range(11, NUM_WATERFALLS + 11))


def test_a_state_that_did_not_change_is_published_as_a_sign_of_life_alone(serve, start, spool):
    async def use(server):
        watch = start(server)
        await server.post()
        watch.turn()
        times = []
        for _ in range(11):
            watch.now_ns += 10**9
            watch.turn()
            times.append(spool.frontend_states()[0].updated_unix_ns)
        return times

    assert len(set(serve(use))) == 3


def test_engines_see_which_requests_are_on_their_way(serve, start, spool):
    seen = []

    async def use(server):
        watch = start(server)
        path = spool.api_dir("server", watch.state.api) / ARRIVALS
        render = server.llm.renderer.render_cmpl_async

        async def look_and_render(prompts):
            seen.append(np.fromfile(path, dtype=np.int64).reshape(-1, 4))
            return await render(prompts)

        server.llm.renderer.render_cmpl_async = look_and_render
        await server.post()
        await server.post("/v1/tokenize")
        return np.fromfile(path, dtype=np.int64).reshape(-1, 4)

    after = serve(use)
    (before,) = seen

    assert (before[0, 0] > 0, before[0, 1:].tolist()) == (True, [0, -1, 0])
    assert after[:2, 2].tolist() == [0, -2]
    assert (after[:2, 1] > after[:2, 0]).all()
    assert not after[2:].any()


def test_how_late_a_busy_loop_is_shows_as_its_lag_and_an_idle_one_is_not_asked(serve, start):
    async def use(server):
        watch = start(server)
        render = server.llm.renderer.render_cmpl_async

        async def block(prompts):
            time.sleep(0.1)  # the fault that is looked for
            return await render(prompts)

        server.llm.renderer.render_cmpl_async = block
        await server.post()
        await asyncio.sleep(0.05)
        watch.turn()
        lag = watch.state.loop_lag
        await asyncio.sleep(0.1)
        watch.turn()
        return lag, watch.state.loop_lag

    busy, idle = serve(use)

    assert busy.sum_ns >= 70_000_000
    assert idle == busy


def test_requests_under_way_are_told(serve, start):
    async def use(server):
        watch = start(server)
        server.engine.delay_s = 0.05
        asked = asyncio.gather(server.post(), server.post())
        while watch._in_flight.num_in_engine < 2:
            await asyncio.sleep(0)
        watch.turn()
        during = watch.state.num_in_flight
        await asked
        watch.turn()
        return during, watch.state.num_in_flight

    assert serve(use) == (2, 0)


def test_a_fault_says_why_counting_ended(serve, start, spool):
    async def use(server):
        watch = start(server)
        await server.post()
        watch._in_flight.fail(RuntimeError("a hook"))
        await server.post()
        watch.turn()

    serve(use)
    (state,) = spool.frontend_states()

    assert state.off_reason == "hook"
    assert state.num_requests == 1


def test_a_vllm_without_what_is_hooked_is_served_and_told(serve, start, spool, caplog):
    async def use(server):
        server.llm.renderer = SimpleNamespace(**vars(server.llm.renderer))
        del server.llm.renderer.render_chat_async
        watch = start(server)
        watch.turn()
        return await server.post()

    assert "data" in serve(use)
    assert spool.frontend_states()[0].off_reason == "hook"
    assert len([record for record in caplog.records if record.name == "vllm.taxbreak"]) == 1


def test_a_spool_that_cannot_be_written_ends_nothing(serve, start, settings):
    settings.spool.write_text("a file")

    async def use(server):
        watch = start(server)
        answer = await server.post()
        watch.turn()
        return answer, watch.state

    answer, state = serve(use)

    assert "data" in answer
    assert (state.num_requests, state.off_reason) == (1, None)


def test_ours_is_outside_all_other_middleware_and_there_once(serve, settings):
    async def use(server):
        frontend = Frontend(server.app)
        again = Frontend(server.app)
        server.app.add_middleware(BaseHTTPMiddleware)
        watches = [which.start(server.llm, "server", settings) for which in (frontend, again)]
        return [middleware.cls for middleware in server.app.user_middleware], watches

    kinds, (watch, none) = serve(use)

    assert kinds == [RequestMiddleware, BaseHTTPMiddleware]
    assert watch is not None
    assert none is None


def test_an_app_that_takes_no_middleware_is_one_warning(caplog, settings):
    assert Frontend("app").start(None, "server", settings) is None
    assert len(caplog.records) == 1
