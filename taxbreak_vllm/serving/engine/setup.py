"""What a simulation of an engine's scheduler is built from: vLLM's objects in, numbers and switches out.

Texts, which may be names or paths, are left out, but for a few that choose between vLLM's own ways.
"""

import dataclasses
import sys
from typing import Any

from taxbreak_vllm.iterations.rows import Column
from taxbreak_vllm.traffic.rows import KvGroup, Scalar, Setup

_CONFIGS = ("scheduler_config", "cache_config", "parallel_config", "model_config", "lora_config")
_TEXTS = {"policy", "mamba_cache_mode", "cache_dtype", "prefix_caching_hash_algo", "runner_type"}
_NO_INSTANTS = {
    *(Column.SCHEDULED, Column.UPDATED, Column.THREAD_CPU),
    *(Column.WORKER_PHASE, Column.DEVICE_IDLE, Column.DEVICE_IDLE_SAMPLE),
}
INSTANTS = tuple(int(column) for column in Column if column not in _NO_INSTANTS)


def setup_of(
    engine: Any,  # noqa: ANN401 - an EngineCoreProc
    server_id: str,
    number: str,
    *,
    has_hashes: bool,
    unix_offset_ns: int,
) -> Setup:
    """Describe an engine; raises AttributeError where it is not as it was read."""
    config, scheduler = engine.vllm_config, engine.scheduler
    kv = scheduler.kv_cache_config
    return Setup(
        server_id=server_id,
        source=f"engine-{number}",
        vllm=str(getattr(sys.modules.get("vllm"), "__version__", "")),
        unix_offset_ns=unix_offset_ns,
        has_hashes=has_hashes,
        columns=tuple(column.name.lower() for column in Column),
        instants=INSTANTS,
        scheduler=type(scheduler).__name__,
        num_blocks=int(kv.num_blocks),
        block_size=int(scheduler.block_size),
        hash_block_size=hash_block_size(scheduler),
        num_engines=int(config.parallel_config.data_parallel_size),
        config={name: _scalars(getattr(config, name, None)) for name in _CONFIGS},
        kv_groups=tuple(_group(group) for group in kv.kv_cache_groups),
        refused=_refused(config),
    )


def hash_block_size(scheduler: Any) -> int:  # noqa: ANN401 - a Scheduler
    """Return the tokens of a block that is hashed."""
    return int(getattr(scheduler, "hash_block_size", None) or scheduler.block_size)


def _refused(config: Any) -> tuple[str, ...]:  # noqa: ANN401 - a VllmConfig
    has = {
        "speculative decoding": getattr(config, "speculative_config", None) is not None,
        "KV connectors": getattr(config, "kv_transfer_config", None) is not None,
        "encoder caches elsewhere": getattr(config, "ec_transfer_config", None) is not None,
        "encoder-decoder models": bool(getattr(config.model_config, "is_encoder_decoder", False)),
        "pipeline parallelism": config.parallel_config.pipeline_parallel_size > 1,
        "context parallelism": getattr(config.parallel_config, "decode_context_parallel_size", 1) > 1,
        "a scheduler of another make": bool(getattr(config.scheduler_config, "scheduler_cls", None)),
    }
    return tuple(name for name, is_there in has.items() if is_there)


def _group(group: Any) -> KvGroup:  # noqa: ANN401 - a KVCacheGroupSpec
    spec = group.kv_cache_spec
    nested = getattr(spec, "kv_cache_specs", None)
    if nested:  # of one type and several sizes
        spec = next(iter(nested.values()))
    fields = _scalars(spec)
    if hasattr(spec, "dtype"):
        fields["dtype"] = str(spec.dtype).removeprefix("torch.")
    return KvGroup(spec=type(spec).__name__, num_layers=len(group.layer_names), fields=fields)


def _scalars(config: Any) -> dict[str, Scalar]:  # noqa: ANN401 - one of vLLM's configurations, or none
    names = [field.name for field in dataclasses.fields(config)] if dataclasses.is_dataclass(config) else []
    found = {name: getattr(config, name, None) for name in names}
    return {
        name: value
        for name, value in found.items()
        if value is None or type(value) in (bool, int, float) or (name in _TEXTS and isinstance(value, str))
    }
