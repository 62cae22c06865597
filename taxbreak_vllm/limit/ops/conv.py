"""Convolutions, forwards and backwards: two FLOPs an output, an input channel of its group and a weight.

Where the trace lacks strides and padding (before torch 2.1), the output's shape is that of the one backward call with
the same input and weights, if there is one.
"""

from math import prod

from taxbreak_vllm.limit.ops.arguments import (
    Arguments,
    Around,
    Convolution,
    Rule,
    Rules,
    Shape,
    Tensor,
    UnknownWork,
    rules,
)
from taxbreak_vllm.model.limit import Work
from taxbreak_vllm.trace.calls import Call

# Where stride, padding, dilation and whether it is transposed stand among the arguments; None: there is none.
_ATEN = (3, 4, 5, 6)
_CUDNN = (3, 2, 4, None)
_MKLDNN = (4, 3, 5, None)
_SLOW = (4, 5, None, None)
_DEPTHWISE = (4, 5, 6, None)
_RELU = (3, 4, 5, None)
Places = tuple[int, int, int | None, int | None]


def _forward(places: Places) -> Rule:
    def work(call: Arguments, around: Around) -> Work:
        image, weight = call.tensor(0), call.tensor(1)
        _check(image.dims, weight.dims)
        *_, transposed = places
        if transposed is not None and call.flag(transposed):
            return _transposed(call, image, weight)
        output = _output(call, image.dims, weight.dims, places, around)
        return _work(image, weight, prod(output))

    return Rule(work)


def _work(image: Tensor, weight: Tensor, num_outputs: int) -> Work:
    num_bytes = image.bytes + weight.bytes + num_outputs * image.element.size
    return Work(2 * num_outputs * prod(weight.dims[1:]), num_bytes, image.element.dtype, is_matrix=True)


def _transposed(call: Arguments, image: Tensor, weight: Tensor) -> Work:
    """Each input meets the weights of its channel; weights are (in, out / groups, …)."""
    stride, padding, dilation, more, groups = (call.ints(place) for place in (3, 4, 5, 7, 8))
    axes = range(len(weight.dims) - 2)
    sizes = [
        (image.dims[2 + a] - 1) * _at(stride, a)
        - 2 * _at(padding, a)
        + _at(dilation, a) * (weight.dims[2 + a] - 1)
        + _at(more, a)
        + 1
        for a in axes
    ]
    num_outputs = image.dims[0] * weight.dims[1] * groups[0] * prod(sizes)
    num_bytes = image.bytes + weight.bytes + num_outputs * image.element.size
    return Work(2 * image.numel * prod(weight.dims[1:]), num_bytes, image.element.dtype, is_matrix=True)


def _output(call: Arguments, image: Shape, weight: Shape, places: Places, around: Around) -> Shape:
    try:
        stride, padding = call.ints(places[0]), call.ints(places[1])
        dilation = (1,) if places[2] is None else call.ints(places[2])
    except UnknownWork:
        fitting = {c.output for c in around.convolutions if c.input == image and c.weight == weight}
        if len(fitting) == 1:
            return fitting.pop()
        raise
    sizes = [
        (image[2 + a] + 2 * _at(padding, a) - _at(dilation, a) * (weight[2 + a] - 1) - 1) // _at(stride, a) + 1
        for a in range(len(weight) - 2)
    ]
    if min(sizes) <= 0:
        raise UnknownWork(f"{call.op}: its shapes leave no output")
    return (image[0], weight[0], *sizes)


def _at(values: Shape, axis: int) -> int:
    return values[axis] if axis < len(values) else values[0]


def _check(image: Shape, weight: Shape) -> None:
    if len(image) < 3 or len(image) != len(weight):
        raise UnknownWork(f"its input {image} and weights {weight} do not fit")


def _backward(call: Arguments, _: Around) -> Work:
    """(grad, input, weight, …, mask): for input and weight one convolution each, as far as they are wanted."""
    grad, image, weight = (call.tensor(place) for place in range(3))
    wanted = (*call.flags(len(call) - 1), True, True)[:2] if call.flags(len(call) - 1) else (True, True)
    return _gradients(grad, image, weight, transposed=call.flag(7), of_input=wanted[0], of_weight=wanted[1])


def _gradients(
    grad: Tensor, image: Tensor, weight: Tensor, *, transposed: bool = False, of_input: bool, of_weight: bool
) -> Work:
    _check(image.dims, weight.dims)
    inner = image.numel if transposed else grad.numel
    each = 2 * inner * prod(weight.dims[1:])
    num_bytes = grad.bytes if of_input or of_weight else 0
    num_bytes += (weight.bytes + image.numel * image.element.size) if of_input else 0
    num_bytes += (image.bytes + weight.numel * weight.element.size) if of_weight else 0
    return Work(each * (of_input + of_weight), num_bytes, grad.element.dtype, is_matrix=True)


def _backward_part(*, of_input: bool) -> Rule:
    """The part of a backward call that older traces name; the shapes are those of the call around it."""

    def work(call: Arguments, around: Around) -> Work:
        if around.outer is None or around.outer.op not in _WHOLE_BACKWARD:
            raise UnknownWork(f"{call.op}: the backward call around it was not recorded")
        outer = Arguments(around.outer)
        image, grad, weight = (outer.tensor(place) for place in range(3))
        return _gradients(grad, image, weight, of_input=of_input, of_weight=not of_input)

    return Rule(work, of_outer=True)


_WHOLE_BACKWARD = ("aten::cudnn_convolution_backward", "aten::miopen_convolution_backward")


def convolution_of(call: Call) -> Convolution | None:
    """Return the shapes that a backward call tells of its convolution; None for any other call."""
    if call.op not in (*_WHOLE_BACKWARD, "aten::convolution_backward"):
        return None
    first = (1, 2, 0) if call.op == "aten::convolution_backward" else (0, 2, 1)
    try:
        arguments = Arguments(call)
        return Convolution(*(arguments.tensor(place).dims for place in first))
    except UnknownWork:
        return None


RULES: Rules = {
    **dict.fromkeys(("aten::convolution", "aten::_convolution"), _forward(_ATEN)),
    **dict.fromkeys(("aten::cudnn_convolution",), _forward(_CUDNN)),
    **dict.fromkeys(("aten::miopen_convolution", "aten::mkldnn_convolution"), _forward(_MKLDNN)),
    **dict.fromkeys(("aten::_slow_conv2d_forward", "aten::thnn_conv2d"), _forward(_SLOW)),
    **dict.fromkeys(("aten::_conv_depthwise2d", "aten::miopen_depthwise_convolution"), _forward(_DEPTHWISE)),
    **dict.fromkeys(("aten::cudnn_convolution_relu", "aten::miopen_convolution_relu"), _forward(_RELU)),
    **rules(_backward, "aten::convolution_backward"),
    "aten::cudnn_convolution_backward_input": _backward_part(of_input=True),
    "aten::cudnn_convolution_backward_weight": _backward_part(of_input=False),
    "aten::miopen_convolution_backward_input": _backward_part(of_input=True),
    "aten::miopen_convolution_backward_weight": _backward_part(of_input=False),
}
