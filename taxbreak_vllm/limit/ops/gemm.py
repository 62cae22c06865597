"""Matrix products: torch's, oneDNN's, and those of vLLM, SGLang and aiter. 2·m·n·k FLOPs, each operand once.

A bias adds one addition an output (TraceLens counts it, torch's own counter does not).
"""

from math import prod

from taxbreak_vllm.limit.ops.arguments import Arguments, Around, Element, Rules, Tensor, UnknownWork, rules
from taxbreak_vllm.model.limit import Work

_HALF = Element("bf16", 2)


def product(
    a: Tensor, b: Tensor, *, m: int, n: int, k: int, batch: int = 1, out: Element, bias: Tensor | None = None
) -> Work:
    """Return the work of `batch` products (m, k) x (k, n) into elements of type `out`."""
    flops = 2 * batch * m * n * k + (batch * m * n if bias is not None else 0)
    num_bytes = a.bytes + b.bytes + batch * m * n * out.size + (bias.bytes if bias is not None else 0)
    return Work(flops, num_bytes, a.element.dtype, is_matrix=True)


def _matrices(a: Tensor, b: Tensor, out: Element, bias: Tensor | None = None) -> Work:
    """(m, k) x (k, n), with any number of batch axes before."""
    *batch, m, k = a.dims
    if len(b.dims) != len(a.dims) or b.dims[:-2] != tuple(batch) or b.dims[-2] != k:
        raise UnknownWork(f"its matrices {a.dims} and {b.dims} do not fit")
    return product(
        a, b, m=m, n=b.dims[-1], k=k * max(a.element.packed, b.element.packed), batch=prod(batch), out=out, bias=bias
    )


def linear(a: Tensor, weight: Tensor, out: Element, bias: Tensor | None = None) -> Work:
    """Return the work of (…, k) x (n, k) transposed."""
    if len(weight.dims) != 2 or not a.dims or a.dims[-1] != weight.dims[1]:
        raise UnknownWork(f"its input {a.dims} and weights {weight.dims} do not fit")
    k = a.dims[-1] * a.element.packed
    return product(a, weight, m=prod(a.dims[:-1]), n=weight.dims[0], k=k, out=out, bias=bias)


def _mm(call: Arguments, _: Around) -> Work:
    a, b = call.tensor(0, axes=2), call.tensor(1, axes=2)
    return _matrices(a, b, a.element)


def _bmm(call: Arguments, _: Around) -> Work:
    a, b = call.tensor(0, axes=3), call.tensor(1, axes=3)
    return _matrices(a, b, a.element)


def _out_bmm(call: Arguments, _: Around) -> Work:
    """vLLM on a CPU with AMX: (out (b, m, n), a (b, m, k), packed b, …)"""
    out, a, b = call.tensor(0, axes=3), call.tensor(1, axes=3), call.tensor(2)
    batch, m, n = out.dims
    if a.dims[:2] != (batch, m):
        raise UnknownWork(f"its matrices {a.dims} and {out.dims} do not fit")
    return product(a, b, m=m, n=n, k=a.dims[2], batch=batch, out=out.element)


def _addmm(call: Arguments, _: Around) -> Work:
    a, b = call.tensor(1, axes=2), call.tensor(2, axes=2)
    return _matrices(a, b, a.element, call.tensor(0))


def _baddbmm(call: Arguments, _: Around) -> Work:
    a, b = call.tensor(1, axes=3), call.tensor(2, axes=3)
    return _matrices(a, b, a.element, call.tensor(0))


def _int_mm(call: Arguments, _: Around) -> Work:
    return _matrices(call.tensor(0, axes=2), call.tensor(1, axes=2), Element("int32", 4))


def _mv(call: Arguments, _: Around) -> Work:
    return _vector(call.tensor(0, axes=2), call.tensor(1, axes=1))


def _addmv(call: Arguments, _: Around) -> Work:
    return _vector(call.tensor(1, axes=2), call.tensor(2, axes=1), call.tensor(0))


