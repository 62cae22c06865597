"""The shape of a model on one rank as its config.json (Hugging Face) describes it, cut over ranks as vLLM cuts it.

In: the file and how many ranks there are. Out: `ModelShape`, as a worker would find by walking the built model. What a
config cannot tell is in `missing`. Only model types whose layers are known are told; a guess would be a wrong limit.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from taxbreak_vllm.model.errors import SettingsError
from taxbreak_vllm.model.shape import AttentionShape, ExpertShape, MatrixShape, ModelShape

_DENSE = ("llama", "mistral", "qwen2", "qwen3", "phi3", "granite", "olmo2", "gemma", "gemma2", "gemma3_text")
_LATENT = ("deepseek_v2", "deepseek_v3", "kimi_k2")
_EXPERTS = ("mixtral", "qwen2_moe", "qwen3_moe", "gpt_oss", "glm4_moe", *_LATENT)
_DTYPES = {"float32": ("fp32", 4), "bfloat16": ("bf16", 2), "float16": ("fp16", 2)}
# What a quantization multiplies in (None: the activations' own type; it hangs on the kernel for those not here), and
# the least that a weight takes in bits.
_QUANTIZED: dict[str, tuple[str | None, float]] = {
    "fp8": ("fp8", 8), "fbgemm_fp8": ("fp8", 8), "awq": (None, 4), "gptq": (None, 4),
}  # fmt: skip
_MXFP4_BITS = 4 + 8 / 32  # a scale of eight bits for each 32 weights
_VOCABULARY = 64  # vLLM pads it to a multiple of this


class _Quantization(msgspec.Struct):
    quant_method: str
    bits: int | None = None


class _Config(msgspec.Struct, kw_only=True):
    """What is read of a config.json; names as there."""

    model_type: str
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    vocab_size: int
    intermediate_size: int
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    torch_dtype: str | None = None
    dtype: str | None = None
    sliding_window: int | None = None
    use_sliding_window: bool | None = None
    layer_types: list[str] | None = None
    quantization_config: _Quantization | None = None
    # experts, by whichever name
    num_experts: int | None = None
    num_local_experts: int | None = None
    n_routed_experts: int | None = None
    num_experts_per_tok: int | None = None
    moe_intermediate_size: int | None = None
    shared_expert_intermediate_size: int | None = None
    n_shared_experts: int | None = None
    first_k_dense_replace: int | None = None
    decoder_sparse_step: int | None = None
    mlp_only_layers: list[int] | None = None
    # latent attention
    q_lora_rank: int | None = None
    kv_lora_rank: int | None = None
    qk_nope_head_dim: int | None = None
    qk_rope_head_dim: int | None = None
    v_head_dim: int | None = None


def shape_of_config(path: str | Path, *, tensor_parallel: int = 1, expert_parallel: int = 1) -> ModelShape:
    """Read a config.json; experts are spread over `expert_parallel` ranks, else cut like all else.

    Raises SettingsError, in one line, for what is no such file, a model type that is not known, or ranks that it cannot
    be cut over.
    """
    path = Path(path)
    config, is_part = _read(path)
    ranks = {"tensor parallel ranks": tensor_parallel, "expert parallel ranks": expert_parallel}
    if min(ranks.values()) < 1:
        raise SettingsError(f"{path}: a model is on one rank at the least")
    try:
        return _Cut(config, tensor_parallel, expert_parallel, is_part=is_part).shape()
    except _CannotTell as reason:
        raise SettingsError(f"{path}: {reason}") from None


class _CannotTell(Exception):
    """Why a config cannot be told, in words that follow its name."""


def _read(path: Path) -> tuple[_Config, bool]:
    """Read the model of text in a config; whether it is but a part of it."""
    if path.is_dir():
        path /= "config.json"
    try:
        tree: Any = msgspec.json.decode(path.read_bytes())
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror or error}") from None
    except msgspec.DecodeError as error:
        raise SettingsError(f"{path}: no JSON: {error}") from None
    if not isinstance(tree, dict) or "model_type" not in tree:
        raise SettingsError(f"{path}: no config.json of a model, as it has no model_type")
    is_part = isinstance(tree.get("text_config"), dict)
    own = tree["text_config"] if is_part else tree
    own = own if "model_type" in own else own | {"model_type": tree["model_type"]}
    if own["model_type"] not in (*_DENSE, *_EXPERTS):
        known = ", ".join(sorted({*_DENSE, *_EXPERTS}))
        raise SettingsError(f"{path}: model_type {own['model_type']!r} is none that is known here: {known}")
    try:
        return msgspec.convert(own, _Config, strict=True), is_part
    except msgspec.ValidationError as error:
        raise SettingsError(f"{path}: {error}") from None


class _Cut:
    """One config, cut over ranks."""

    def __init__(self, config: _Config, tensor_parallel: int, expert_parallel: int, *, is_part: bool) -> None:
        self.config, self.tensor, self.spread = config, tensor_parallel, expert_parallel
        name = (config.dtype or config.torch_dtype or "bfloat16").removeprefix("torch.")
        if name not in _DTYPES:
            raise _CannotTell(f"its dtype {name!r} is none of {', '.join(_DTYPES)}")
        self.dtype, self.size = _DTYPES[name]
        self.missing = ["what works on images and sound is not counted"] if is_part else []
        if config.num_attention_heads % tensor_parallel:
            raise _CannotTell(f"its {config.num_attention_heads} heads cannot be cut over {tensor_parallel} ranks")
        self.heads = config.num_attention_heads // tensor_parallel

    def shape(self) -> ModelShape:
        config = self.config
        product, bits = self._quantized()
        matrices = self._attention_weights() * config.num_hidden_layers
        expert_layers = self._expert_layers()
        num_dense = config.num_hidden_layers - expert_layers
        matrices += num_dense * self._cut(3 * config.hidden_size * config.intermediate_size)
        experts = self._experts(expert_layers) if expert_layers else None
        matrices += expert_layers * self._beside_experts() if expert_layers else 0
        padded = -(-config.vocab_size // _VOCABULARY) * _VOCABULARY
        head = self._cut(config.hidden_size * padded)
        return ModelShape(
            dtype=self.dtype,
            product_dtype=product,
            linear=MatrixShape(weights=matrices, bytes=None if bits is None else round(matrices * bits / 8)),
            lm_head=MatrixShape(weights=head, bytes=head * self.size),
            attention=tuple(self._attention()),
            experts=(experts,) if experts else (),
            quantization=None if config.quantization_config is None else config.quantization_config.quant_method,
            tensor_parallel=self.tensor,
            expert_parallel=self.spread,
            missing=tuple(self.missing),
        )

    def _quantized(self) -> tuple[str | None, float | None]:
        """Return what linear layers multiply in, and the bits of their weights; None where that is not known."""
        quantization = self.config.quantization_config
        own = self.size * 8
        if quantization is None:
            return self.dtype, own
        name = quantization.quant_method
        if name == "mxfp4" and self.config.model_type == "gpt_oss":  # its experts alone are quantized
            self.missing.append("what mxfp4 multiplies in hangs on the kernel, which a config does not tell")
            return None, own
        if name not in _QUANTIZED:
            self.missing.append(f"what {name} multiplies in, and how many bytes its weights take, is not known")
            return None, None
        product, bits = _QUANTIZED[name]
        return product or self.dtype, quantization.bits or bits

    def _cut(self, weights: int) -> int:
        return weights // self.tensor

    def _attention_weights(self) -> int:
        config, heads = self.config, self.heads
        if config.model_type not in _LATENT:
            size = self._head_size()
            return config.hidden_size * size * (2 * heads + 2 * self._kv_heads())
        c, r, nope, v = self._latent()
        queries = heads * (nope + r)
        down, up = (config.q_lora_rank, config.q_lora_rank) if config.q_lora_rank else (0, config.hidden_size)
        weights = config.hidden_size * (down + c + r) + up * queries
        return weights + c * heads * (nope + v) + heads * v * config.hidden_size

    def _attention(self) -> Iterable[AttentionShape]:
        config, heads = self.config, self.heads
        if config.model_type in _LATENT:
            c, r, nope, v = self._latent()
            yield AttentionShape(
                layers=config.num_hidden_layers,
                heads=heads,
                kv_heads=1,
                head_size=c + r,
                head_size_v=c,
                latent=c,
                rope=r,
                unpacked_size=nope + r + v,
                absorbed_queries=1,
                kv_bytes_per_token=(c + r) * self.size,
            )
            return
        num_near, window = self._windowed_layers()
        size, kv_heads = self._head_size(), self._kv_heads()
        for layers, own in ((config.num_hidden_layers - num_near, None), (num_near, window)):
            if layers:
                yield AttentionShape(
                    layers=layers,
                    heads=heads,
                    kv_heads=kv_heads,
                    head_size=size,
                    head_size_v=size,
                    window=own,
                    kv_bytes_per_token=2 * kv_heads * size * self.size,
                )

    def _head_size(self) -> int:
        return self.config.head_dim or self.config.hidden_size // self.config.num_attention_heads

    def _kv_heads(self) -> int:
        whole = self.config.num_key_value_heads or self.config.num_attention_heads
        if whole % self.tensor and self.tensor % whole:
            raise _CannotTell(f"its {whole} heads of keys cannot be cut over {self.tensor} ranks")
        return max(1, whole // self.tensor)

    def _latent(self) -> tuple[int, int, int, int]:
        config = self.config
        c, r, nope, v = (config.kv_lora_rank, config.qk_rope_head_dim, config.qk_nope_head_dim, config.v_head_dim)
        if c is None or r is None or nope is None or v is None:
            raise _CannotTell("it lacks the sizes of its latent attention: kv_lora_rank, qk_…_head_dim, v_head_dim")
        return c, r, nope, v

    def _windowed_layers(self) -> tuple[int, int | None]:
        """Return how many layers have a sliding window, and its size."""
        config = self.config
        if config.sliding_window is None or config.use_sliding_window is False:
            return 0, None
        if config.layer_types is not None:
            return config.layer_types.count("sliding_attention"), config.sliding_window
        if config.model_type in ("mistral", "mixtral", "phi3"):
            return config.num_hidden_layers, config.sliding_window
        if config.model_type in ("gpt_oss", "gemma2"):  # every second layer
            return (config.num_hidden_layers + 1) // 2, config.sliding_window
        if config.model_type.startswith("qwen") and not config.use_sliding_window:
            return 0, None
        raise _CannotTell("it has a sliding window and does not say in which layers (layer_types)")

    def _expert_layers(self) -> int:
        config = self.config
        if config.model_type not in _EXPERTS:
            return 0
        first = config.first_k_dense_replace or 0
        only, step = config.mlp_only_layers or [], config.decoder_sparse_step or 1
        layers = range(first, config.num_hidden_layers)
        return sum(layer not in only and (layer + 1) % step == 0 for layer in layers)

    def _num_experts(self) -> tuple[int, int]:
        config = self.config
        experts = config.num_local_experts or config.num_experts or config.n_routed_experts
        if not experts or not config.num_experts_per_tok:
            raise _CannotTell("it does not say how many experts it has, and how many a token takes")
        return experts, config.num_experts_per_tok

    def _experts(self, layers: int) -> ExpertShape:
        config = self.config
        experts, top_k = self._num_experts()
        if experts % self.spread:
            raise _CannotTell(f"its {experts} experts cannot be spread over {self.spread} ranks")
        inner = config.moe_intermediate_size or config.intermediate_size
        weights = 3 * config.hidden_size * inner
        weights = weights if self.spread > 1 else self._cut(weights)
        quantization = config.quantization_config
        bits: float | None = self.size * 8
        if quantization is not None:
            name = quantization.quant_method
            bits = _MXFP4_BITS if name == "mxfp4" else quantization.bits or _QUANTIZED.get(name, (None, None))[1]
        return ExpertShape(
            layers=layers,
            experts=experts,
            local_experts=experts // self.spread,
            top_k=top_k,
            weights=weights,
            bytes=None if bits is None else round(weights * bits / 8),
        )

    def _beside_experts(self) -> int:
        """Return the weights of the gate, which every rank has whole, and of shared experts."""
        config = self.config
        inner = config.shared_expert_intermediate_size or 0
        if config.n_shared_experts:
            inner = config.n_shared_experts * (config.moe_intermediate_size or 0)
        gate = config.hidden_size * self._num_experts()[0]
        return gate + self._cut(3 * config.hidden_size * inner)
