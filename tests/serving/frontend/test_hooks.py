"""Requests to an API server of vLLM's own classes leave rows behind, and are answered as ever, faults included."""

import asyncio
from contextlib import suppress
from time import monotonic_ns

import pytest
from starlette.middleware.base import BaseHTTPMiddleware

from taxbreak_vllm.model.frontend import DELIVERY, Stage
from taxbreak_vllm.serving.frontend.hooks import RequestHooks
from taxbreak_vllm.serving.frontend.in_flight import InFlight
from taxbreak_vllm.serving.frontend.middleware import RequestMiddleware
from taxbreak_vllm.serving.frontend.record import random_number
from taxbreak_vllm.stages.account import account, delivery
from taxbreak_vllm.stages.rows import Column

ASKED = {
    "streamed": {"stream": True},
    "whole": {},
    "choices": {"n": 3},
    "choices, streamed": {"n": 3, "stream": True},
    "prompts": {"prompt": ["one", "two words", "three words or so"]},
    "prompts, streamed": {"prompt": ["one", "two words"], "stream": True},
    "tokens": {"prompt": [[7, 7, 7]], "stream": True},
}


def watch(server, **options):
    in_flight = InFlight(**options)
    server.app.add_middleware(RequestMiddleware, in_flight=in_flight)
    RequestHooks(in_flight).attach(server.llm)
    in_flight.is_on = True
    return in_flight


@pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED)
@pytest.mark.parametrize("has_others", [False, True], ids=["alone", "under middleware of others"])
def test_each_request_is_one_row_whose_stages_sum_to_its_time(serve, asked, has_others):
    async def use(server):
        in_flight = watch(server)
        if has_others:
            server.app.add_middleware(BaseHTTPMiddleware, dispatch=lambda request, call: call(request))
        begun_ns = monotonic_ns()
        for _ in range(3):
            await server.post(**asked)
        return in_flight, monotonic_ns() - begun_ns

    in_flight, took_ns = serve(use)
    found = account(in_flight.requests.take())

    assert (len(found.rows), found.num_failed, found.num_unknown) == (3, 0, 0)
    assert (sum(found.stages_ns.values()) == found.total_ns).all()
    assert 0 < found.total_ns.sum() < took_ns
    assert (found.ttft_ns <= found.total_ns).all()
    num_prompts, num_choices = len(asked.get("prompt", [1])), asked.get("n", 1)
    assert set(found.rows[:, Column.NUM_OUTPUT_TOKENS]) == {4 * num_prompts * num_choices}
    assert set(found.rows[:, Column.IS_STREAMED]) == {int(asked.get("stream", False))}
    assert (in_flight.num_open, in_flight.num_in_engine, in_flight.fault) == (0, 0, None)


@pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED)
def test_answers_are_those_of_a_server_without_hooks(serve, asked):
    async def ask(server):
        return await server.post(**asked)

    async def ask_hooked(server):
        watch(server)
        return await server.post(**asked)

    hooked, plain = serve(ask_hooked), serve(ask)

    assert sorted(hooked.splitlines()) == sorted(plain.splitlines())  # of several prompts which is first is chance


class SlowClient:
    """Middleware outside ours: a client that is slow to send and to take."""

    def __init__(self, app, pause):
        self.app, self.pause = app, pause

    async def __call__(self, scope, receive, send):
        async def slow_receive():
            message = await receive()
            if message["type"] == "http.request":
                self.pause("receive")
            return message

        async def slow_send(message):
            if message.get("body"):
                self.pause("send")
            await send(message)

        await self.app(scope, slow_receive, slow_send)


class Clock:
    """Time that goes on in one place alone, by half a second."""

    def __init__(self, place):
        self.place = place
        self.now_ns = 10**9

    def __call__(self):
        return self.now_ns

    def pause(self, place):
        self.now_ns += 500_000_000 if place == self.place else 0


class TickingClock(Clock):
    """One whose every reading is another."""

    def __call__(self):
        self.now_ns += 1
        return self.now_ns


