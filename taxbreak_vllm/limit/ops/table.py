"""All rules by op, and the one way to ask them.

In: a call and what stands around it. Out: its `Work`, or in one line why that cannot be told. Ops that Inductor
generated have no name of their own: their arguments are their inputs and outputs, each once.
"""

import re
from dataclasses import replace

from taxbreak_vllm.limit.ops import attention, conv, copies, elementwise, gemm, moe, norm, reduction
from taxbreak_vllm.limit.ops.arguments import Arguments, Around, Rule, Rules, UnknownWork, moved
from taxbreak_vllm.model.limit import Work
from taxbreak_vllm.trace.calls import Call

RULES: Rules = {
    **elementwise.RULES,
    **reduction.RULES,
    **copies.RULES,
    **norm.RULES,
    **moe.RULES,
    **conv.RULES,
    **attention.RULES,
    **gemm.RULES,
}
_GENERATED = re.compile(r"triton_(poi|red|per)_|(graph_\d+_)?cpp_fused_")
_TOO_MUCH = 2**62  # no call's work, and the sums of all are to fit 64 bits
_REDUCED = re.compile(r"winograd|fft", re.IGNORECASE)
_TF32 = re.compile(r"tf32|s1688|xf32", re.IGNORECASE)


def _generated(call: Arguments, _: Around) -> Work:
    tensors = call.tensors
    if not tensors:
        raise UnknownWork(f"{call.op}: no tensor was recorded")
    return moved(sum(tensor.bytes for tensor in tensors), tensors[-1].element)


GENERATED = Rule(_generated)


def rule_of(op: str) -> Rule | None:
    """Return the rule of an op; None where there is none."""
    return RULES.get(op) or (GENERATED if _GENERATED.match(op) else None)


def _strange(call: Call) -> str:
    return f"{call.op}: its arguments are not those that its rule knows"


def work_of(call: Call, around: Around = Around()) -> Work | str:  # noqa: B008 - frozen, and the same for all
    """Return the work of a call, or why it cannot be told.

    Single precision is that of the matrix engine ("tf32") where the kernel's name says so, and never by the dtype.
    """
    rule = rule_of(call.op)
    if rule is None:
        return f"no rule for {call.op}"
    try:
        work = rule.work(Arguments(call), around)
    except UnknownWork as reason:
        return str(reason)
    except (LookupError, ValueError, ZeroDivisionError):
        return _strange(call)
    if min(work.flops, work.bytes) < 0 or max(work.flops, work.bytes, work.most_bytes or 0) >= _TOO_MUCH:
        return _strange(call)
    if not work.is_matrix:
        return work
    is_tf32 = work.dtype == "fp32" and _TF32.search(around.kernel) is not None
    is_reduced = "conv" in call.op and _REDUCED.search(around.kernel) is not None
    return replace(work, dtype="tf32" if is_tf32 else work.dtype, is_reduced=is_reduced)
