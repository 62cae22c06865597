"""The shape of a built model: which matrices, experts and attention its modules hold on this rank.

In: a worker whose model is loaded and whose KV cache is laid out. Out: `ModelShape`, or why there is none. Modules are
told by the attributes that they set on themselves (vllm 0.26 to 0.33), not by class: no architecture is known here. The
model itself runs nothing and keeps nothing of ours.
"""

import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from taxbreak_vllm.model.shape import AttentionShape, ExpertShape, MatrixShape, ModelShape
from taxbreak_vllm.serving.chosen_experts import why_uncounted
from taxbreak_vllm.serving.weights import Weights, weights_of

_DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


def shape_of(worker: Any) -> ModelShape | str:  # noqa: ANN401 - a vLLM worker
    """Walk the model of a worker; the reason in one line where it can't be walked."""
    try:
        runner = worker.model_runner
        layout = _Layout(_kv_bytes(getattr(runner, "kv_cache_config", None)), _absorbed(runner))
        shape = _shape(runner.model, layout, worker.vllm_config)
    except Exception as error:
        return f"its model could not be walked: {error!r}"[:200]
    if isinstance(shape, str) or not shape.experts:
        return shape
    return replace(shape, uncounted=why_uncounted(worker, shape.experts))


class _Types(NamedTuple):
    """The type of activations, and the quantization of weights."""

    dtype: str
    quantization: str | None


class _Layout(NamedTuple):
    """What the runner laid out, by layer: bytes of a token in its cache, the most queries that its MLA absorbs."""

    kv_bytes: Mapping[str, int]
    absorbed: Mapping[str, int]


@dataclass(slots=True)
class _Found:
    """What a walk has met so far."""

    weights: int = 0
    num_bytes: int | None = 0
    lm_head: MatrixShape = field(default_factory=MatrixShape)
    attention: dict[AttentionShape, int] = field(default_factory=dict)
    experts: dict[ExpertShape, int] = field(default_factory=dict)
    products: Counter[str | None] = field(default_factory=Counter)
    unsized: dict[str, None] = field(default_factory=dict)
    missing: dict[str, None] = field(default_factory=dict)

    def weigh(self, kind: str, weights: Weights, multiplied: int) -> int | None:
        """Note what so many weights multiply in; return their bytes."""
        self.products[weights.product] += multiplied
        if weights.num_bytes is None:
            self.unsized[kind] = None
        return weights.num_bytes


def _shape(model: Any, layout: _Layout, config: Any) -> ModelShape | str:  # noqa: ANN401 - vLLM's
    quantization = config.model_config.quantization
    types = _Types(_dtype(config.model_config.dtype), str(quantization) if quantization else None)
    found, root, seen = _Found(), _language_model(model), set()
    if root is not model:
        found.missing["what works on images and sound is not counted"] = None
    for name, module in root.named_modules(remove_duplicate=False):
        own = vars(module)
        if "num_embeddings_per_partition" in own:
            if name.rpartition(".")[2] == "lm_head":  # a tied one is the embedding under its second name
                found.lm_head = _head(module, own, types, found)
        elif id(module) not in seen:
            seen.add(id(module))
            _take(module, own, types, layout, found)
    if not found.weights:
        return "its model has no linear layers that can be told"
    return _told(found, config, types)


def _take(module: Any, own: Mapping[str, Any], types: _Types, layout: _Layout, found: _Found) -> None:  # noqa: ANN401
    if {"local_num_experts", "global_num_experts", "top_k", "hidden_size"} <= own.keys():
        experts = _experts(module, own, types, found)
        found.experts[experts] = found.experts.get(experts, 0) + 1
    elif {"num_heads", "head_size", "impl", "layer_name"} <= own.keys():
        attention = _attention(own, layout, found)
        found.attention[attention] = found.attention.get(attention, 0) + 1
    elif {"input_size", "output_size"} <= own.keys() and hasattr(module, "quant_method"):
        weights = _inputs(own) * _outputs(own)
        size = found.weigh("linear layers", weights_of(module, own, weights, *types), weights)
        found.weights += weights
        found.num_bytes = None if size is None or found.num_bytes is None else found.num_bytes + size
    elif {"conv_kernel_size", "ssm_state_size"} & own.keys():
        found.missing["layers that keep a state in place of a cache are not counted, but for their matrices"] = None


def _head(module: Any, own: Mapping[str, Any], types: _Types, found: _Found) -> MatrixShape:  # noqa: ANN401
    weights = own["embedding_dim"] * own["num_embeddings_per_partition"]
    return MatrixShape(weights=weights, bytes=found.weigh("lm_head", weights_of(module, own, weights, *types), 0))


def _experts(module: Any, own: Mapping[str, Any], types: _Types, found: _Found) -> ExpertShape:  # noqa: ANN401
    local = own["local_num_experts"]
    config: Any = own.get("moe_config")
    inner = own.get("intermediate_size_per_partition") or config.intermediate_size_per_partition
    weights = (3 if getattr(config, "is_act_and_mul", True) else 2) * own["hidden_size"] * inner
    size = found.weigh("experts", weights_of(module, own, weights * local, *types), weights * own["top_k"])
    return ExpertShape(
        layers=1,
        experts=own["global_num_experts"],
        local_experts=local,
        top_k=own["top_k"],
        weights=weights,
        bytes=None if size is None else size // local,
    )


