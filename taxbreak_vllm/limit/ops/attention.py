"""Attention: 2·H·pairs·(d + d_v) FLOPs; queries, keys, values and output once each.

Where the call's shapes hold the lengths (torch's SDPA, flash_attn) they are enough. vLLM's and other paged attention is
told by its step's tokens: without them its work is not known. A causal mask over q queries of k keys leaves
q·k − q(q−1)/2 pairs; a sliding window is in no trace, so such a layer is counted as if it had none.
"""

from collections.abc import Callable

from taxbreak_vllm.limit.ops.arguments import Arguments, Around, Element, Rule, Rules, Tensor, UnknownWork, rules
from taxbreak_vllm.model.limit import StepTokens, Work

Layout = Callable[[Tensor], tuple[int, int, int, int]]  # batch, heads, length, head size
_FORWARD_PRODUCTS, _BACKWARD_PRODUCTS = 2, 5


def _heads_first(tensor: Tensor) -> tuple[int, int, int, int]:
    batch, heads, length, size = tensor.dims
    return batch, heads, length, size


def _heads_last(tensor: Tensor) -> tuple[int, int, int, int]:
    batch, length, heads, size = tensor.dims
    return batch, heads, length, size


def pairs_of(queries: int, keys: int, *, is_causal: bool) -> int:
    """Count the (query, key) pairs of one sequence; a causal mask is aligned to the end, as decoding has it."""
    if not is_causal:
        return queries * keys
    if keys >= queries:
        return queries * keys - queries * (queries - 1) // 2
    return keys * (keys + 1) // 2


def _dense(layout: Layout, *, causal_at: int, first: int = 0, is_backward: bool = False) -> Rule:
    """The rule of a call whose queries stand at place `first`, and whether it is causal at `causal_at`."""

    def work(call: Arguments, _around: Around) -> Work:
        query, key, value = (call.tensor(first + place, axes=4) for place in range(3))
        batch, heads, queries, size = layout(query)
        batch_k, heads_k, keys, size_k = layout(key)
        size_v = value.dims[-1]
        if batch_k != batch or size_k != size or heads_k == 0 or heads % heads_k:
            raise UnknownWork(f"{call.op}: its queries {query.dims} and keys {key.dims} do not fit")
        pairs = batch * pairs_of(queries, keys, is_causal=call.flag(causal_at))
        output = batch * queries * heads * size_v * query.element.size
        once = query.bytes + key.bytes + value.bytes + output
        if not is_backward:
            return Work(2 * heads * pairs * (size + size_v), once, query.element.dtype, is_matrix=True)
        # S = QKᵀ once more, dV = PᵀdO, dP = dOVᵀ, dQ = dS·K, dK = dSᵀQ: three of the size of a key, two of a value
        flops = 2 * heads * pairs * (3 * size + 2 * size_v)
        gradients = query.numel * query.element.size + key.numel * key.element.size + value.numel * value.element.size
        return Work(flops, once + output + gradients, query.element.dtype, is_matrix=True)

    return Rule(work)


def _tokens(call: Arguments, around: Around) -> StepTokens:
    if around.tokens is None:
        raise UnknownWork(f"{call.op}: the lengths of its requests are not in the trace")
    return around.tokens


def _paged(call: Arguments, around: Around) -> Work:
    """(query (t, H, d), key (t, H_kv, d) or a cache (…, H_kv, d), value, …)"""
    tokens = _tokens(call, around)
    query, key, value = call.tensor(0, axes=3), call.tensor(1), call.tensor(2)
    _, heads, size = query.dims
    if len(key.dims) < 3 or len(value.dims) < 3:
        raise UnknownWork(f"{call.op}: its keys {key.dims} have no heads")
    heads_k, size_v = key.dims[-2], value.dims[-1]
    cached = min((query.element, key.element), key=lambda element: element.size)
    output = tokens.queries * heads * size_v * _out_size(call, query.element)
    num_bytes = tokens.queries * heads * size * query.element.size + output
    num_bytes += tokens.keys * heads_k * (size + size_v) * cached.size
    return Work(2 * heads * tokens.pairs * (size + size_v), num_bytes, query.element.dtype, is_matrix=True)


def _out_size(call: Arguments, element: Element) -> int:
    output = call.optional(3)
    return output.element.size if output is not None and len(output.dims) >= 2 else element.size


