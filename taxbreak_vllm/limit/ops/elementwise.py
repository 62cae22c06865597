"""Element by element: each operand read once, the broadcast result written once."""

from math import prod

from taxbreak_vllm.limit.ops.arguments import (
    BOOL,
    Arguments,
    Around,
    Rules,
    UnknownWork,
    broadcast,
    moved,
    promoted,
    rules,
)
from taxbreak_vllm.model.limit import Work

_UNARY = """
abs acos acosh asin asinh atan atanh bernoulli bitwise_not ceil celu clamp clamp_max clamp_min conj_physical cos cosh
dropout elu erf erfc exp exp2 expm1 floor frac gelu hardsigmoid hardswish hardtanh isfinite isinf isnan leaky_relu
lgamma log log10 log1p log2 log_sigmoid_forward logical_not logit mish nan_to_num native_dropout neg reciprocal relu
relu6 round rsqrt sgn sigmoid sign silu sin sinh softplus sqrt square tan tanh threshold tril triu trunc
"""
_BINARY = """
add atan2 bitwise_and bitwise_left_shift bitwise_or bitwise_right_shift bitwise_xor copysign div elu_backward eq
floor_divide fmod ge gelu_backward gt hardsigmoid_backward hardswish_backward hardtanh_backward hypot le
leaky_relu_backward logaddexp logical_and logical_or logical_xor logit_backward lt masked_fill maximum minimum
mish_backward mse_loss mul native_dropout_backward ne pow prelu remainder rsub sigmoid_backward silu_backward
softplus_backward sub tanh_backward threshold_backward xlogy __and__ __lshift__ __or__ __rshift__ __xor__
"""
_TERNARY = "addcdiv addcmul binary_cross_entropy binary_cross_entropy_with_logits lerp where"
_TRUTHS = "eq ne lt le gt ge isfinite isinf isnan logical_and logical_not logical_or logical_xor"


def _of(operands: int, name: str) -> Rules:
    def work(call: Arguments, _: Around) -> Work:
        is_in_place = call.op.endswith("_") and not call.op.endswith("__")
        tensors = tuple(t for place in range(operands) if (t := call.optional(place)) is not None)
        if not tensors:
            raise UnknownWork(f"{call.op}: no tensor was recorded")
        result = tensors[0].element if is_in_place else BOOL if name in _TRUTHS.split() else promoted(tensors)
        count = prod(broadcast(*(tensor.dims for tensor in tensors)))
        num_bytes = sum(tensor.bytes for tensor in tensors) + count * result.size
        if name == "native_dropout":
            num_bytes += count  # the mask
        return moved(num_bytes, promoted(tensors))

    in_place = name if name.startswith("__") else f"{name}_"
    return rules(work, f"aten::{name}", f"aten::{in_place}")


RULES: Rules = {
    op: rule
    for operands, names in ((1, _UNARY), (2, _BINARY), (3, _TERNARY))
    for name in names.split()
    for op, rule in _of(operands, name).items()
}
