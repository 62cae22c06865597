"""What the hooks on an API server take for granted of vLLM, held against its source: the installed one's or another's,
CONTRACT_SOURCE."""

import ast

import pytest

ASYNC_LLM = "v1/engine/async_llm.py"
OUTPUT_PROCESSOR = "v1/engine/output_processor.py"
CORE_CLIENT = "v1/engine/core_client.py"


@pytest.fixture
def method(vllm_source):
    """Return the source of a method, whether it is a coroutine or not."""

    def method(path, cls, name):
        body = vllm_source.definitions(path)[cls].body
        return next((ast.unparse(node) for node in body if getattr(node, "name", None) == name), "")

    return method


@pytest.mark.parametrize(
    ("path", "cls", "name", "is_async"),
    [
        ("renderers/base.py", "BaseRenderer", "render_cmpl_async", True),
        ("renderers/base.py", "BaseRenderer", "render_chat_async", True),
        ("v1/engine/input_processor.py", "InputProcessor", "process_inputs", False),
        (OUTPUT_PROCESSOR, "OutputProcessor", "add_request", False),
        (OUTPUT_PROCESSOR, "OutputProcessor", "process_outputs", False),
        (OUTPUT_PROCESSOR, "RequestOutputCollector", "put", False),
        (CORE_CLIENT, "AsyncMPClient", "add_request_async", True),
        (CORE_CLIENT, "DPAsyncMPClient", "get_core_engine_for_request", False),
    ],
)
def test_what_is_hooked_is_there_and_is_awaited_or_not(method, path, cls, name, is_async):
    assert method(path, cls, name).startswith(f"{'async ' if is_async else ''}def {name}(")


def test_a_request_is_registered_with_its_collector_and_then_sent(method):
    text = method(ASYNC_LLM, "AsyncLLM", "_add_request")

    registered = text.index("self.output_processor.add_request(request, prompt, parent_req, index, queue)")
    assert registered < text.index("await self.engine_core.add_request_async(request)")


def test_outputs_are_taken_up_with_the_time_at_which_the_engine_sent_them(method):
    handler = method(ASYNC_LLM, "AsyncLLM", "_run_output_handler")

    assert "output_processor.process_outputs(outputs_slice, outputs.timestamp, " in handler
    signature = method(OUTPUT_PROCESSOR, "OutputProcessor", "process_outputs").partition("\n")[0]
    assert "engine_core_timestamp" in signature.split(",")[2]


def test_outputs_are_put_while_they_are_taken_up(method):
    assert "req_state.queue.put(request_output)" in method(OUTPUT_PROCESSOR, "OutputProcessor", "process_outputs")


def test_a_request_has_what_is_read_of_it(vllm_source):
    state = vllm_source.attributes(OUTPUT_PROCESSOR, "RequestState")
    stats = vllm_source.fields("v1/metrics/stats.py", "RequestStateStats")
    request = vllm_source.fields("v1/engine/__init__.py", "EngineCoreRequest")

    assert {"stats", "queue", "request_index", "prompt_len"} <= state
    assert {"queued_ts", "scheduled_ts", "first_token_ts", "last_token_ts", "num_generation_tokens"} <= stats
    assert {"request_id", "external_req_id"} <= request


def test_a_requests_statistics_keep_its_first_scheduling_and_are_on_the_clock_that_never_jumps(method):
    events = method("v1/metrics/stats.py", "IterationStats", "update_from_events")

    assert "if req_stats.scheduled_ts == 0.0" in events
    assert "time.monotonic()" in method("v1/engine/__init__.py", "EngineCoreOutputs", "__post_init__")
    assert "time.monotonic()" in method("v1/engine/__init__.py", "EngineCoreEvent", "new_event")


def test_a_name_gets_its_random_digits_behind_a_dash(method):
    text = method("v1/engine/input_processor.py", "InputProcessor", "assign_request_id")

    assert "f'{request.external_req_id}-{random_uuid():.8}'" in text


def test_an_engine_is_named_on_the_wire_by_its_number(vllm_source):
    assert 'rank.to_bytes(2, "little") for rank in self.engine_ranks_managed' in vllm_source.text(CORE_CLIENT)
    assert {"client_index", "outputs_queue"} <= vllm_source.attributes(CORE_CLIENT, "AsyncMPClient")
    assert "self.core_engine: EngineIdentity = self.core_engines[0]" in vllm_source.text(CORE_CLIENT)
