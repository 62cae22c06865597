"""What timing requests costs an API server's event loop: requests and outputs through calls that do nothing.

    python benchmarks/request_cost.py

Rounds of bare and hooked requests take turns in one run. A round's cost is the mean CPU time of its requests; that of
an output is the slope between requests of few and of many. What is reported is the median round: of a request whose
outputs are not followed, of one that is, and of one that does not go to the engine. An output is held to its limit by
the best rounds, as `loop_cost.py` does. Beside them the time another thread takes to count a second's rows, of 500
requests.
"""

import asyncio
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

from yardstick import allowed_ns, empty_hook_ns

from taxbreak_vllm.model.frontend import FrontendState
from taxbreak_vllm.serving.frontend import in_flight as in_flight_module
from taxbreak_vllm.serving.frontend.arrivals import Arrivals
from taxbreak_vllm.serving.frontend.hooks import RequestHooks
from taxbreak_vllm.serving.frontend.in_flight import InFlight
from taxbreak_vllm.serving.frontend.middleware import RequestMiddleware
from taxbreak_vllm.serving.frontend.watch import FrontendWatch
from taxbreak_vllm.settings import load_settings
from taxbreak_vllm.spool.spool import Spool

NUM_ROUNDS = 41
NUM_REQUESTS = 100
FEW, MANY = 2, 102
LIMIT_NS = 500
ROWS_PER_S = 500
POST = {"type": "http", "method": "POST", "path": "/v1/completions"}
GET = {"type": "http", "method": "GET", "path": "/health"}
START = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]}
PART = {"type": "http.response.body", "body": b"data", "more_body": True}
LAST = {"type": "http.response.body", "body": b"", "more_body": False}
MORE, LAST_OUTPUT = SimpleNamespace(finished=False), SimpleNamespace(finished=True)


class Collector:
    """Where the outputs of a request are put."""

    def put(self, output: object) -> None:
        return None


class Client:
    """The calls of vLLM's AsyncLLM that are hooked, doing nothing, and an app that makes them for each request."""

    def __init__(self) -> None:
        self.renderer = SimpleNamespace(render_cmpl_async=self._render, render_chat_async=self._render)
        self.input_processor = SimpleNamespace(process_inputs=lambda request: None)
        self.output_processor = SimpleNamespace(
            request_states={}, add_request=lambda request: None, process_outputs=lambda outputs, at_s: None
        )
        self.engine_core = SimpleNamespace(add_request_async=self._add, core_engine=b"\0\0")
        self.request = SimpleNamespace(request_id="cmpl-0-0123abcd", external_req_id="cmpl-0")
        self.num_outputs = FEW

    async def _render(self, prompt: object) -> None:
        return None

    async def _add(self, request: object) -> None:
        return None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:  # noqa: ANN401 - ASGI
        if scope["method"] == "GET":
            return
        await receive()
        await self.renderer.render_cmpl_async("prompt")
        self.input_processor.process_inputs(self.request)
        collector, now_s = Collector(), time.monotonic()
        stats = SimpleNamespace(
            queued_ts=now_s, scheduled_ts=now_s, first_token_ts=now_s, last_token_ts=now_s, num_generation_tokens=1
        )
        state = SimpleNamespace(stats=stats, request_index=0, prompt_len=1, queue=collector)
        self.output_processor.request_states[self.request.request_id] = state
        self.output_processor.add_request(self.request)
        await self.engine_core.add_request_async(self.request)
        await send(START)
        for output in [MORE] * (self.num_outputs - 1) + [LAST_OUTPUT]:
            collector.put(output)
            await send(PART)
        await send(LAST)


async def receive() -> dict[str, object]:
    return {"type": "http.request", "body": b"", "more_body": False}


async def send(message: object) -> None:
    return None


async def time_requests(app: Any, scope: Any) -> float:  # noqa: ANN401 - an ASGI app
    """Return the mean CPU time of a request in ns."""
    begun_ns = time.thread_time_ns()
    for _ in range(NUM_REQUESTS):
        await app(scope, receive, send)
    return (time.thread_time_ns() - begun_ns) / NUM_REQUESTS


@dataclass(frozen=True)
class Costs:
    """In ns: of a request, of one of its outputs, by the best rounds too, and of a request past the engine."""

    request: float
    output: float
    best_output: float
    past: float
    empty_hook: float


