"""FLOPs and bytes of GEMM, convolution and SDPA by the definitions that TraceLens publishes, written anew.

TraceLens (AMD-AGI/TraceLens, PerfModel/perf_model.py and torch_op_mapping.py at 01a6eeb) is in no package registry: the
`tracelens` of PyPI is another project. So its definitions stand here in our words, and the tool itself is not run.
"""

import re
from collections.abc import Collection
from math import prod

from taxbreak_vllm.limit.ops.arguments import Arguments, Convolution, Tensor, UnknownWork
from taxbreak_vllm.trace.calls import Call, Input

# The ops that it has a model for, of those in the traces here.
MODELED = frozenset(
    f"aten::{name}"
    for name in re.findall(
        r"\w+",
        """
        mm addmm bmm baddbmm _scaled_mm convolution convolution_backward _scaled_dot_product_flash_attention
        _scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention copy_ clamp_min clamp_min_ clamp_max
        clamp_max_ sigmoid rsqrt silu neg pow div div_ mul mul_ add add_ sigmoid_backward threshold_backward batch_norm
        native_batch_norm miopen_batch_norm cudnn_batch_norm layer_norm native_layer_norm group_norm native_group_norm
        _fused_rms_norm native_batch_norm_backward miopen_batch_norm_backward cudnn_batch_norm_backward
        native_layer_norm_backward native_group_norm_backward _fused_rms_norm_backward sum mean max min norm linalg_norm
        std var logsumexp cumsum cumprod amin amax
        """,
    )
) | {"vllm::unified_attention_with_output"}
_GENERATED = ("triton_poi_", "triton_red_", "triton_per_")
_GEMM = {"aten::mm": (0, 1), "aten::bmm": (0, 1), "aten::addmm": (1, 2), "aten::baddbmm": (1, 2)}
_CAUSAL_AT = {
    "aten::_scaled_dot_product_flash_attention": 4,
    "aten::_scaled_dot_product_efficient_attention": 6,
    "aten::_scaled_dot_product_cudnn_attention": 6,
}


def is_modeled(op: str) -> bool:
    """Tell whether TraceLens has a model for an op."""
    return op in MODELED or op.startswith(_GENERATED)


def published(call: Call) -> tuple[int, int] | None:
    """Return FLOPs and bytes; None for an op of another kind, or where the trace lacks what is needed."""
    try:
        arguments = Arguments(call)
        if call.op in _GEMM:
            return _gemm(arguments, *_GEMM[call.op])
        if call.op == "aten::convolution":
            return _convolution(arguments)
        if call.op == "aten::convolution_backward":
            return _gradients(arguments)
        if call.op in _CAUSAL_AT:
            return _attention(arguments, is_causal=arguments.flag(_CAUSAL_AT[call.op]))
    except UnknownWork:
        return None
    return None


def _gemm(call: Arguments, first: int, second: int) -> tuple[int, int]:
    """2·m·n·k, with a bias m·n more; a bias is n elements, whatever its shape."""
    a, b = call.tensor(first), call.tensor(second)
    *batch, m, k = a.dims
    n, count, has_bias = b.dims[-1], prod(batch), first == 1
    elements = count * (m * k + k * n + m * n) + n * has_bias
    return count * (2 * m * n * k + m * n * has_bias), elements * a.element.size


def _convolution(call: Arguments) -> tuple[int, int] | None:
    """2·outputs·weights of an output; the output as long as strides and padding leave it."""
    image, weight = call.tensor(0), call.tensor(1)
    if call.flag(6):
        return None
    stride, padding, dilation = (call.ints(place) for place in (3, 4, 5))
    sizes = [
        (size + 2 * padding[k] - dilation[k] * (weight.dims[2 + k] - 1) - 1) // stride[k] + 1
        for k, size in enumerate(image.dims[2:])
    ]
    return _one_convolution(image, weight, image.dims[0] * weight.dims[0] * prod(sizes))


def _gradients(call: Arguments) -> tuple[int, int] | None:
    """Two convolutions, always both, each with all three tensors."""
    grad, image, weight = (call.tensor(place) for place in range(3))
    if call.flag(7):
        return None
    flops, num_bytes = _one_convolution(image, weight, grad.numel)
    return 2 * flops, 2 * num_bytes


def _one_convolution(image: Tensor, weight: Tensor, outputs: int) -> tuple[int, int]:
    return 2 * outputs * prod(weight.dims[1:]), (image.numel + weight.numel + outputs) * image.element.size


def completed(call: Call, convolutions: Collection[Convolution]) -> Call:
    """Return a convolution's call with the stride and padding that fit its shapes, where the trace holds none.

    `convolutions` are the shapes that backward calls tell; a call that holds its values, or that none fit, stays.
    """
    inputs = call.inputs or ()
    if call.op not in ("aten::convolution", "aten::cudnn_convolution_backward") or any(each.value for each in inputs):
        return call
    is_backward = call.op == "aten::cudnn_convolution_backward"
    image, weight = inputs[0], inputs[2 if is_backward else 1]
    fitting = [each for each in convolutions if (each.input, each.weight) == (image.dims, weight.dims)]
    if len(fitting) != 1:
        return call
    strides = [-(-size // out) for size, out in zip(image.dims[2:], fitting[0].output[2:], strict=True)]
    padding = [(size - 1) // 2 for size in weight.dims[2:]]
    lists = [Input("ScalarList", value=str(values)) for values in (strides, padding, [1] * len(strides))]
    rest = [
        Input("Scalar", value="False"),
        Input("ScalarList", value=str([0] * len(strides))),
        Input("Scalar", value="1"),
    ]
    if not is_backward:
        return Call(call.op, (image, weight, Input(""), *lists, *rest))
    mask = Input("ScalarList", value="[True, True, False]")
    return Call("aten::convolution_backward", (inputs[1], image, weight, Input(""), *lists, *rest, mask))


def _attention(call: Arguments, *, is_causal: bool) -> tuple[int, int]:
    """2·B·H·N_q·N_k·(d + d_v), half of it where it is causal."""
    query, key, value = (call.tensor(place) for place in range(3))
    batch, heads, queries, size = query.dims
    flops = 2 * batch * heads * queries * key.dims[2] * (size + value.dims[3])
    elements = query.numel + key.numel + value.numel + batch * heads * queries * value.dims[3]
    return flops // (2 if is_causal else 1), elements * query.element.size
