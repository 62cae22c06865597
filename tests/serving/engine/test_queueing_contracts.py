"""What the hooks on a scheduler take for granted of vLLM, held against its source: the installed one's or another's,
CONTRACT_SOURCE."""

import ast

import pytest

SCHEDULER = "v1/core/sched/scheduler.py"
QUEUES = "v1/core/sched/request_queue.py"


@pytest.fixture
def text(vllm_source):
    """Return the source of a method."""
    return lambda path, cls, name: ast.unparse(vllm_source.methods(path, cls)[name])


@pytest.fixture
def schedule(text):
    return text(SCHEDULER, "Scheduler", "schedule")


@pytest.mark.parametrize("cls", ["FCFSRequestQueue", "PriorityRequestQueue"])
def test_a_queue_is_peeked_into_and_takes_a_hook(vllm_source, cls):
    assert "peek_request" in vllm_source.methods(QUEUES, cls)
    assert "__slots__" not in ast.unparse(vllm_source.definitions(QUEUES)[cls])
    assert {"waiting", "requests", "kv_cache_manager"} <= vllm_source.attributes(SCHEDULER, "Scheduler")


def test_a_request_that_waits_is_peeked_at_before_anything_is_set_aside_for_it(schedule):
    running, waiting = schedule.split(".peek_request()", 1)

    for call in ("self.kv_cache_manager.allocate_slots(request", "self._try_schedule_encoder_inputs(request"):
        assert call in running
        assert call in waiting
    assert "delay_cache_blocks=load_kv_async" in waiting
    assert "delay_cache_blocks" not in running
    refused = waiting.partition("if new_blocks is None:")[2]
    assert refused.index("break") < refused.index("RequestStatus.WAITING_FOR_REMOTE_KVS")
    assert "SchedulerOutput(scheduled_new_reqs=" in schedule.replace("\n", "")


def test_the_encoder_tells_second_how_many_tokens_it_has_room_for(text, schedule):
    (returned,) = (
        line
        for line in text(SCHEDULER, "Scheduler", "_try_schedule_encoder_inputs").splitlines()[-1:]
        if "return" in line
    )
    assert returned.split(", ")[1] == "num_new_tokens"
    assert ", num_new_tokens, " in schedule.partition(" = self._try_schedule_encoder_inputs(")[0].rpartition("\n")[2]


def test_a_request_that_was_preempted_keeps_all_others_waiting_and_is_told(schedule, vllm_source):
    assert "if not preempted_reqs and" in schedule
    assert "preempted_req_ids" in vllm_source.fields("v1/core/sched/output.py", "SchedulerOutput")


def test_a_request_has_what_is_read_of_it_and_its_headers_go_with_its_outputs(vllm_source, text):
    attributes = vllm_source.attributes("v1/request.py", "Request")

    assert {"request_id", "structured_output_request", "trace_headers"} <= attributes
    assert "_grammar" in vllm_source.fields("v1/structured_output/request.py", "StructuredOutputRequest")
    assert "trace_headers=request.trace_headers" in text(SCHEDULER, "Scheduler", "update_from_output")
    assert "trace_headers" in vllm_source.fields("v1/engine/__init__.py", "EngineCoreOutput")


def test_what_arrived_of_remote_caches_comes_with_an_output(vllm_source):
    assert "kv_connector_output" in vllm_source.fields("v1/outputs.py", "ModelRunnerOutput")
    assert "finished_recving" in vllm_source.fields("v1/outputs.py", "KVConnectorOutput")


def test_a_grammar_is_asked_for_before_its_request_is_added(text):
    assert "grammar_init" in text("v1/engine/core.py", "EngineCore", "preprocess_add_request")
