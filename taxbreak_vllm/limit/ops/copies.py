"""What only moves: copies, fills, concatenations, gathers and scatters. Of a table only the rows that are asked for."""

import re
from math import prod

from taxbreak_vllm.limit.ops.arguments import (
    ELEMENTS,
    Arguments,
    Around,
    Element,
    Rules,
    Shape,
    UnknownWork,
    broadcast,
    moved,
    rules,
)
from taxbreak_vllm.model.limit import Work

# How a kernel's template names an element type, where the list of tensors it works on does not.
_SIZE_IN_KERNEL = re.compile(r"OpaqueType<(\d+)")
_TYPE_IN_KERNEL = re.compile(r"(?:CatArray\w*|Functor\w*|vectorized_\w+)<([\w:]+)[,>]")
_KERNEL_TYPES = {"__half": "c10::Half", "__nv_bfloat16": "c10::BFloat16", "long": "long int"}


def _copied(call: Arguments, _: Around) -> Work:
    """(to, from, …)"""
    to, source = call.tensor(0), call.tensor(1)
    return moved(to.bytes + min(source.bytes, to.numel * source.element.size), source.element)


def _filled(call: Arguments, _: Around) -> Work:
    to = call.tensor(0)
    return moved(to.bytes, to.element)


def _counted_up(call: Arguments, _: Around) -> Work:
    """(…, out): a range of numbers."""
    if not call.tensors:
        raise UnknownWork(f"{call.op}: its length was not recorded")
    return moved(call.tensors[-1].bytes, call.tensors[-1].element)


def _joined(call: Arguments, around: Around) -> Work:
    """(tensors, dim): each read and written; their type is in the name of the kernel alone."""
    element = _element_of(around.kernel)
    return moved(2 * element.size * sum(map(prod, call.shapes(0))), element)


def _each(passes: int) -> Rules:
    """Of a list of tensors, so many passes over each."""

    def work(call: Arguments, around: Around) -> Work:
        element = _element_of(around.kernel)
        return moved(passes * element.size * sum(map(prod, call.shapes(0))), element)

    names = {1: ("zero_",), 2: ("copy_", "add_", "mul_", "div_", "sqrt", "sqrt_", "neg", "abs")}[passes]
    return rules(work, *(f"aten::_foreach_{name}" for name in names))


def _element_of(kernel: str) -> Element:
    if size := _SIZE_IN_KERNEL.search(kernel):
        return Element(f"{size[1]} bytes", int(size[1]))
    for name in _TYPE_IN_KERNEL.findall(kernel):
        if element := ELEMENTS.get(_KERNEL_TYPES.get(name, name)):
            return element
    raise UnknownWork("the element type of its list of tensors is in no recorded name")


def _padded(call: Arguments, _: Around) -> Work:
    """(input, padding by axis from the last, …)"""
    a, padding = call.tensor(0), call.ints(1)
    if len(padding) % 2 or len(padding) > 2 * len(a.dims):
        raise UnknownWork(f"{call.op}: its padding {padding} does not fit")
    dims = list(a.dims)
    for k in range(len(padding) // 2):
        dims[-1 - k] += padding[2 * k] + padding[2 * k + 1]
    return moved(a.bytes + prod(dims) * a.element.size, a.element)


def _rows(call: Arguments, _: Around) -> Work:
    """(table, dim, index, …): the rows of the index."""
    table, index = call.tensor(0), call.tensor(2)
    axis = call.integer(1)
    if not -len(table.dims) <= axis < len(table.dims):
        raise UnknownWork(f"{call.op}: its table {table.dims} has no axis {axis}")
    row = table.numel // max(1, table.dims[axis])
    return _gathered(index.numel * row, index.bytes, table.element)


def _embedded(call: Arguments, _: Around) -> Work:
    """(table, index, …)"""
    table, index = call.tensor(0, axes=2), call.tensor(1)
    return _gathered(index.numel * table.dims[1], index.bytes, table.element)


def _picked(call: Arguments, _: Around) -> Work:
    """(table, dim, index, …): an element for each index."""
    table, index = call.tensor(0), call.tensor(2)
    return _gathered(index.numel, index.bytes, table.element)


def _indexed(call: Arguments, _: Around) -> Work:
    """(table, indices): the shapes of the indices broadcast, the table's other axes beside them."""
    table, shapes = call.tensor(0), call.shapes(1)
    if not shapes or len(shapes) > len(table.dims):
        raise UnknownWork(f"{call.op}: its indices were not recorded")
    count = prod(broadcast(*shapes)) * prod(table.dims[len(shapes) :])
    return _gathered(count, 8 * sum(map(prod, shapes)), table.element)


def _gathered(count: int, index_bytes: int, element: Element) -> Work:
    return moved(2 * count * element.size + index_bytes, element)


def _put(call: Arguments, _: Around) -> Work:
    """(into, indices, values, …): the values read and written."""
    into, values = call.tensor(0), call.tensor(2)
    return moved(values.bytes + values.numel * into.element.size, into.element)


def _scattered(call: Arguments, _: Around) -> Work:
    """(into, dim, index, values, …)"""
    into, index, values = call.tensor(0), call.tensor(2), call.optional(3)
    read = index.numel * values.element.size if values is not None and values.dims else 0
    return moved(index.bytes + read + index.numel * into.element.size, into.element)


def _resized(call: Arguments, _: Around) -> Work:
    """(input, sizes of the output, …)"""
    a, sizes = call.tensor(0), call.ints(1)
    kept: Shape = a.dims[: len(a.dims) - len(sizes)]
    return moved(a.bytes + prod(kept) * prod(sizes) * a.element.size, a.element)


def _embedded_backward(call: Arguments, _: Around) -> Work:
    """(grad, index, rows, …): the gradient read, a whole table written."""
    grad, index = call.tensor(0), call.tensor(1)
    table = call.integer(2) * grad.dims[-1]
    return moved(grad.bytes + index.bytes + table * grad.element.size, grad.element)


RULES: Rules = {
    **rules(_copied, "aten::copy_", "aten::_copy_from", "aten::_copy_from_and_resize"),
    **rules(
        _filled,
        "aten::fill_",
        "aten::zero_",
        "aten::random_",
        "aten::uniform_",
        "aten::normal_",
        "aten::exponential_",
        "aten::bernoulli_",
    ),
    **rules(_counted_up, "aten::arange", "aten::range", "aten::linspace"),
    **rules(_joined, "aten::cat", "aten::_cat", "aten::stack"),
    **_each(1),
    **_each(2),
    **rules(_padded, "aten::constant_pad_nd"),
    **rules(_rows, "aten::index_select"),
    **rules(_embedded, "aten::embedding"),
    **rules(_picked, "aten::gather", "aten::take_along_dim"),
    **rules(_indexed, "aten::index"),
    **rules(_put, "aten::_index_put_impl_", "aten::index_put_"),
    **rules(_scattered, "aten::scatter", "aten::scatter_", "aten::scatter_add_", "aten::scatter_add"),
    **rules(_resized, "aten::upsample_nearest1d", "aten::upsample_nearest2d", "aten::upsample_bilinear2d"),
    **rules(_embedded_backward, "aten::embedding_dense_backward"),
}
