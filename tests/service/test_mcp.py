"""`taxbreak mcp` as a process, over stdio and HTTP, in front of a real sidecar on a spool with captures."""

import asyncio
import gzip
import os
import re
import subprocess
import sys
import threading
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import pytest

from taxbreak_vllm.model.engine import Between, EnginePart, EngineState
from taxbreak_vllm.model.frontend import FrontendState, Stage, Waterfall
from taxbreak_vllm.service.processes.analyzer import Analyzer
from taxbreak_vllm.taxes.analyze import analyze

pytest.importorskip("mcp.server.mcpserver")
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client

KEY = "s3cret"
BERT = Path(__file__).parents[1] / "data" / "traces" / "h100_hf_bert-small_infer.json.gz"


@pytest.fixture
def command(start_sidecar, tmp_path):
    """The words that serve agents in front of a sidecar with these settings."""

    def command(*words, **settings):
        url = start_sidecar(**settings)
        return ["-m", "taxbreak_vllm.cli", "mcp", "--url", url, "--traces", str(tmp_path), *map(str, words)]

    return command


def over_stdio(words, **environment):
    return Client(StdioServerParameters(command=sys.executable, args=words, env={**os.environ, **environment}))


@pytest.fixture
def serve_http(command):
    """Serve HTTP with a key; gives the address."""
    started = []

    def serve_http(*words, **settings):
        told = command("--http", "--port", 0, *words, **settings)
        environment = os.environ | {"TAXBREAK_API_KEY": KEY}
        started.append(subprocess.Popen([sys.executable, *told], stderr=subprocess.PIPE, text=True, env=environment))
        (url,) = re.findall(r"http://\S+", started[-1].stderr.readline())
        return url

    yield serve_http
    for process in started:
        with process:
            process.terminate()
            assert process.wait(60) == 0


@asynccontextmanager
async def over_http(url, key):
    carrier = httpx2.AsyncClient(headers={"Authorization": f"Bearer {key}"}, timeout=30)
    async with carrier, Client(streamable_http_client(url, http_client=carrier)) as client:
        yield client


async def ask(client, name, **arguments):
    result = await client.call_tool(name, arguments)
    assert not result.is_error, result.content[0].text
    return result.structured_content


def test_an_agent_finds_out_what_is_slow_on_a_server_and_why(command, filled, spool):
    engine = EngineState(
        server_id="vllm-a", engine="0", updated_unix_ns=2**62, num_iterations=10, iterations_ns=100,
        exposed_ns={EnginePart.SCHEDULE: 30}, between_ns={Between.NO_WORK: 70},
    )  # fmt: skip
    spool.put_engine_state(engine)
    request = Waterfall(
        number=7, engine="0", started_unix_ns=1, total_ns=30, ttft_ns=30, first_token_ns={},
        stages_ns={Stage.QUEUE: 10, Stage.PREFILL: 20}, num_prompt_tokens=1, num_output_tokens=1, is_streamed=False,
    )  # fmt: skip
    spool.put_frontend_state(FrontendState(server_id="vllm-a", updated_unix_ns=2**62, num_requests=1))
    spool.put_waterfalls("vllm-a", "0", [request])

    async def explore():
        async with over_stdio(command()) as client:
            slow = await ask(client, "what_is_slow", phase="decode")
            every = await ask(client, "what_is_slow", most=1)
            why = await ask(client, "why")
            listed = await ask(client, "list_steps", limit=2)
            step = await ask(client, "get_step", step_id="step-decode")
            moved = await ask(client, "compare", a="step:step-decode", b="step:step-prefill")
            loops = await ask(client, "iterations")
            requests = await ask(client, "requests")
            limit = await ask(client, "hardware_limit", phase="decode")
            status = await ask(client, "server_status")
            unknown = await client.call_tool("get_step", {"step_id": "step-none"})
            return slow, every, why, listed, step, moved, loops, requests, limit, status, unknown

    slow, every, why, listed, step, moved, loops, requests, limit, status, unknown = asyncio.run(explore())

    assert [phase["phase"] for phase in slow["phases"]] == ["decode"]
    assert slow["phases"][0]["device"]["idle"]["host_ns"] == 50 * 10**6
    assert len(every["phases"]) == 1
    assert "phases: 1 of 6" in every["left_out"]
    assert why["verdict"] in ("act", "no action", "conditional", "withheld")
    assert why["reasons"] or why["advice"]
    assert len(listed["steps"]) == 2
    assert listed["next"]
    assert step["steps"][0]["taxes"]["delta_ft_ns"] == 60 * 10**6
    assert {section["phase"] for section in moved["sections"]} >= {None}
    assert [found["stages_ns"] for found in requests["waterfalls"]] == [{"queue": 10, "prefill": 20}]
    assert [found["num_requests"] for found in requests["api_servers"]] == [1]
    assert loops["engines"][0]["exposed_ns"] == {"schedule": 30}
    assert limit["phases"]["decode"]["bar"]["exposed_ns"]["delta_ft"] == 40 * 10**6
    assert limit["phases"]["decode"]["mfu"] is None
    assert [server["live"] for server in status["servers"]] == [True]
    assert unknown.is_error
    assert unknown.content[0].text.endswith("404 no such analyzed step")


