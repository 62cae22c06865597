"""The tools of `taxbreak mcp` over given traces, as the SDK's own client meets them; the server is a made-up one."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest

pytest.importorskip("mcp.server.mcpserver")
from mcp import Client

from taxbreak_vllm.agents.questions import Questions
from taxbreak_vllm.agents.server import create_server
from taxbreak_vllm.agents.traces import Traces
from taxbreak_vllm.cli.client import CaptureError
from taxbreak_vllm.model.step import Phase
from taxbreak_vllm.model.transition import Sign, SizeBucket, SizeUnit, Transition, Transitions, Turn

DATA = Path(__file__).parents[1] / "data"


class NoServer:
    """A server that answers what it was given, and cannot be reached for anything else."""

    def __init__(self, **answers):
        self.answers = answers
        self.asked = []

    def get(self, path, **params):
        self.asked.append((path, params))
        if path not in self.answers:
            raise CaptureError("http://host:1: cannot be reached\n(Connection refused)")
        return self.answers[path]

    def replay(self, **params):
        return self.get("whatif", **params)


@pytest.fixture
def call():
    """Call a tool and check what comes back against the schema that was shown."""

    def call(name, server=None, *, folder=DATA, baselines=None, **arguments):
        async def ask():
            app = create_server(Questions(server or NoServer(), Traces(folder, baselines=baselines)))
            async with Client(app) as client:
                tools = {tool.name: tool for tool in (await client.list_tools()).tools}
                result = await client.call_tool(name, arguments)
                return result, tools.get(name)

        result, tool = asyncio.run(ask())
        if not result.is_error:
            assert json.loads(result.content[0].text) == result.structured_content
            jsonschema.validate(result.structured_content, tool.output_schema)
        return result

    return call


def words(result):
    assert result.is_error
    assert result.content[0].text.count("\n") == 0
    return result.content[0].text


def test_every_tool_only_reads_and_every_word_it_takes_is_described():
    async def list_tools(*, allow_control):
        async with Client(create_server(Questions(NoServer(), Traces(DATA)), allow_control=allow_control)) as client:
            return (await client.list_tools()).tools

    tools = asyncio.run(list_tools(allow_control=False))
    more = asyncio.run(list_tools(allow_control=True))

    assert {tool.name for tool in tools} == {
        "what_is_slow", "why", "list_steps", "get_step", "iterations", "requests", "hardware_limit", "transition",
        "server_status", "compare", "what_if", "analyze_trace",
    }  # fmt: skip
    assert {tool.name for tool in more} - {tool.name for tool in tools} == {"capture"}
    assert all(tool.annotations.read_only_hint for tool in tools)
    assert all(tool.description and tool.output_schema["properties"] for tool in more)
    for tool in more:
        described = [word.get("description") for word in tool.input_schema.get("properties", {}).values()]
        assert all(described), tool.name


def test_what_is_slow_in_a_trace_is_told_by_phase_with_the_verdict(call):
    told = call("what_is_slow", trace="serving.json").structured_content

    assert [phase["phase"] for phase in told["phases"]] == ["prefill", "decode"]
    assert told["phases"][0]["device"]["idle"]["host_ns"] == 107_000
    assert told["verdict"] == "conditional"
    assert max(one["if_plain_above_ns"] for one in told["conditional"]) > 0
    assert all((one["predicted"] is None) == bool(one["unpredicted"]) for one in told["conditional"])
    assert told["reasons"]
    assert told["top"][0]["op"]


def test_advice_on_a_trace_comes_with_bound_settings_and_refutation(call):
    told = call("analyze_trace", trace="serving.json", plain_ms=0.3).structured_content

    assert told["verdict"] == "act"
    assert all(one["at_most_ns"] and one["settings"] and one["refuted_by"] for one in told["advice"])
    assert [step["phase"] for step in told["steps"]] == ["prefill", "decode", "decode", "decode"]


def test_every_given_trace_is_told_within_the_bound(call, trace_path):
    told = call("analyze_trace", folder=trace_path.parent, trace=trace_path.name, most=5)

    assert len(told.content[0].text) < 30_000
    assert 0 < len(told.structured_content["top"]) <= 5


def test_the_hardware_limit_of_a_trace_is_that_of_its_recorded_shapes(call):
    told = call("hardware_limit", trace="traces/h100_hf_bert-small_infer.json.gz", most=3).structured_content

    assert told["trace"]["coverage"] == 1.0
    assert 0 < told["trace"]["mfu"] < told["trace"]["mbu"] < 1
    assert len(told["trace"]["ops"]) == 3
    bar = told["phases"]["all"]["bar"]
    whole = bar["limit_ns"] + bar["above_ns"] + sum(bar["exposed_ns"].values()) + bar["other_idle_ns"]
    assert whole + bar["unknown_ns"] == bar["window_ns"] > 0


def test_the_hardware_limit_of_a_server_is_what_it_says_of_each_phase(call):
    answer = {"phases": {"decode": {"mfu": None, "reasons": ["no model"]}}, "reason": None, "notes": [], "later": 1}
    server = NoServer(limit=answer)

    told = call("hardware_limit", server, phase="decode", window_s=60).structured_content

    assert server.asked == [("limit", {"phase": "decode", "window_s": 60, "server_id": None})]
    assert told == {
        "phases": {"decode": {"mfu": None, "reasons": ["no model"]}}, "reason": None, "notes": [], "left_out": []
    }  # fmt: skip


def test_a_comparison_tells_only_figures_that_moved(call):
    told = call("compare", a="serving.json", b="traces/h100_hf_bert-small_infer.json.gz", most=2).structured_content
    same = call("compare", a="serving.json", b="serving.json").structured_content

    assert all(figure["absolute"] for section in told["sections"] for figure in section["figures"])
    assert [len(section["rows"]) for section in told["sections"]] == [2]
    assert any(line.startswith("sections.rows: 2 of ") for line in told["left_out"])
    assert [figure for section in same["sections"] for figure in section["figures"]] == []


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("what_is_slow", {}, "http://host:1: cannot be reached (Connection refused)"),
        ("what_is_slow", {"trace": "../test_docs.py"}, "the one folder that traces are read from"),
        ("what_is_slow", {"trace": "/etc/passwd"}, "the one folder that traces are read from"),
        ("what_is_slow", {"trace": "serving.json", "window_s": 5}, "a trace has neither"),
        ("hardware_limit", {"trace": "serving.json", "window_s": 5}, "a trace has neither"),
        ("hardware_limit", {"trace": "nothing.json"}, "nothing.json: No such file or directory"),
        ("why", {"trace": "nothing.json"}, "nothing.json: No such file or directory"),
        ("analyze_trace", {"trace": "make_serving.py"}, "not JSON"),
        ("analyze_trace", {"trace": "serving.json", "step": "nine"}, "no step 'nine' among its 4"),
        ("analyze_trace", {"trace": "serving.json", "most": 0}, "most: Input should be greater than or equal to 1"),
        ("analyze_trace", {}, "trace: Field required"),
        ("get_step", {"step_id": "../status"}, "no id of a step or capture"),
        ("compare", {"a": "step:", "b": "serving.json"}, "no id of a step or capture"),
        ("capture", {}, "Unknown tool: capture"),
    ],
)
def test_what_goes_wrong_is_an_error_of_one_line(call, name, arguments, said):
    assert said in words(call(name, **arguments))


def test_a_fault_of_ours_is_named_as_one_and_shows_nothing_of_itself(call):
    broken = NoServer(status={"version": 1j})

    assert words(call("server_status", broken)) == "server_status: a fault of taxbreak's own; its log says more"


def test_an_answer_of_another_kind_is_told_from_ours(call):
    assert "no answer of this version of taxbreak" in words(
        call("get_step", NoServer(**{"steps/a": {"total": {}}}), step_id="a")
    )


def test_what_a_newer_server_says_is_handed_on(call):
    waterfall = {"number": 7, "total_ns": 10, "stages_ns": {"queue": 10}, "new": [1]}
    server = NoServer(requests={"api_servers": [], "waterfalls": [waterfall] * 3})

    told = call("requests", server, most=2).structured_content

    assert server.asked == [("requests", {"limit": 2, "sort": "slowest"})]
    assert told["waterfalls"] == [waterfall] * 2
    assert told["reason"] is None


def test_a_change_is_predicted_within_an_interval_or_refused_with_the_gate(call):
    answer = call(
        "what_if", trace="traces/h100_hf_bert-small_infer.json.gz", host=["0.5..0.7"], kernels=["gemm=0.6"]
    ).structured_content["answers"][0]

    assert answer["change"] == "--host 0.5..0.7 --kernels gemm=0.6"
    assert answer["refused"] is None
    assert answer["window"]["low_ns"] <= answer["window"]["predicted_ns"] <= answer["window"]["high_ns"]
    assert answer["window"]["predicted_ns"] < answer["window"]["observed_ns"]
    assert all(gate["passes"] for gate in answer["gates"])


def test_a_full_graph_of_a_trace_costs_what_a_store_of_floors_says(call, put_graph_floors, tmp_path):
    put_graph_floors(tmp_path / "h100.sqlite3")
    words = {"trace": "traces/h100_hf_bert-small_infer.json.gz", "graph": "full"}

    refused, told = (
        call("what_if", baselines=baselines, **words).structured_content["answers"][0]
        for baselines in (None, tmp_path / "h100.sqlite3")
    )

    window = told["window"]
    assert refused["refused"].startswith("--graph full: ")
    assert window["host_free_ns"] < window["low_ns"] <= window["predicted_ns"] <= window["high_ns"]
    assert window["predicted_ns"] < window["observed_ns"] / 3  # 4.5 ms of launching; its kernels take 0.4 ms


def test_without_a_trace_the_server_is_asked_in_the_words_of_its_route(call):
    gate = {"name": "contention", "value": 0.04, "limit": 0.01, "reason": "held", "is_least": False, "passes": False}
    told = {
        "step_id": "a", "phase": "decode", "server_id": "vllm-a", "path": "/spool/a", "change": "--host 0.7",
        "refused": "contention is 4%", "window": None, "steps": [], "gates": [gate], "refuted_by": "", "command": "",
        "dilation": 1.5, "notes": [], "timeline": None,
    }  # fmt: skip
    server = NoServer(whatif={"answers": [told]})

    answers = call(
        "what_if", server, host=["0.7"], graph="full", is_async=True, phase="decode", most=5
    ).structured_content["answers"]

    assert [(path, {name: value for name, value in asked.items() if value}) for path, asked in server.asked] == [
        ("whatif", {"host": ["0.7"], "graph": "full", "async": True, "phase": "decode"})
    ]
    assert answers == [{name: value for name, value in told.items() if name != "timeline"}]


@pytest.mark.parametrize(
    ("words_for", "said"), [({"trace": "serving.json", "phase": "decode"}, "of a server"), ({"rank": 1}, "of a trace")]
)
def test_words_of_the_other_kind_are_no_question(call, words_for, said):
    assert said in words(call("what_if", **words_for))


def test_what_is_no_change_is_refused_in_one_line(call):
    assert "'rust' is none of python" in words(
        call("what_if", trace="traces/h100_hf_bert-small_infer.json.gz", host=["rust=2"])
    )


def test_the_transition_of_a_server_is_told_as_the_api_says_it(call):
    bucket = SizeBucket(least=8, most=8, num_steps=3, window_ns=10**6, hdbi=0.4)
    told = Transitions(
        transitions=(
            Transition(
                phase=Phase.DECODE,
                unit=SizeUnit.REQUESTS,
                buckets=(bucket, replace(bucket, least=16, most=16, hdbi=0.7)),
                between=(8, 16),
                by=Sign.HDBI,
                turns={Sign.HDBI: Turn(between=(8, 16))},
            ),
        ),
        server_id="vllm-a",
    ).to_json()
    server = NoServer(transition=json.loads(told))

    found = call("transition", server, phase="decode").structured_content

    assert server.asked == [("transition", {"phase": "decode", "window_s": None, "server_id": None})]
    assert found == json.loads(told) | {"left_out": []}