def _attention(own: Mapping[str, Any], layout: _Layout, found: _Found) -> AttentionShape:
    latent = own.get("kv_lora_rank") or 0
    shared = own.get("kv_sharing_target_layer_name")  # reads the cache of another layer
    a_token = layout.kv_bytes.get(own["layer_name"]) or layout.kv_bytes.get(shared or "")
    if a_token is None:
        found.missing["how many bytes a token takes in its cache is not known"] = None
    window = own.get("sliding_window")
    if latent and own.get("use_sparse"):
        # a query reads the keys that an indexer chose: at the most as many as in a window of that size
        window = own["impl"].topk_indices_buffer.shape[-1]
        found.missing["what chooses the keys of its sparse attention is not counted, but for its matrices"] = None
    is_unpacked = bool(latent) and _unpacks(own)
    return AttentionShape(
        layers=1,
        heads=own["num_heads"],
        kv_heads=own.get("num_kv_heads") or 1,
        head_size=own["head_size"],
        head_size_v=latent or own.get("head_size_v") or own["head_size"],
        window=window if isinstance(window, int) and window > 0 else None,
        latent=latent,
        rope=own.get("qk_rope_head_dim", 0) if latent else 0,
        unpacked_size=own["qk_head_dim"] + own["v_head_dim"] if is_unpacked else 0,
        absorbed_queries=layout.absorbed.get(own["layer_name"], 1) if is_unpacked else None,
        kv_bytes_per_token=a_token,
    )


def _told(found: _Found, config: Any, types: _Types) -> ModelShape:  # noqa: ANN401
    product = max(found.products, key=found.products.__getitem__)  # some layers are left as they were
    unknown = [f"how many bytes the weights of its {' and '.join(found.unsized)} take"] if found.unsized else []
    if product is None:
        unknown.append(f"what {types.quantization} multiplies in")
    if unknown:
        found.missing[f"{', and '.join(unknown)} is not known"] = None
    parallel, compilation = config.parallel_config, config.compilation_config
    tensor, data = parallel.tensor_parallel_size, parallel.data_parallel_size
    is_spread = bool(getattr(parallel, "enable_expert_parallel", False)) and bool(found.experts)
    return ModelShape(
        dtype=types.dtype,
        product_dtype=product,
        linear=MatrixShape(weights=found.weights, bytes=found.num_bytes),
        lm_head=found.lm_head,
        attention=tuple(replace(each, layers=layers) for each, layers in found.attention.items()),
        experts=tuple(replace(each, layers=layers) for each, layers in found.experts.items()),
        quantization=types.quantization,
        tensor_parallel=tensor,
        pipeline_parallel=parallel.pipeline_parallel_size,
        data_parallel=data,
        expert_parallel=tensor * data if is_spread else 1,
        graph_sizes=tuple(sorted(getattr(compilation, "cudagraph_capture_sizes", None) or ())),
        missing=tuple(found.missing),
    )


def _language_model(model: Any) -> Any:  # noqa: ANN401
    try:
        return model.get_language_model() or model
    except Exception:  # a model of text alone
        return model


def _kv_bytes(kv_config: Any) -> dict[str, int]:  # noqa: ANN401 - vLLM's KVCacheConfig
    """Return the bytes of a token in the cache of each layer: page size by block size, which knows TP and fp8."""
    sizes = {}
    for group in getattr(kv_config, "kv_cache_groups", ()):
        specs = getattr(group.kv_cache_spec, "kv_cache_specs", None) or {}
        for name in group.layer_names:
            spec = specs.get(name, group.kv_cache_spec)
            page = getattr(spec, "real_page_size_bytes", None) or spec.page_size_bytes
            sizes[name] = page // spec.block_size
    return sizes


def _absorbed(runner: Any) -> dict[str, int]:  # noqa: ANN401 - a vLLM model runner
    """Return the most queries of a request that the attention of each layer takes for decoding."""
    groups = (group for groups in getattr(runner, "attn_groups", None) or () for group in groups)
    return {
        name: getattr(builder, "reorder_batch_threshold", None) or 1
        for group in groups
        for builder in group.metadata_builders[:1]
        for name in group.layer_names
    }


def _unpacks(own: Mapping[str, Any]) -> bool:
    """Tell MLA that unpacks the cache of prompts, as vLLM's own does, from what absorbs them as well: sparse attention,
    and that of a CPU with AMX (v1/attention/backends/mla/amx_mla.py).
    """
    return not own.get("use_sparse") and not own.get("is_amx_bmm_enabled")


def _inputs(own: Mapping[str, Any]) -> int:
    return int(own.get("input_size_per_partition") or own["input_size"])


def _outputs(own: Mapping[str, Any]) -> int:
    return int(own.get("output_size_per_partition") or own["output_size"])


def _dtype(dtype: object) -> str:
    """Name a type as ceilings do; single precision by what products make of it."""
    name = str(dtype).removeprefix("torch.")
    if (
        name == "float32"
        and "torch" in sys.modules
        and sys.modules["torch"].get_float32_matmul_precision() != "highest"
    ):
        return "tf32"
    return _DTYPES.get(name, name)
