"""What is read of vLLM's requests and steps is in its source: the installed one's, or another's, CONTRACT_SOURCE."""

import ast

SCHEDULER = "v1/core/sched/scheduler.py"
OUTPUT = "v1/core/sched/output.py"


def test_a_request_tells_how_it_came_and_how_it_ended(vllm_source):
    attributes = vllm_source.attributes("v1/request.py", "Request")
    methods = vllm_source.methods("v1/request.py", "Request")

    assert attributes >= {
        *("request_id", "arrival_time", "num_prompt_tokens", "max_tokens", "priority", "lora_request"),
        *("pooling_params", "structured_output_request", "block_hashes", "num_preemptions"),
    }
    assert {"num_output_tokens", "get_finished_reason"} <= methods.keys()


def test_a_step_tells_its_requests_and_those_that_ended(vllm_source):
    assert vllm_source.fields(OUTPUT, "SchedulerOutput") >= {
        *("scheduled_new_reqs", "scheduled_cached_reqs", "num_scheduled_tokens", "total_num_scheduled_tokens"),
        *("scheduled_spec_decode_tokens", "finished_req_ids", "preempted_req_ids"),
    }
    assert vllm_source.fields(OUTPUT, "CachedRequestData") >= {"req_ids", "num_computed_tokens", "num_output_tokens"}


def test_all_that_changes_a_scheduler_from_outside_goes_through_what_is_hooked(vllm_source):
    methods = vllm_source.methods(SCHEDULER, "Scheduler")

    assert {"add_request", "finish_requests", "reset_prefix_cache", "schedule", "update_from_output"} <= methods.keys()
    assert ast.unparse(methods["finish_requests"].args).startswith("self, request_ids")
    assert ast.unparse(methods["add_request"].args).startswith("self, request")
