"""Reductions, softmax, scans, sorts and pooling: the input read once, and what comes of it written once.

Sums and norms leave little beside their input, so their output is not counted.
"""

from math import prod

from taxbreak_vllm.limit.ops.arguments import Arguments, Around, Rules, UnknownWork, moved, rules
from taxbreak_vllm.model.limit import Work

_REDUCTIONS = """
all amax amin aminmax any argmax argmin count_nonzero linalg_vector_norm logsumexp max mean min nansum nonzero norm prod
std std_mean sum unique2 unique_consecutive var var_mean _unique2
"""


def _reduced(call: Arguments, _: Around) -> Work:
    """(input, …); `max` and `min` of two tensors are element by element."""
    a, b = call.tensor(0), call.optional(1)
    if b is not None and call.op in ("aten::max", "aten::min"):
        return moved(a.bytes + b.bytes + max(a.numel, b.numel) * a.element.size, a.element)
    return moved(a.bytes, a.element)


def _kept(call: Arguments, _: Around) -> Work:
    """(input, …): as much written as read."""
    a = call.tensor(0)
    return moved(a.bytes + a.numel * a.element.size, a.element)


def _sorted(call: Arguments, _: Around) -> Work:
    """(input, …): values and their places written."""
    a = call.tensor(0)
    return moved(a.bytes + a.numel * (a.element.size + 8), a.element)


def _topk(call: Arguments, _: Around) -> Work:
    """(input, k, dim, …): k values of each row and their places written."""
    a = call.tensor(0)
    if not a.dims:
        raise UnknownWork(f"{call.op}: its input has no axis")
    axis = call.integer(2)
    rows = a.numel // max(1, a.dims[axis if -len(a.dims) <= axis < len(a.dims) else -1])
    return moved(a.bytes + rows * call.integer(1) * (a.element.size + 8), a.element)


def _softmax_backward(call: Arguments, _: Around) -> Work:
    """(grad, output, …): both read, one written."""
    grad, output = call.tensor(0), call.tensor(1)
    return moved(grad.bytes + output.bytes + grad.numel * grad.element.size, grad.element)


def _loss(call: Arguments, _: Around) -> Work:
    """(scores, target, …): one score a target."""
    scores, target = call.tensor(0), call.tensor(1)
    return moved(target.bytes + target.numel * scores.element.size, scores.element)


def _loss_backward(call: Arguments, _: Around) -> Work:
    """(grad, scores, target, …): as much written as there are scores."""
    scores, target = call.tensor(1), call.tensor(2)
    return moved(target.bytes + scores.numel * scores.element.size, scores.element)


def _pooled(call: Arguments, _: Around) -> Work:
    """(input, window, stride, padding, …): an output a window; none is counted where these were not recorded."""
    a = call.tensor(0)
    try:
        window, stride, padding = call.ints(1), call.ints(2), call.ints(3)
    except UnknownWork:
        return moved(a.bytes, a.element)
    axes = len(window)
    sizes = [
        (size + 2 * padding[k % len(padding)] - window[k]) // stride[k % len(stride)] + 1
        for k, size in enumerate(a.dims[-axes:])
    ]
    count = prod(a.dims[:-axes]) * prod(sizes)
    return moved(a.bytes + count * (a.element.size + (8 if "indices" in call.op else 0)), a.element)


def _pooled_to(call: Arguments, _: Around) -> Work:
    """(input, sizes of the output)"""
    a = call.tensor(0)
    sizes = call.ints(1)
    return moved(a.bytes + prod(a.dims[: -len(sizes)]) * prod(sizes) * a.element.size, a.element)


def _pooled_backward(call: Arguments, _: Around) -> Work:
    """(grad, input, …): the gradient read, as much written as there is input."""
    grad, a = call.tensor(0), call.tensor(1)
    return moved(grad.bytes + a.numel * a.element.size, a.element)


def _scalar_read(call: Arguments, _: Around) -> Work:
    a = call.tensor(0)
    return moved(a.element.size, a.element)


RULES: Rules = {
    **rules(_reduced, *(f"aten::{name}" for name in _REDUCTIONS.split())),
    **rules(
        _kept,
        "aten::_softmax",
        "aten::_log_softmax",
        "aten::_safe_softmax",
        "aten::cumsum",
        "aten::cumsum_",
        "aten::cumprod",
        "aten::flip",
        "aten::roll",
    ),
    **rules(_sorted, "aten::sort", "aten::argsort", "aten::msort"),
    **rules(_topk, "aten::topk"),
    **rules(_softmax_backward, "aten::_softmax_backward_data", "aten::_log_softmax_backward_data"),
    **rules(_loss, "aten::nll_loss_forward", "aten::nll_loss2d_forward"),
    **rules(_loss_backward, "aten::nll_loss_backward", "aten::nll_loss2d_backward"),
    **rules(_pooled, "aten::max_pool2d_with_indices", "aten::avg_pool2d", "aten::max_pool3d_with_indices"),
    **rules(_pooled_to, "aten::_adaptive_avg_pool2d", "aten::_adaptive_avg_pool3d"),
    **rules(
        _pooled_backward,
        "aten::max_pool2d_with_indices_backward",
        "aten::avg_pool2d_backward",
        "aten::_adaptive_avg_pool2d_backward",
    ),
    **rules(_scalar_read, "aten::_local_scalar_dense", "aten::item"),
}