def _vector(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Work:
    if a.dims[1] != b.dims[0]:
        raise UnknownWork(f"its matrix {a.dims} and vector {b.dims} do not fit")
    return product(a, b, m=a.dims[0], n=1, k=a.dims[1], out=a.element, bias=bias)


def _dot(call: Arguments, _: Around) -> Work:
    a, b = call.tensor(0, axes=1), call.tensor(1, axes=1)
    return product(a, b, m=1, n=1, k=a.dims[0], out=a.element)


def _scaled_mm(call: Arguments, _: Around) -> Work:
    """(a, b, scale_a, scale_b, …): the output is in 16 bits, whatever goes in."""
    return _matrices(call.tensor(0, axes=2), call.tensor(1, axes=2), _HALF)


def _out_scaled_mm(call: Arguments, _: Around) -> Work:
    """(out, a, b, …)"""
    return _matrices(call.tensor(1, axes=2), call.tensor(2, axes=2), call.tensor(0).element)


def _out_fp4_mm(call: Arguments, _: Around) -> Work:
    """(out, a, b, …), two values of four bits in a byte, b as (n, k/2)."""
    out, a, b = call.tensor(0, axes=2), call.tensor(1, axes=2), call.tensor(2, axes=2)
    if a.dims[1] != b.dims[1]:
        raise UnknownWork(f"its matrices {a.dims} and {b.dims} do not fit")
    work = product(a, b, m=a.dims[0], n=b.dims[0], k=2 * a.dims[1], out=out.element)
    return Work(work.flops, work.bytes, "fp4", is_matrix=True)


def _linear(call: Arguments, _: Around) -> Work:
    a = call.tensor(0)
    return linear(a, call.tensor(1), a.element, call.optional(2))


def _out_linear(call: Arguments, _: Around) -> Work:
    """(out, a, weight, bias, …)"""
    return linear(call.tensor(1), call.tensor(2), call.tensor(0).element, call.optional(3))


def _quantized_linear(call: Arguments, _: Around) -> Work:
    """(a, weight, scales…): the output is in 16 bits, whatever goes in."""
    return linear(call.tensor(0), call.tensor(1), _HALF)


def _weight_first(call: Arguments, _: Around) -> Work:
    """(weight, a, …), AMD's skinny kernels."""
    a = call.tensor(1)
    return linear(a, call.tensor(0), a.element)


def _packed_linear(call: Arguments, _: Around) -> Work:
    """oneDNN (out, a, …): weights behind a handle, in the input's type."""
    out, a = call.tensor(0), call.tensor(1)
    m, n, k = prod(out.dims[:-1]), out.dims[-1], a.dims[-1]
    size = a.element.size
    return Work(2 * m * n * k, a.bytes + n * k * size + m * n * out.element.size, a.element.dtype, is_matrix=True)


def _awq(call: Arguments, _: Around) -> Work:
    """(a, weights (k, n/8), …): eight weights of four bits in an int."""
    a, packed = call.tensor(0, axes=2), call.tensor(1, axes=2)
    return _unpacked(a, call.tensors[1:], n=packed.dims[1] * 8)


def _gptq(call: Arguments, _: Around) -> Work:
    """(a, weights (k/8, n), …)"""
    a, packed = call.tensor(0, axes=2), call.tensor(1, axes=2)
    return _unpacked(a, call.tensors[1:], n=packed.dims[1])


def _marlin(call: Arguments, _: Around) -> Work:
    """(a, …, type, m, n, k, …): the sizes are the second to fourth integer above 1."""
    sizes = [int(text) for text in call.scalars() if text.lstrip("-").isdigit()]
    a = call.tensor(0)
    if len(sizes) < 4 or sizes[3] != a.dims[-1]:
        raise UnknownWork(f"{call.op}: its sizes were not recorded")
    return _unpacked(a, call.tensors[1:], n=sizes[2])


def _cpu_wna16(call: Arguments, _: Around) -> Work:
    """vLLM on a CPU: (a, packed weights, out, scales, zero points, …)"""
    a, out = call.tensor(0), call.tensor(2)
    others = [call.tensor(1), call.tensor(3), call.optional(4)]
    return _unpacked(a, tuple(filter(None, others)), n=out.dims[-1])


def _cpu_int8(call: Arguments, _: Around) -> Work:
    """vLLM on a CPU with AMX, activations quantized within: (a, packed weights (n, …), scales, …)"""
    a, weights = call.tensor(0), call.tensor(1, axes=2)
    work = _unpacked(a, (weights, call.tensor(2)), n=weights.dims[0])
    return Work(work.flops, work.bytes, "int8", is_matrix=True)


def _cpu_int4(call: Arguments, _: Around) -> Work:
    """The same with weights of four bits: (a, packed weights, zero points, scales (blocks, groups, outputs), …)"""
    a, weights, zeros, scales = (call.tensor(place) for place in range(4))
    n = scales.dims[0] * scales.dims[-1]
    work = _unpacked(a, (weights, zeros, scales), n=n)
    return Work(work.flops, work.bytes, "int8", is_matrix=True)


def _unpacked(a: Tensor, others: tuple[Tensor, ...], *, n: int) -> Work:
    m, k = prod(a.dims[:-1]), a.dims[-1]
    num_bytes = a.bytes + sum(other.bytes for other in others) + m * n * a.element.size
    return Work(2 * m * n * k, num_bytes, a.element.dtype, is_matrix=True)


RULES: Rules = {
    **rules(_mm, "aten::mm"),
    **rules(_bmm, "aten::bmm"),
    **rules(_out_bmm, "_C::bmm_cpu"),
    **rules(_addmm, "aten::addmm", "aten::addmm_", "aten::_addmm_activation"),
    **rules(_baddbmm, "aten::baddbmm", "aten::baddbmm_"),
    **rules(_int_mm, "aten::_int_mm"),
    **rules(_mv, "aten::mv"),
    **rules(_addmv, "aten::addmv", "aten::addmv_"),
    **rules(_dot, "aten::dot", "aten::vdot"),
    **rules(_scaled_mm, "aten::_scaled_mm", "sgl_kernel::fp8_scaled_mm", "sgl_kernel::int8_scaled_mm"),
    **rules(_out_scaled_mm, "_C::cutlass_scaled_mm", "_C::cutlass_scaled_mm_azp"),
    **rules(_out_fp4_mm, "_C::cutlass_scaled_fp4_mm", "sgl_kernel::cutlass_scaled_fp4_mm"),
    **rules(
        _linear,
        "aten::linear",
        "aten::mkldnn_linear",
        "mkldnn::_linear_pointwise",
        "vllm::rocm_unquantized_gemm",
        "aiter::gemm_a16w16",
        "sgl_kernel::weight_packed_linear",
    ),
    **rules(
        _quantized_linear,
        "aiter::gemm_a8w8",
        "aiter::gemm_a8w8_CK",
        "aiter::gemm_a8w8_blockscale",
        "aiter::gemm_a8w8_bpreshuffle",
        "vllm::rocm_aiter_gemm_w8a8",
        "vllm::rocm_aiter_gemm_w8a8_blockscale",
        "vllm::w8a8_triton_block_scaled_mm_func",
        "vllm::w8a8_block_fp8_matmul_func",
    ),
    **rules(_weight_first, "_rocm_C::wvSplitK", "_rocm_C::LLMM1"),
    **rules(_out_linear, "_C::weight_packed_linear"),
    **rules(_packed_linear, "_C::onednn_mm", "_C::onednn_scaled_mm"),
    **rules(_cpu_wna16, "_C::cpu_gemm_wna16"),
    **rules(_cpu_int8, "_C::int8_scaled_mm_with_quant"),
    **rules(_cpu_int4, "_C::int4_scaled_mm_cpu"),
    **rules(_awq, "_C::awq_gemm"),
    **rules(_gptq, "_C::gptq_gemm"),
    **rules(_marlin, "_C::gptq_marlin_gemm", "_C::marlin_gemm"),
}
