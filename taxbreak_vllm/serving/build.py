"""What a server is built of and runs on, for comparing it with the one before and joining it with others' metrics.

In: a worker that has its device, a VllmConfig. Out: strings, empty where something is not known; nothing raises.
"""

import dataclasses
import hashlib
import json
import os
import socket
import sys
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from typing import Any

from taxbreak_vllm.serving.drops import logger

# What of vLLM's configuration a step's time may depend on, by section. vLLM's own `compute_hash` is not that: it is of
# what shapes the compiled graph, so it passes over the executor, asynchronous scheduling and the sizes of CUDA graphs,
# and holds the model's path. Left out here: paths, names, keys, addresses, ports, ranks, and what vLLM works out of the
# memory it finds free, which differs between two starts.
_SECTIONS: Mapping[str, tuple[str, ...]] = {
    "model_config": (
        *("dtype", "quantization", "enforce_eager", "logprobs_mode", "max_logprobs", "disable_cascade_attn"),
        *("enable_prompt_embeds", "enable_sleep_mode", "model_impl", "renderer_num_workers", "runner"),
    ),
    "cache_config": ("block_size", "cache_dtype", "enable_prefix_caching", "kv_cache_layout", "mamba_cache_mode"),
    "parallel_config": (
        *("pipeline_parallel_size", "tensor_parallel_size", "data_parallel_size", "prefill_context_parallel_size"),
        *("decode_context_parallel_size", "enable_expert_parallel", "enable_eplb", "all2all_backend", "enable_dbo"),
        *("disable_custom_all_reduce", "distributed_executor_backend", "numa_bind", "_api_process_count"),
    ),
    "scheduler_config": (
        *("max_num_batched_tokens", "max_num_seqs", "enable_chunked_prefill", "long_prefill_token_threshold"),
        *("policy", "scheduler_cls", "async_scheduling", "stream_interval"),
    ),
    "compilation_config": (
        *("mode", "backend", "custom_ops", "splitting_ops", "compile_sizes", "pass_config"),
        *("cudagraph_mode", "cudagraph_capture_sizes", "max_cudagraph_capture_size", "use_inductor_graph_partition"),
    ),
    "attention_config": ("backend", "flash_attn_version", "use_trtllm_attention"),
    "kernel_config": ("moe_backend", "linear_backend"),
    "speculative_config": ("method", "num_speculative_tokens", "draft_tensor_parallel_size", "parallel_drafting"),
    "lora_config": ("max_lora_rank", "max_loras", "fully_sharded_loras"),
    "structured_outputs_config": ("backend",),
    "observability_config": ("collect_detailed_traces", "cudagraph_metrics", "enable_layerwise_nvtx_tracing"),
}
_VARIABLES = (
    *("VLLM_USE_V2_MODEL_RUNNER", "VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_ATTENTION_BACKEND"),
    *("VLLM_USE_FLASHINFER_SAMPLER", "VLLM_ALL2ALL_BACKEND", "VLLM_CPU_OMP_THREADS_BIND"),
)
_HASH_DIGITS = 10
_MAX_HOST = 253  # of a name in DNS


def version(package: str) -> str:
    """Return the version of a package that is loaded already; nothing is loaded for it."""
    return str(getattr(sys.modules.get(package), "__version__", ""))


def runtime_version() -> str:
    """Return which CUDA the loaded torch was built for, or which ROCm as `hip 6.4`; empty for neither."""

    def read() -> str:
        built = getattr(sys.modules.get("torch"), "version", None)
        cuda, hip = getattr(built, "cuda", None), getattr(built, "hip", None)
        return str(cuda) if cuda else f"hip {hip}" if hip else ""

    return _told("its runtime's version", read)


def device_uuid(device: Any) -> str:  # noqa: ANN401 - a torch.device
    """Return the UUID of an NVIDIA GPU as nvidia-smi and DCGM write it, `GPU-…`; empty for any other device."""

    def read() -> str:
        torch = sys.modules.get("torch")
        if torch is None or getattr(device, "type", "") != "cuda" or torch.version.cuda is None:
            return ""
        uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
        return f"GPU-{str(uuid).removeprefix('GPU-')}" if uuid else ""

    return _told("the UUID of its GPU", read)


def host_name() -> str:
    """Return the machine's name: in a pod that of its node, where NODE_NAME tells, as it tells DCGM's exporter."""
    return (os.environ.get("NODE_NAME") or socket.gethostname())[:_MAX_HOST]


def settings_hash(vllm_config: Any) -> str:  # noqa: ANN401 - a VllmConfig
    """Return ten digits that differ where a setting does which steps may depend on; alike after each restart."""

    def read() -> str:
        found = {name: _values(getattr(vllm_config, name, None), fields) for name, fields in _SECTIONS.items()}
        found["environment"] = {name: os.environ[name] for name in _VARIABLES if name in os.environ}
        text = json.dumps(found, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:_HASH_DIGITS]

    return _told("its settings", read)


def _values(section: object, fields: Iterable[str]) -> dict[str, Any]:
    return {name: _plain(getattr(section, name)) for name in fields if hasattr(section, name)}


def _plain(value: Any) -> Any:  # noqa: ANN401 - whatever a setting may be
    """Return what JSON can hold of a value; of an object without fields its type alone, as it may print its address."""
    if isinstance(value, Enum):
        return value.name
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(str(_plain(item)) for item in value)
    if isinstance(value, type):
        return value.__qualname__
    if dataclasses.is_dataclass(value):
        return _values(value, (field.name for field in dataclasses.fields(value)))
    return str(value) if type(value).__module__ == "torch" else type(value).__qualname__


def _told(what: str, read: Callable[[], str]) -> str:
    try:
        return read()
    except Exception as error:
        logger.debug("taxbreak: the worker does not tell %s: %r", what, error)
        return ""
