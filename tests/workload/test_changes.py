"""A setting that no scheduler reads, or a value that vLLM does not start with, is refused by name."""

import pytest

from taxbreak_vllm.model.errors import WorkloadError
from taxbreak_vllm.traffic.rows import Setup
from taxbreak_vllm.workload.changes import check_settings, check_together

SETUP = Setup(
    server_id="s",
    source="engine-0",
    vllm="0.32.0",
    config={
        "scheduler_config": {
            **{"max_num_seqs": 8, "max_num_batched_tokens": 256, "max_num_scheduled_tokens": None, "watermark": 0.0},
            **{
                "enable_chunked_prefill": True,
                "policy": "fcfs",
                "async_scheduling": False,
                "max_num_queued_reqs": None,
            },
        },
        "model_config": {"max_model_len": 512},
    },
)


@pytest.mark.parametrize(
    "settings",
    [
        {"max_num_seqs": 1, "max_num_batched_tokens": 4096},
        {"max_num_scheduled_tokens": 64},
        {"policy": "priority", "enable_chunked_prefill": False, "max_num_batched_tokens": 512},
        {"watermark": 0},
    ],
)
def test_what_the_scheduler_reads_may_be_set(settings):
    check_settings(SETUP, settings)
    check_together(SETUP, settings)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"max_num_sequences": 8}, "no field of vLLM 0.32.0's scheduler_config"),
        (
            {"async_scheduling": True},
            "--set async_scheduling: not simulated; what can be set is enable_chunked_prefill",
        ),
        ({"max_num_queued_reqs": 4}, "--set max_num_queued_reqs: not simulated"),
        ({"max_num_seqs": "many"}, "--set max_num_seqs=many: a whole number is expected, as 8"),
        ({"max_num_seqs": True}, "a whole number is expected"),
        ({"max_num_seqs": 2.5}, "a whole number is expected"),
        ({"max_num_seqs": 0}, "--set max_num_seqs=0: at least 1"),
        ({"enable_chunked_prefill": 1}, "true or false is expected"),
        ({"policy": "lifo"}, "fcfs or priority is expected"),
    ],
)
def test_a_setting_that_is_none_is_refused(settings, says):
    with pytest.raises(WorkloadError, match=says):
        check_settings(SETUP, settings)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"max_num_seqs": 512}, "max_num_batched_tokens 256 is less than max_num_seqs 512"),
        ({"enable_chunked_prefill": False}, "less than the model's 512"),
    ],
)
def test_values_that_do_not_go_together_are_refused(settings, says):
    check_settings(SETUP, settings)
    with pytest.raises(WorkloadError, match=says):
        check_together(SETUP, settings)