@pytest.mark.parametrize("is_streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("place", Stage)
def test_time_is_found_in_the_stage_in_which_it_is_spent(serve, place, is_streamed):
    clock = Clock(place)

    async def use(server):
        in_flight = watch(server, now=clock)
        server.app.add_middleware(SlowClient, pause=clock.pause)
        server.engine.num_tokens = 2 if place is Stage.DECODE else 1
        server.engine.now_ns, server.engine.pause = clock, clock.pause
        await server.post(stream=is_streamed)
        return in_flight

    found = account(serve(use).requests.take())

    spent_ns = clock.now_ns - 10**9
    assert spent_ns > 0
    assert found.total_ns == [spent_ns]
    assert found.stages_ns[place] == [spent_ns]


def test_an_engine_that_does_not_tell_what_requests_wait_for_leaves_their_queue_undivided(serve):
    async def use(server):
        in_flight = watch(server)
        server.engine._waited = lambda place: "x"  # no number
        await server.post()
        await server.post()
        return in_flight, server.llm.output_processor

    in_flight, _ = serve(use)
    found = account(in_flight.requests.take())

    assert found.is_divided.tolist() == [False, False]
    assert (sum(found.stages_ns.values()) == found.total_ns).all()
    assert (len(found.rows), in_flight.fault) == (2, None)


@pytest.mark.parametrize("own", [{}, {"traceparent": "00-1"}])
def test_vllm_gets_its_own_headers_of_an_output_and_ours_are_taken_off(serve, own):
    seen = []

    async def use(server):
        process_outputs = server.llm.output_processor.process_outputs

        def looked_at(outputs, *args, **kwargs):
            seen.extend(output.trace_headers for output in outputs)
            return process_outputs(outputs, *args, **kwargs)

        server.llm.output_processor.process_outputs = looked_at
        server.engine.headers = own
        watch(server)
        await server.post()

    serve(use)

    assert seen == [own or None, None, None, None]


def test_the_tokens_of_a_prompt_count_once_for_all_its_choices(serve):
    async def use(server):
        in_flight = watch(server)
        await server.post(prompt=["1234", "12"], n=2)
        return in_flight.requests.take()

    assert serve(use)[:, Column.NUM_PROMPT_TOKENS] == [6]


def test_a_request_that_becomes_very_many_of_the_engines_is_unknown_and_bounded(serve):
    """As beam search does, which asks for every token of every beam anew."""

    async def use(server):
        in_flight = watch(server)
        await server.post(prompt=["word"] * 300)
        return in_flight.requests.take(), len(server.engine.requests)

    rows, num_sent = serve(use)
    found = account(rows)

    assert num_sent == 300
    assert (len(found.rows), found.num_failed, found.num_unknown) == (0, 0, 1)


def test_requests_at_the_same_time_keep_their_stamps_apart(serve):
    async def use(server):
        in_flight = watch(server)
        server.engine.delay_s = 0.002
        await asyncio.gather(*(server.post(stream=bool(place % 2), prompt=["x" * place]) for place in range(1, 20)))
        return in_flight.requests.take()

    rows = serve(use)

    assert sorted(rows[:, Column.NUM_PROMPT_TOKENS]) == list(range(1, 20))
    assert len(account(rows).rows) == 19
    assert (rows[:, Column.IS_STREAMED] == rows[:, Column.NUM_PROMPT_TOKENS] % 2).all()


def test_one_request_in_64_has_the_way_of_each_output_followed(serve):
    async def use(server):
        in_flight = watch(server)
        for _ in range(65):
            await server.post(stream=True)
        return in_flight

    in_flight = serve(use)
    spans = delivery(in_flight.outputs.take())

    assert {stage: len(found) for stage, found in spans.items()} == dict.fromkeys(DELIVERY, 2 * 4)
    rows = in_flight.requests.take()
    assert rows[:, Column.IS_FOLLOWED].nonzero()[0].tolist() == [0, 64]
    assert (rows[rows[:, Column.IS_FOLLOWED] == 0, Column.NUMBER] == 0).all()


@pytest.mark.parametrize("is_streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("place", DELIVERY)
def test_a_request_that_is_not_followed_has_the_stages_of_one_that_is(serve, place, is_streamed):
    clock = TickingClock(place)

    async def use(server):
        in_flight = watch(server, now=clock)
        server.app.add_middleware(SlowClient, pause=clock.pause)
        server.engine.now_ns, server.engine.pause = clock, clock.pause
        for _ in range(2):
            await server.post(stream=is_streamed)
        return in_flight

    found = account(serve(use).requests.take())

    assert found.rows[:, Column.IS_FOLLOWED].tolist() == [1, 0]
    assert found.stages_ns[place][1] >= 500_000_000
    for spans in found.stages_ns.values():
        assert abs(spans[0] - spans[1]) < 1000


def test_what_does_not_go_to_the_engine_is_not_counted(serve):
    async def use(server):
        in_flight = watch(server)
        server.refusal = ValueError("too long")
        with suppress(ValueError):
            await server.post()
        await server.post("/v1/tokenize")
        await server.post("/v1/nowhere")
        await server.get("/health")
        return in_flight

    in_flight = serve(use)

    assert len(in_flight.requests.take()) == 0
    assert (in_flight.num_open, in_flight.num_in_engine, in_flight.fault) == (0, 0, None)


@pytest.mark.parametrize(
    "scope",
    [
        {"type": "http", "method": "GET", "path": "/health"},
        {"type": "http", "method": "POST", "path": "/v1/taxbreak/capture"},
        {"type": "websocket", "path": "/v1/realtime"},
        {"type": "lifespan"},
    ],
)
def test_what_cannot_go_to_the_engine_passes_untouched(scope):
    calls = []

    async def app(*call):
        calls.append(call)

    in_flight = InFlight()
    in_flight.is_on = True
    receive, send = object(), object()
    asyncio.run(RequestMiddleware(app, in_flight=in_flight)(scope, receive, send))

    assert calls == [(scope, receive, send)]


def test_a_request_whose_client_leaves_has_failed_and_leaves_nothing(serve):
    async def use(server):
        in_flight = watch(server)
        server.engine.delay_s = 0.005
        server.engine.num_tokens = 10_000
        parts, is_gone = [], asyncio.Event()

        async def receive():
            if not parts:
                parts.append(None)
                return {"type": "http.request", "body": b'{"stream": true, "prompt": ["a"]}'}
            await is_gone.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            parts.append(message)
            if len(parts) > 4:
                is_gone.set()

        scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": [], "query_string": b""}
        await server.app(scope | {"asgi": {"version": "3.0", "spec_version": "2.3"}}, receive, send)
        return in_flight, dict(server.llm.output_processor.request_states)

    in_flight, left = serve(use)
    found = account(in_flight.requests.take())

    assert (len(found.rows), found.num_failed, found.num_unknown) == (0, 1, 0)
    assert (in_flight.num_open, in_flight.num_in_engine, in_flight.fault, left) == (0, 0, None, {})


def test_a_request_that_the_engine_fails_has_failed(serve):
    async def use(server):
        in_flight = watch(server)
        server.engine.failure = RuntimeError("the engine is dead")
        with suppress(Exception):
            await server.post()
        return in_flight

    found = account(serve(use).requests.take())

    assert (len(found.rows), found.num_failed, found.num_unknown) == (0, 1, 0)


def test_without_vllms_statistics_requests_are_unknown(serve):
    async def use(server):
        in_flight = watch(server)
        await server.post(stream=True)
        return in_flight

    found = account(serve(use, log_stats=False).requests.take())

    assert (len(found.rows), found.num_failed, found.num_unknown) == (0, 0, 1)


@pytest.mark.parametrize("num_engines", [1, 2])
def test_a_row_names_the_engine_that_served_it(serve, num_engines):
    async def use(server):
        in_flight = watch(server)
        for _ in range(4):
            await server.post()
        return in_flight.requests.take(), server.engine.sent_to

    rows, sent_to = serve(use, num_engines=num_engines)

    assert rows[:, Column.ENGINE].tolist() == [int.from_bytes(name, "little") for name in sent_to]
    assert len(set(sent_to)) == num_engines


def test_a_request_that_came_by_another_way_is_left_alone(serve):
    async def use(server):
        in_flight = watch(server)
        params = server._vllm.SamplingParams(max_tokens=4)
        outputs = [out async for out in server.llm.generate({"type": "token", "prompt_token_ids": [7]}, params, "a")]
        return in_flight, outputs

    in_flight, outputs = serve(use)

    assert outputs[-1].finished
    assert len(in_flight.requests.take()) == 0


def test_an_ended_request_is_not_held(serve):
    """Neither its record nor vLLM's objects, and without help from the collector of cycles."""

    async def use(server):
        in_flight = watch(server)
        held = []
        add = server.llm.output_processor.add_request

        def add_request(request, prompt, parent=None, index=0, queue=None):
            held.append(queue)
            return add(request, prompt, parent, index, queue)

        server.llm.output_processor.add_request = add_request
        await server.post(stream=True, n=2)
        (queue,) = set(held)
        return in_flight, vars(queue)

    _, attributes = serve(use)

    assert "put" not in attributes


class FailingClock:
    """Fails from its `fails_at`th reading on."""

    def __init__(self, fails_at=None):
        self.fails_at = fails_at
        self.num_readings = 0

    def __call__(self):
        self.num_readings += 1
        if self.fails_at is not None and self.num_readings >= self.fails_at:
            raise RuntimeError("no clock")
        return monotonic_ns()


def _num_stamps(serve, asked):
    clock = FailingClock()

    async def use(server):
        watch(server, now=clock)
        return await server.post(**asked)

    return serve(use), clock.num_readings


@pytest.mark.parametrize("asked", [{"stream": True}, {"n": 2}], ids=["streamed", "whole"])
def test_whichever_stamp_fails_the_client_gets_its_answer(serve, caplog, asked):
    answer, num_stamps = _num_stamps(serve, asked)
    assert num_stamps > 8

    for fails_at in range(1, num_stamps + 1):
        caplog.clear()

        async def use(server, fails_at=fails_at):
            in_flight = watch(server, now=FailingClock(fails_at))
            answers = [await server.post(**asked) for _ in range(2)]
            return in_flight, answers

        in_flight, answers = serve(use)

        assert answers == [answer, answer]
        assert "no clock" in in_flight.fault
        assert not in_flight.is_on
        assert (in_flight.num_open, in_flight.num_in_engine) == (0, 0)
        assert len([record for record in caplog.records if record.name == "vllm.taxbreak"]) == 1


class Failing:
    """What is written to, full of holes."""

    def __getattr__(self, name):
        raise RuntimeError("no place to write to")


@pytest.mark.parametrize("place", ["requests", "outputs", "lags", "arrivals"])
def test_whatever_cannot_be_written_the_client_gets_its_answer(serve, caplog, place):
    async def use(server):
        in_flight = watch(server)
        setattr(in_flight, place, Failing())
        server.engine.delay_s = 0.03  # the loop is asked to call back meanwhile
        return in_flight, [await server.post(stream=True) for _ in range(2)]

    async def ask(server):
        return [await server.post(stream=True) for _ in range(2)]

    in_flight, answers = serve(use)

    assert answers == serve(ask)
    assert "no place" in in_flight.fault
    assert (in_flight.num_open, in_flight.num_in_engine) == (0, 0)
    assert len([record for record in caplog.records if record.name == "vllm.taxbreak"]) == 1


HOOKED = [
    ("renderer", "render_cmpl_async"),
    ("renderer", "render_chat_async"),
    ("input_processor", "process_inputs"),
    ("output_processor", "add_request"),
    ("output_processor", "process_outputs"),
    ("engine_core", "add_request_async"),
    ("engine_core", "get_core_engine_for_request"),
]


@pytest.mark.parametrize(("owner", "name"), HOOKED)
def test_what_an_original_returns_or_raises_passes_and_it_is_called_once(serve, owner, name):
    async def use(server):
        target, calls = getattr(server.llm, owner), []
        is_async = asyncio.iscoroutinefunction(getattr(target, name)) or name.startswith("render")

        def original(*args, **kwargs):
            calls.append((args, kwargs))
            if kwargs.get("fails"):
                raise KeyError("its own")
            return calls

        async def original_async(*args, **kwargs):
            return original(*args, **kwargs)

        setattr(target, name, original_async if is_async else original)
        in_flight = watch(server)
        hook = getattr(target, name)

        async def call(*args, **kwargs):
            result = hook(*args, **kwargs)
            return await result if is_async else result

        assert await call("a", 1.5, word="c") is calls
        with pytest.raises(KeyError, match="its own"):
            await call("a", fails=True)
        return calls, in_flight.fault

    calls, fault = serve(use, num_engines=2)

    assert calls == [(("a", 1.5), {"word": "c"}), (("a",), {"fails": True})]
    assert fault is None


class Without:
    """An object but for one attribute."""

    def __init__(self, whole, name):
        self._whole, self._name = whole, name

    def __getattr__(self, name):
        if name == self._name:
            raise AttributeError(name)
        return getattr(self._whole, name)


@pytest.mark.parametrize(("owner", "name"), HOOKED[2:6])
def test_hooks_are_put_on_all_or_none(serve, owner, name):
    """A vLLM that has one of them elsewhere is not half hooked."""

    async def use(server):
        setattr(server.llm, owner, Without(getattr(server.llm, owner), name))
        before = dict(vars(server.llm.renderer))
        with pytest.raises(AttributeError):
            RequestHooks(InFlight()).attach(server.llm)
        return before, vars(server.llm.renderer)

    before, after = serve(use)

    assert before == after


@pytest.mark.parametrize(
    ("request_id", "name", "number"),
    [("cmpl-1-0-deadbeef", "cmpl-1-0", 0xDEADBEEF), ("1_cmpl-1-0-0000000a", "cmpl-1-0", 10)],
)
def test_a_number_is_what_vllm_put_behind_a_name(request_id, name, number):
    assert random_number(request_id, name) == number


@pytest.mark.parametrize(("request_id", "name"), [("ward-deadbeef", "ward-deadbeef"), ("a-nothex!!", "a"), ("a", "a")])
def test_nothing_of_a_name_that_a_client_chose_is_kept(request_id, name):
    numbers = {random_number(request_id, name) for _ in range(4)}

    assert len(numbers) > 1
    assert all(0 <= number < 2**32 for number in numbers)
