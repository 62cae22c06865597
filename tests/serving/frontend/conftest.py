"""An API server of vLLM's own classes: its `AsyncLLM`, output processor and core client, with an engine behind them
that answers each request with made-up tokens, and an app of Starlette's before them."""

import asyncio
import json
import time
import warnings
from importlib import import_module
from types import SimpleNamespace

import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Route

from taxbreak_vllm.serving.engine.queueing import HEADER

_ENGINE = (
    "EngineCoreEvent",
    "EngineCoreEventType",
    "EngineCoreOutput",
    "EngineCoreOutputs",
    "EngineCoreRequest",
    "EngineCoreRequestType",
    "FinishReason",
)
_CLASSES = {
    "AsyncLLM": "v1.engine.async_llm",
    "AsyncMPClient": "v1.engine.core_client",
    "DPLBAsyncMPClient": "v1.engine.core_client",
    "InputProcessor": "v1.engine.input_processor",
    "OutputProcessor": "v1.engine.output_processor",
    "MsgpackDecoder": "v1.serial_utils",
    "MsgpackEncoder": "v1.serial_utils",
    "RequestOutputKind": "sampling_params",
    "SamplingParams": "sampling_params",
    "merge_async_iterators": "utils.async_utils",
}


@pytest.fixture(scope="session")
def vllm():
    """The classes of the installed vLLM."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of vLLM's own imports
        pytest.importorskip("vllm.v1.engine.core_client", exc_type=ImportError)
        return SimpleNamespace(
            **{name: getattr(import_module("vllm.v1.engine"), name) for name in _ENGINE},
            **{name: getattr(import_module(f"vllm.{module}"), name) for name, module in _CLASSES.items()},
        )


class Engine:
    """Answers what is sent to it: `num_tokens` for each request, one message a token, for all requests at once."""

    def __init__(self, vllm, put):
        self._vllm = vllm
        self._put = put
        self._decode = vllm.MsgpackDecoder(vllm.EngineCoreRequest).decode
        self._tasks = set()
        self.num_tokens = 4
        self.delay_s = 0.0
        self.requests = []
        self.sent_to = []
        self.failure = None
        self.headers = {}  # of the first output of a request, besides what it waited for
        self.now_ns = time.monotonic_ns
        self.pause = lambda place: None  # called where time may be spent

    def _waited(self, place):
        begun_ns = self.now_ns()
        self.pause(place)
        return self.now_ns() - begun_ns

    def send_multipart(self, frames, copy):
        """Stand for the socket to the engine."""
        name, kind, *message = frames
        done = asyncio.get_running_loop().create_future()
        done.set_result(None)
        if kind == self._vllm.EngineCoreRequestType.ADD.value:
            request = self._decode(message)
            self.requests.append(request)
            self.sent_to.append(name)
            task = asyncio.get_running_loop().create_task(self._answer(request, int.from_bytes(name, "little")))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return done

    async def _answer(self, request, index):
        engine = self._vllm
        await asyncio.sleep(self.delay_s)
        if self.failure:
            self._put(self.failure)
            return
        self.pause("ipc_input")
        events = [engine.EngineCoreEvent.new_event(engine.EngineCoreEventType.QUEUED, self.now_ns() / 1e9)]
        self.pause("queue")
        waits = [self._waited("queue_" + what) for what in ("kv", "encoder", "grammar", "remote_kv")]
        events.append(engine.EngineCoreEvent.new_event(engine.EngineCoreEventType.SCHEDULED, self.now_ns() / 1e9))
        for number in range(self.num_tokens):
            self.pause("decode" if number else "prefill")
            output = engine.EngineCoreOutput(
                request.request_id,
                [7],
                events=events,
                trace_headers=None if number else {HEADER: ",".join(map(str, waits))} | self.headers,
                finish_reason=engine.FinishReason.LENGTH if number == self.num_tokens - 1 else None,
            )
            outputs = engine.EngineCoreOutputs(index, [output], timestamp=self.now_ns() / 1e9)
            self.pause("ipc_output")
            self._put(outputs)
            events = None
            await asyncio.sleep(self.delay_s)


class ApiServer:
    """One API server; `llm` is the `AsyncLLM`, `app` what serves `/v1/completions` and `/health`."""

    def __init__(self, vllm, *, log_stats=True, num_engines=1, client_index=0):
        self._vllm = vllm
        kind = vllm.AsyncMPClient if num_engines == 1 else vllm.DPLBAsyncMPClient
        core = kind.__new__(kind)
        core.outputs_queue = asyncio.Queue()
        self.engine = core.input_socket = Engine(vllm, core.outputs_queue.put_nowait)
        core.encoder = vllm.MsgpackEncoder()
        core.client_index, core.client_count = client_index, client_index + 1
        core.core_engines = [number.to_bytes(2, "little") for number in range(num_engines)]
        core.core_engine = core.core_engines[0]
        core.resources = SimpleNamespace(engine_dead=False, output_queue_task=True)
        core.ensure_alive = lambda: None
        if num_engines > 1:
            core._ensure_stats_update_task = lambda: None
            core.current_wave, core.engines_running = 0, True
            core.reqs_in_flight, core.engine_inflight = {}, dict.fromkeys(core.core_engines, 0)
            core.lb_engines, core.eng_start_index = [[0, 0, 0.0] for _ in range(num_engines)], 0
        llm = self.llm = vllm.AsyncLLM.__new__(vllm.AsyncLLM)
        llm.engine_core = core
        llm.output_processor = vllm.OutputProcessor(None, log_stats=log_stats)
        process_outputs = llm.output_processor.process_outputs
        llm.output_processor.process_outputs = lambda *args, **kwargs: (
            self.engine.pause("detokenize") or process_outputs(*args, **kwargs)
        )
        llm.renderer = SimpleNamespace(
            render_cmpl_async=self._render,
            render_chat_async=self._render,
            mm_processor_cache=None,
            stat_mm_cache=lambda: None,
            shutdown=lambda: None,
        )
        llm.input_processor = SimpleNamespace(
            process_inputs=self._process, assign_request_id=vllm.InputProcessor.assign_request_id
        )
        llm.vllm_config = SimpleNamespace(
            instance_id="170",
            cache_config=SimpleNamespace(kv_sharing_fast_prefill=False),
            model_config=SimpleNamespace(served_model_name="tiny", is_encoder_decoder=False),
        )
        llm.model_config = llm.vllm_config.model_config
        llm.scheduler_config = SimpleNamespace(max_num_queued_reqs=None, max_num_queued_tokens=None)
        llm.observability_config = SimpleNamespace(otlp_traces_endpoint=None)
        llm.log_requests, llm.log_stats = False, log_stats
        llm.logger_manager, llm.admission_stats, llm.output_handler = None, None, None
        llm._supported_tasks = ("generate",)
        core.shutdown = lambda timeout=None: None
        self.refusal = None
        self.app = Starlette(
            routes=[
                Route("/v1/completions", self._complete, methods=["POST"]),
                Route("/v1/tokenize", lambda request: JSONResponse([7]), methods=["POST"]),
                Route("/v1/taxbreak/steps", lambda request: JSONResponse([]), methods=["POST"]),
                Route("/health", lambda request: PlainTextResponse("well")),
            ]
        )

    async def _render(self, prompts, *args, **kwargs):
        await asyncio.sleep(0)
        self.engine.pause("render")
        return [{"type": "token", "prompt_token_ids": [7] * len(prompt)} for prompt in prompts]

    def _process(self, request_id, prompt, params, **kwargs):
        if self.refusal:
            raise self.refusal
        self.engine.pause("submit")
        return self._vllm.EngineCoreRequest(
            request_id, prompt["prompt_token_ids"], None, params, None, time.time(), None, None, None
        )

    async def _complete(self, http):
        asked = await http.json()
        self.engine.pause("parse")
        kind = self._vllm.RequestOutputKind
        params = self._vllm.SamplingParams(
            n=asked.get("n", 1),
            max_tokens=self.engine.num_tokens,
            output_kind=kind.DELTA if asked.get("stream") else kind.FINAL_ONLY,
        )
        prompts = asked["prompt"]
        if all(isinstance(prompt, str) for prompt in prompts):
            prompts = await self.llm.renderer.render_cmpl_async(prompts)
        else:
            prompts = [{"type": "token", "prompt_token_ids": prompt} for prompt in prompts]
        name = http.headers.get("x-request-id", "cmpl-name")
        results = self._vllm.merge_async_iterators(
            *(self.llm.generate(prompt, params, f"{name}-{place}") for place, prompt in enumerate(prompts))
        )

        async def parts():
            async for place, output in results:
                self.engine.pause("serialize")
                yield f"data: {json.dumps([place, [len(found.token_ids) for found in output.outputs]])}\n\n"
            yield "data: [DONE]\n\n"

        if asked.get("stream"):
            return StreamingResponse(parts(), media_type="text/event-stream")
        return JSONResponse(sorted([part async for part in parts()]))

    async def post(self, path="/v1/completions", **asked):
        """Ask as a client does, and return the answer's text."""
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            asked.setdefault("prompt", ["a few words"])
            response = await client.post(path, json=asked, headers=asked.pop("headers", {}))
        return response.text

    async def get(self, path):
        transport = httpx.ASGITransport(self.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            return (await client.get(path)).text

    def close(self):
        if self.llm.output_handler is not None:
            self.llm.output_handler.cancel()


@pytest.fixture
def serve(vllm):
    """Return what runs a coroutine function with an API server."""

    def serve(use, **options):
        async def run():
            server = ApiServer(vllm, **options)
            try:
                return await use(server)
            finally:
                server.close()

        return asyncio.run(run())

    return serve
