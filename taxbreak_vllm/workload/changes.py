"""Which other settings a scheduler may be given: names and values in, one line about one that it may not out."""

from collections.abc import Mapping

from taxbreak_vllm.model.errors import WorkloadError
from taxbreak_vllm.traffic.rows import Scalar, Setup

# What Scheduler reads of its configuration (vllm/v1/core/sched/scheduler.py, 0.26 to 0.33), and the least of each.
_LEAST: Mapping[str, float | None] = {
    "max_num_seqs": 1,
    "max_num_active_seqs": 1,
    "max_num_batched_tokens": 1,
    "max_num_scheduled_tokens": 1,
    "max_num_partial_prefills": 1,
    "max_long_partial_prefills": 1,
    "long_prefill_token_threshold": 0,
    "long_prefill_token_threshold_adaptive": None,
    "enable_chunked_prefill": None,
    "scheduler_reserve_full_isl": None,
    "watermark": 0,
    "policy": None,
}
_POLICIES = ("fcfs", "priority")
_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a word"}


def check_settings(setup: Setup, settings: Mapping[str, Scalar]) -> None:
    """Raise WorkloadError for a field that no scheduler of that server has or reads, or a value that it cannot take."""
    known = setup.config.get("scheduler_config", {})
    for name, value in settings.items():
        if name not in known:
            raise WorkloadError(f"--set {name}: no field of vLLM {setup.vllm}'s scheduler_config")
        if name not in _LEAST:
            readable = ", ".join(sorted(known.keys() & _LEAST.keys()))
            raise WorkloadError(f"--set {name}: not simulated; what can be set is {readable}, num_gpu_blocks")
        kind = int if known[name] is None else type(known[name])
        if type(value) is not kind and not (kind is float and type(value) is int):
            raise WorkloadError(f"--set {name}={value}: {_KINDS[kind]} is expected, as {known[name]}")
        least = _LEAST[name]
        if least is not None and isinstance(value, int | float) and value < least:
            raise WorkloadError(f"--set {name}={value}: at least {least:g} is expected")
        if name == "policy" and value not in _POLICIES:
            raise WorkloadError(f"--set policy={value}: {' or '.join(_POLICIES)} is expected")


def check_together(setup: Setup, settings: Mapping[str, Scalar]) -> None:
    """Raise WorkloadError for values that vLLM does not start with (vllm/config/scheduler.py, verify_max_model_len)."""
    wanted = {**setup.config["scheduler_config"], **settings}
    tokens, seqs = int(wanted["max_num_batched_tokens"] or 0), int(wanted["max_num_seqs"] or 0)
    length = int(setup.config["model_config"]["max_model_len"] or 0)
    if tokens < seqs:
        raise WorkloadError(f"max_num_batched_tokens {tokens:,} is less than max_num_seqs {seqs:,}, which vLLM refuses")
    if tokens < length and not wanted.get("enable_chunked_prefill", True):
        raise WorkloadError(
            f"max_num_batched_tokens {tokens:,} is less than the model's {length:,}, which vLLM refuses without "
            "chunked prefill"
        )
