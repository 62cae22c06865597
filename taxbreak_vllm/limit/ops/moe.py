"""Mixtures of experts: 2·t·top_k FLOPs a weight of an expert; the weights of the experts that the tokens chose, once.

Which experts that were no trace holds. At the least all tokens chose the same top_k; with uniform choices
E(1 − (1 − top_k/E)^t) of E experts are met.
"""

import re

from taxbreak_vllm.limit.experts import experts_met, met_on_rank
from taxbreak_vllm.limit.ops.arguments import Arguments, Around, Rules, Tensor, UnknownWork, rules
from taxbreak_vllm.model.limit import Work

_IN_NAMES = {"fp8": r"[Ee]4m3|[Ee]5m2", "fp4": r"[Ee]2m1"}  # bmm_MxE4m3_MxE2m1… of TensorRT-LLM


def _experts(hidden: Tensor, up: Tensor, down: Tensor, chosen: Tensor, *, others: int = 0) -> Work:
    """`up` is (E, 2·I, D), `down` (E, D, I), or both with half of their last axis where two values share a byte."""
    if len(up.dims) != 3 or len(down.dims) != 3 or len(hidden.dims) != 2 or len(chosen.dims) != 2:
        raise UnknownWork(f"its experts' weights {up.dims} and {down.dims} are not one matrix each")
    tokens, experts, top_k = hidden.dims[0], up.dims[0], chosen.dims[1]
    if experts != down.dims[0] or not experts or hidden.dims[1] % up.dims[2]:
        raise UnknownWork(f"its input {hidden.dims} and weights {up.dims} do not fit")
    packed = hidden.dims[1] // up.dims[2]
    an_expert = (up.bytes + down.bytes) // experts
    each = up.dims[1] * up.dims[2] + down.dims[1] * down.dims[2]
    least, uniform = experts_met(experts, top_k, tokens)
    rest = 2 * hidden.bytes + chosen.bytes + others
    return Work(
        flops=2 * tokens * top_k * each * packed,
        bytes=rest + least * an_expert,
        dtype=up.element.dtype if packed == 1 else hidden.element.dtype,
        is_matrix=True,
        most_bytes=rest + round(max(least, uniform) * an_expert),
    )


def _fused(call: Arguments, _: Around) -> Work:
    """(hidden, up, down, weights of the chosen, chosen, …)"""
    hidden, up, down, weight, chosen = (call.tensor(place) for place in range(5))
    return _experts(hidden, up, down, chosen, others=weight.bytes)


def _fused_into(call: Arguments, _: Around) -> Work:
    """vLLM on a CPU: (output, hidden, up, down, biases, weights of the chosen, chosen, …)"""
    hidden, up, down = (call.tensor(place) for place in range(1, 4))
    chosen = next((t for t in call.tensors if t.element.dtype in ("int32", "int64") and len(t.dims) == 2), None)
    if chosen is None:
        raise UnknownWork(f"{call.op}: which experts were chosen was not recorded")
    return _experts(hidden, up, down, chosen)


def _without_weights(call: Arguments, around: Around) -> Work:
    """(hidden, logits of the gate, …), the weights being behind the layer: told where the model is described."""
    model = around.model
    if model is None:
        raise UnknownWork(f"{call.op}: the experts' weights are not among its arguments")
    if len(model.experts) != 1:
        raise UnknownWork(f"{call.op}: which of the described model's {len(model.experts)} kinds of experts it is")
    (group,) = model.experts
    hidden, logits = call.tensor(0, axes=2), call.tensor(1, axes=2)
    if logits.dims[1] not in (1, group.experts) or group.bytes is None:
        raise UnknownWork(f"{call.op}: its gate of {logits.dims[1]} does not fit {group.experts} described experts")
    tokens = hidden.dims[0]
    least, most = met_on_rank(group, tokens)
    return Work(
        flops=2 * tokens * group.top_k * group.weights * group.local_experts // group.experts,
        bytes=2 * hidden.bytes + round(least * group.bytes),
        dtype=_multiplied(around.kernel) or model.product_dtype or str(model.quantization),
        is_matrix=True,
        most_bytes=2 * hidden.bytes + round(most * group.bytes),
    )


def _multiplied(kernel: str) -> str | None:
    """Return what a kernel says that it multiplies in, the wider of two types; None where it does not."""
    found = {dtype for dtype, name in _IN_NAMES.items() if re.search(name, kernel)}
    return next((dtype for dtype in ("fp8", "fp4") if dtype in found), None)


RULES: Rules = {
    **rules(
        _fused,
        "vllm::inplace_fused_experts",
        "vllm::outplace_fused_experts",
        "sglang::inplace_fused_experts",
        "sglang::outplace_fused_experts",
        "sgl_kernel::fused_experts_cpu",
        "aiter::fused_moe_",
        "vllm::rocm_aiter_fused_moe",
    ),
    **rules(_fused_into, "_C::cpu_fused_moe"),
    **rules(_without_weights, "vllm::moe_forward", "vllm::moe_forward_shared"),
}