def _paged_heads_first(call: Arguments, around: Around) -> Work:
    """vLLM on a CPU: (query (t, H, d), key cache (blocks, H_kv, block, d), value cache, …, window, …)"""
    tokens = _tokens(call, around)
    if call.integer(9) >= 0:
        raise UnknownWork(f"{call.op}: how many pairs lie in its window of {call.integer(9)} is not in the trace")
    query, key, value = call.tensor(0, axes=3), call.tensor(1, axes=4), call.tensor(2, axes=4)
    _, heads, size = query.dims
    num_bytes = 2 * tokens.queries * heads * size * query.element.size
    num_bytes += tokens.keys * key.dims[1] * (size + value.dims[-1]) * key.element.size
    return Work(2 * heads * tokens.pairs * (size + value.dims[-1]), num_bytes, query.element.dtype, is_matrix=True)


def _latent(call: Arguments, around: Around) -> Work:
    """MLA, absorbed: (query (t, H, …), latent (t, c), rope part (t, …, r), …): 2·H·pairs·(2c + r)."""
    tokens = _tokens(call, around)
    query, latent, rope = call.tensor(0, axes=3), call.tensor(1), call.tensor(2)
    heads, c, r = query.dims[1], latent.dims[-1], rope.dims[-1]
    num_bytes = tokens.queries * heads * (2 * c + r) * query.element.size + tokens.keys * (c + r) * latent.element.size
    return Work(2 * heads * tokens.pairs * (2 * c + r), num_bytes, query.element.dtype, is_matrix=True)


def _latent_on_cpu(output: int) -> Rule:
    """vLLM on a CPU: a query (t, H, c + r) and its output (t, H, c), of all requests of the step or of some of them."""

    def work(call: Arguments, around: Around) -> Work:
        tokens = _tokens(call, around)
        query, out = call.tensor(0 if output else 1, axes=3), call.tensor(output, axes=3)
        (num_queries, heads, size), c = query.dims, out.dims[-1]
        if num_queries != tokens.queries:
            raise UnknownWork(f"{call.op}: which of its step's requests it is for is not in the trace")
        num_bytes = query.bytes + out.bytes + tokens.keys * size * query.element.size
        return Work(2 * heads * tokens.pairs * (size + c), num_bytes, query.element.dtype, is_matrix=True)

    return Rule(work, of_step=True)


def _flash(call: Arguments, around: Around) -> Work:
    """(query, key, value, …) as (b, s, H, d), or as (t, H, d) with the lengths of the sequences beside them."""
    if len(call.tensor(0).dims) == 3:
        return _paged(call, around)
    return _dense(_heads_last, causal_at=8).work(call, around)


RULES: Rules = {
    **dict.fromkeys(
        ("aten::_scaled_dot_product_flash_attention", "aten::_scaled_dot_product_flash_attention_for_cpu"),
        _dense(_heads_first, causal_at=4),
    ),
    **dict.fromkeys(
        ("aten::_scaled_dot_product_efficient_attention", "aten::_scaled_dot_product_cudnn_attention"),
        _dense(_heads_first, causal_at=6),
    ),
    **dict.fromkeys(
        ("aten::_scaled_dot_product_fused_attention_overrideable", "aten::scaled_dot_product_attention"),
        _dense(_heads_first, causal_at=5),
    ),
    **rules(_flash, "aten::_flash_attention_forward", of_step=True),
    "aten::_efficient_attention_forward": _dense(_heads_last, causal_at=9),
    "flash_attn::_flash_attn_forward": _dense(_heads_last, causal_at=5),
    "aten::_scaled_dot_product_flash_attention_backward": _dense(_heads_first, causal_at=11, first=1, is_backward=True),
    "aten::_scaled_dot_product_flash_attention_for_cpu_backward": _dense(
        _heads_first, causal_at=7, first=1, is_backward=True
    ),
    "aten::_scaled_dot_product_efficient_attention_backward": _dense(
        _heads_first, causal_at=11, first=1, is_backward=True
    ),
    "aten::_scaled_dot_product_cudnn_attention_backward": _dense(_heads_first, causal_at=14, first=1, is_backward=True),
    **rules(
        _paged,
        "vllm::unified_attention_with_output",
        "vllm::unified_attention",
        "_vllm_fa2_C::varlen_fwd",
        "_vllm_fa3_C::fwd",
        "aiter::mha_batch_prefill",
        "aiter::fmha_v3_varlen_fwd",
        "flash_attn::_flash_attn_varlen_forward",
        of_step=True,
    ),
    **rules(_paged_heads_first, "_C::cpu_attention_with_kv_cache", of_step=True),
    "_C::mla_decode_kvcache": _latent_on_cpu(output=0),
    **dict.fromkeys(("_C::decode_attention_cpu", "_C::extend_attention_cpu"), _latent_on_cpu(output=3)),
    **rules(_latent, "vllm::unified_mla_attention_with_output", "vllm::unified_mla_attention", of_step=True),
}
