"""The few settings of a server that advice is about: a restart with others can be told by them.

In: vLLM's config. Out: plain words; what this vLLM does not have is left out. No path, name or key is among them.
"""

from typing import Any

_MAX_CHARS = 60
_NAMED = {
    "model_config": ("enforce_eager", "quantization", "renderer_num_workers"),
    "compilation_config": ("mode", "cudagraph_mode", "max_cudagraph_capture_size"),
    "cache_config": ("cache_dtype",),
    "scheduler_config": (
        "max_num_seqs",
        "max_num_batched_tokens",
        "enable_chunked_prefill",
        "async_scheduling",
        "stream_interval",
    ),
    "kernel_config": ("linear_backend",),
    "attention_config": ("backend",),
    "parallel_config": (
        "tensor_parallel_size",
        "data_parallel_size",
        "distributed_executor_backend",
        "_api_process_count",
    ),
}
_SHOWN = {
    ("compilation_config", "mode"): "compilation_mode",
    ("attention_config", "backend"): "attention_backend",
    ("parallel_config", "_api_process_count"): "api_server_count",
}


def settings_of(vllm_config: Any) -> dict[str, str]:  # noqa: ANN401 - a VllmConfig
    """Return the settings by name, those of `_SHOWN` by another than vLLM's."""
    found = {}
    for section, names in _NAMED.items():
        config = getattr(vllm_config, section, None)
        for name in names:
            if hasattr(config, name):
                found[_SHOWN.get((section, name), name)] = _word(getattr(config, name))
    return found


def _word(value: object) -> str:
    if isinstance(value, type):
        return value.__name__[:_MAX_CHARS]
    return str(getattr(value, "name", value))[:_MAX_CHARS]
