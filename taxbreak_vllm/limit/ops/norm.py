"""Norms, gates, rope, quantization and the KV cache: vectors in, vectors out; bytes alone are counted."""

from taxbreak_vllm.limit.ops.arguments import Arguments, Around, Rules, UnknownWork, moved, rules
from taxbreak_vllm.model.limit import Work


def _in_and_out(call: Arguments, _: Around) -> Work:
    """(input, …): all tensors read, an output like the first written."""
    first = call.tensor(0)
    return moved(sum(t.bytes for t in call.tensors) + first.numel * first.element.size, first.element)


def _activation(call: Arguments, _: Around) -> Work:
    """(input, …), other tensors being parameters of a channel each or an output: two passes over the input."""
    first = call.tensor(0)
    return moved(first.bytes + first.numel * first.element.size, first.element)


def _normed_backward(call: Arguments, _: Around) -> Work:
    """(two of grad and input, …): both read, a gradient of the input written."""
    a, b = call.tensor(0), call.tensor(1)
    return moved(a.bytes + b.bytes + max(a.numel, b.numel) * a.element.size, a.element)


def _arguments_once(call: Arguments, _: Around) -> Work:
    """Every tensor is read or written once: the output is among the arguments."""
    tensors = call.tensors
    if not tensors:
        raise UnknownWork(f"{call.op}: no tensor was recorded")
    return moved(sum(tensor.bytes for tensor in tensors), tensors[-1].element)


def _added_norm(call: Arguments, _: Around) -> Work:
    """(input, residual, weight, …): both read and written."""
    a, residual, weight = call.tensor(0), call.tensor(1), call.optional(2)
    return moved(2 * (a.bytes + residual.bytes) + (weight.bytes if weight else 0), a.element)


def _added_norm_quantized(call: Arguments, _: Around) -> Work:
    """(result, input, residual, weight, …): the residual read and written."""
    result, a, residual, weight = (call.tensor(place) for place in range(4))
    return moved(result.bytes + a.bytes + 2 * residual.bytes + weight.bytes, a.element)


def _rope(call: Arguments, _: Around) -> Work:
    """(positions, query, key or none, head size, table, …): read and written in place, a row of the table a position.

    Where fewer channels of a head are turned than it has, only these are touched.
    """
    positions, query = call.tensor(0), call.tensor(1)
    *rest, table = call.tensors[1:]
    head = next((int(text) for text in call.scalars() if text.isdigit() and int(text) > 1), table.dims[-1])
    turned = sum(tensor.bytes for tensor in rest) * min(1.0, table.dims[-1] / head)
    rows = min(positions.numel, table.dims[0])
    num_bytes = 2 * int(turned) + positions.bytes + rows * table.dims[-1] * table.element.size
    return moved(num_bytes, query.element)


def _cached(call: Arguments, _: Around) -> Work:
    """(key, value, key cache, …): both read, as many elements of the cache written."""
    key, value, cache = (call.tensor(place) for place in range(3))
    return moved(key.bytes + value.bytes + (key.distinct + value.distinct) * cache.element.size, key.element)


def _cached_unseen(call: Arguments, _: Around) -> Work:
    """(key, value, layer): the cache, of unknown type, is taken to be of theirs."""
    key, value = call.tensor(0), call.tensor(1)
    return moved(2 * (key.bytes + value.bytes), key.element)


RULES: Rules = {
    **rules(_in_and_out, "aten::native_layer_norm", "aten::_fused_rms_norm", "aten::rms_norm"),
    **rules(
        _activation,
        "aten::native_group_norm",
        "aten::native_batch_norm",
        "aten::cudnn_batch_norm",
        "aten::miopen_batch_norm",
        "aten::_native_batch_norm_legit",
        "aten::_batch_norm_with_update",
    ),
    **rules(
        _normed_backward,
        "aten::native_layer_norm_backward",
        "aten::native_group_norm_backward",
        "aten::native_batch_norm_backward",
        "aten::cudnn_batch_norm_backward",
        "aten::miopen_batch_norm_backward",
        "aten::_fused_rms_norm_backward",
    ),
    **rules(
        _arguments_once,
        "_C::rms_norm",
        "_C::rms_norm_static_fp8_quant",
        "_C::rms_norm_dynamic_per_token_quant",
        "_C::rms_norm_per_block_quant",
        "_C::silu_and_mul",
        "_C::silu_and_mul_quant",
        "_C::mul_and_silu",
        "_C::gelu_and_mul",
        "_C::gelu_tanh_and_mul",
        "_C::fatrelu_and_mul",
        "_C::swigluoai_and_mul",
        "_C::gelu_new",
        "_C::gelu_fast",
        "_C::gelu_quick",
        "_C::relu",
        "_C::static_scaled_fp8_quant",
        "_C::dynamic_scaled_fp8_quant",
        "_C::dynamic_per_token_scaled_fp8_quant",
        "_C::static_scaled_int8_quant",
        "_C::dynamic_scaled_int8_quant",
        "_C::per_token_group_fp8_quant",
        "_C::per_token_group_quant_8bit",
        "_C::scaled_fp4_quant",
        "_C::greedy_argmax",
        "sgl_kernel::rmsnorm",
        "sgl_kernel::silu_and_mul",
        "sgl_kernel::gelu_and_mul",
        "sgl_kernel::sgl_per_token_group_quant_8bit",
        "sgl_kernel::sgl_per_token_quant_fp8",
        "aiter::rmsnorm",
        "aiter::rms_norm",
        "aiter::rmsnorm2d_fwd_with_add",
        "aiter::rmsnorm2d_fwd_with_add_ck",
        "aiter::add_rmsnorm",
        "aiter::silu_and_mul",
        "aiter::static_per_tensor_quant",
        "aiter::dynamic_per_token_scaled_quant",
        "_moe_C::topk_softmax",
        "_moe_C::topk_sigmoid",
        "_moe_C::moe_sum",
        "_moe_C::moe_align_block_size",
        "sgl_kernel::topk_softmax",
    ),
    **rules(_added_norm, "_C::fused_add_rms_norm", "sgl_kernel::fused_add_rmsnorm"),
    **rules(_added_norm_quantized, "_C::fused_add_rms_norm_static_fp8_quant"),
    **rules(_rope, "_C::rotary_embedding", "sgl_kernel::rotary_embedding"),
    **rules(
        _cached,
        "_C_cache_ops::reshape_and_cache_flash",
        "_C_cache_ops::reshape_and_cache",
        "_C_cache_ops::concat_and_cache_mla",
        "_C::cpu_attn_reshape_and_cache",
        "sglang::store_cache",
    ),
    **rules(_cached_unseen, "vllm::unified_kv_cache_update"),
}