def test_an_agent_asks_recorded_steps_of_the_server_what_a_change_would_do(
    command, put, spool, results, settings, put_graph_floors
):
    put("a", trace=gzip.decompress(BERT.read_bytes()))
    Analyzer(spool, results, lambda capture: analyze(capture.path), retention_ns=10**18).turn()

    async def explore():
        async with over_stdio(command()) as client:
            newest = await ask(client, "what_if", host=["0.5..0.7"])
            named = await ask(client, "what_if", step_id="a", kernels=["gemm=0.6"], graph="full")
            wrong = await client.call_tool("what_if", {"host": ["rust=2"]})
            put_graph_floors(settings.baselines_path)
            measured = await ask(client, "what_if", step_id="a", graph="full")
            return newest["answers"], named["answers"], measured["answers"], wrong

    (newest,), (named,), (measured,), wrong = asyncio.run(explore())

    (step,) = newest["steps"]
    assert (newest["step_id"], newest["phase"], newest["change"]) == ("a", "decode", "--host 0.5..0.7")
    assert step["low_ns"] <= step["predicted_ns"] <= step["high_ns"] < step["observed_ns"]
    assert named["refused"].startswith("--graph full: ")
    (graph,) = measured["steps"]
    assert graph["host_free_ns"] < graph["low_ns"] <= graph["predicted_ns"] <= graph["high_ns"]
    assert graph["predicted_ns"] < graph["observed_ns"] / 3  # 4.5 ms of launching; its kernels take 0.4 ms
    assert wrong.is_error
    assert "422 " in wrong.content[0].text


def test_a_capture_waits_for_its_steps_and_tells_how_far_it_is(command, spool, put, reference, make_state, until):
    spool.put_state(make_state(updated_unix_ns=2**62))
    good = reference.to_json([reference.op("aten::mm", 0, 100), reference.op("aten::add", 200, 300)]).encode()

    def record():
        request = until(lambda: spool.read_request("vllm-a"))
        for number in range(request.steps):
            put(f"{request.capture_id}-{number}", capture_id=request.capture_id, trace=good)

    told = []

    async def on_progress(progress, total, message):
        told.append((progress, total, message))

    async def capture():
        async with over_stdio(command("--allow-control")) as client:
            worker = threading.Thread(target=record)
            worker.start()
            result = await client.call_tool("capture", {"steps": 2, "timeout_s": 20}, progress_callback=on_progress)
            worker.join()
            return result

    result = asyncio.run(capture())

    assert not result.is_error, result.content[0].text
    assert len(result.structured_content["steps"]) == 2
    assert result.structured_content["gap"] == ""
    assert told[-1] == (4, 4, "2 of 2 steps recorded, 2 analyzed")
    assert [progress for progress, _, _ in told] == sorted(progress for progress, _, _ in told)


def test_a_capture_that_gets_no_step_is_an_error_in_its_time(command, spool, make_state):
    spool.put_state(make_state(updated_unix_ns=2**62))

    async def capture():
        async with over_stdio(command("--allow-control")) as client:
            return await client.call_tool("capture", {"steps": 1, "timeout_s": 1})

    result = asyncio.run(capture())

    assert result.is_error
    assert result.content[0].text.endswith("0 of 1 steps came in time (expired)")


def test_a_capture_given_up_by_its_agent_is_taken_back(command, spool, make_state, until):
    spool.put_state(make_state(updated_unix_ns=2**62))

    async def capture():
        async with over_stdio(command("--allow-control")) as client:
            asked = asyncio.create_task(client.call_tool("capture", {"steps": 1, "timeout_s": 60}))
            await asyncio.to_thread(until, lambda: spool.read_request("vllm-a"))
            asked.cancel()
            await asyncio.gather(asked, return_exceptions=True)
            await asyncio.to_thread(until, lambda: spool.read_request("vllm-a") is None)

    asyncio.run(capture())


def test_over_http_the_key_lets_in_and_goes_on_to_the_server(serve_http, filled):
    url = serve_http(api_key=KEY)

    async def slow():
        async with over_http(url, KEY) as client:
            return await ask(client, "what_is_slow")

    assert len(asyncio.run(slow())["phases"]) == 6
    for headers in ({}, {"Authorization": "Bearer other"}, {"Authorization": KEY}):
        refused = httpx2.post(
            url, headers=headers, json={"jsonrpc": "2.0", "id": 1, "method": "tools/list"}, timeout=60
        )
        assert refused.status_code == 401
        assert refused.headers["content-type"] == "application/problem+json"


def test_http_is_bound_to_this_machine_and_refuses_another_name_for_it(serve_http, filled):
    url = serve_http()

    answer = httpx2.post(url, headers={"Authorization": f"Bearer {KEY}", "Host": "evil.example"}, json={}, timeout=60)

    assert url.startswith("http://127.0.0.1:")
    assert answer.status_code == 421


def test_a_server_that_asks_for_a_key_is_told_in_one_line(command, filled):
    async def slow():
        async with over_stdio(command(api_key=KEY)) as client:
            return await client.call_tool("what_is_slow", {})

    result = asyncio.run(slow())

    assert result.is_error
    assert result.content[0].text.endswith("401 this needs the key of TAXBREAK_API_KEY as a bearer token")


def test_without_the_sdk_one_line_says_what_to_install():
    script = "import sys; sys.modules['mcp'] = None; sys.argv[1:] = ['mcp']; from taxbreak_vllm.cli import main; main()"

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "taxbreak: taxbreak mcp needs version 2 of the MCP SDK: pip install 'taxbreak-vllm[mcp]'\n"