async def compare(folder: Path, *, followed_every: int) -> Costs:
    in_flight_module.FOLLOWED_EVERY = followed_every
    bare, hooked, in_flight = Client(), Client(), InFlight()
    app = RequestMiddleware(hooked, in_flight=in_flight)
    RequestHooks(in_flight).attach(hooked)
    in_flight.arrivals, in_flight.is_on = Arrivals(folder / "arrivals"), True
    bares: dict[int, list[float]] = {FEW: [], MANY: []}
    hookeds: dict[int, list[float]] = {FEW: [], MANY: []}
    past, empty = [], []
    for _ in range(NUM_ROUNDS):
        empty.append(empty_hook_ns())
        for num_outputs in FEW, MANY:
            bare.num_outputs = hooked.num_outputs = num_outputs
            bares[num_outputs].append(await time_requests(bare, POST))
            hookeds[num_outputs].append(await time_requests(app, POST))
            in_flight.requests.take()
            in_flight.outputs.take()
            in_flight.lags.take()
        past.append(-await time_requests(bare, GET) + await time_requests(app, GET))
    few, many = ([b - a for a, b in zip(bares[num], hookeds[num], strict=True)] for num in (FEW, MANY))
    output_ns = statistics.median((b - a) / (MANY - FEW) for a, b in zip(few, many, strict=True))
    best_few, best_many = (min(hookeds[num]) - min(bares[num]) for num in (FEW, MANY))
    return Costs(
        request=statistics.median(few) - FEW * output_ns,
        output=output_ns,
        best_output=(best_many - best_few) / (MANY - FEW),
        past=statistics.median(past),
        empty_hook=min(empty),
    )


async def time_messages(num_outputs: int) -> float:
    """Return what a message of the engine costs in ns, with so many outputs in it."""
    outputs = [SimpleNamespace(trace_headers=None) for _ in range(num_outputs)]
    bare, hooked = Client(), Client()
    RequestHooks(InFlight()).attach(hooked)
    rounds = []
    for _ in range(NUM_ROUNDS):
        spent = []
        for client in (bare, hooked):
            take = client.output_processor.process_outputs
            begun_ns = time.thread_time_ns()
            for _ in range(10 * NUM_REQUESTS):
                take(outputs, 1.5)
            spent.append((time.thread_time_ns() - begun_ns) / NUM_REQUESTS / 10)
        rounds.append(spent[1] - spent[0])
    return statistics.median(rounds)


async def time_counting(folder: Path) -> float:
    """Return the CPU time that counting a second's requests and publishing them takes, in ns."""
    client, in_flight = Client(), InFlight()
    in_flight_module.FOLLOWED_EVERY = 64
    app = RequestMiddleware(client, in_flight=in_flight)
    spool = Spool(folder / "spool", max_bytes=2**30, max_captures=1)
    watch = FrontendWatch(in_flight, spool, FrontendState(server_id="server"), load_settings())
    watch.attach(client)
    rounds = []
    for _ in range(NUM_ROUNDS):
        for _ in range(ROWS_PER_S):
            await app(POST, receive, send)
        begun_ns = time.thread_time_ns()
        watch.turn()
        rounds.append(time.thread_time_ns() - begun_ns)
    return statistics.median(rounds)


def main() -> int:
    with TemporaryDirectory() as name:
        folder = Path(name)
        plain = asyncio.run(compare(folder, followed_every=10**9))
        followed = asyncio.run(compare(folder, followed_every=1))
        message_ns, full_ns = asyncio.run(time_messages(0)), asyncio.run(time_messages(MANY))
        counting_ns = asyncio.run(time_counting(folder))
    most_ns = allowed_ns(LIMIT_NS, plain.empty_hook)
    print(
        f"an output of a request: {plain.output:,.0f} ns (best {plain.best_output:,.0f} ns); at most {LIMIT_NS} ns, "
        f"here {most_ns:,.0f} ns; followed {followed.output:,.0f} ns"
    )
    print(
        f"a message of the engine: {message_ns:,.0f} ns, {(full_ns - message_ns) / MANY:,.0f} ns for each output in it"
    )
    print(f"a request, its outputs aside: {plain.request:,.0f} ns; followed {followed.request:,.0f} ns")
    print(f"a request that does not go to the engine: {plain.past:,.0f} ns")
    print(f"counting {ROWS_PER_S} requests, on another thread: {counting_ns / 1e6:.2f} ms")
    return int(plain.best_output > most_ns)


if __name__ == "__main__":
    sys.exit(main())
