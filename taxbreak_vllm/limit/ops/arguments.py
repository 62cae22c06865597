"""A recorded call as rules read it: tensors with their elements, numbers, and what stands around the call.

In: a `Call`. Out: `Arguments`; what a rule asks for and the trace does not hold raises `UnknownWork`, in one line.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod

from taxbreak_vllm.model.errors import TaxbreakError
from taxbreak_vllm.model.limit import StepTokens, Work
from taxbreak_vllm.model.shape import ModelShape
from taxbreak_vllm.trace.calls import Call, Input

Shape = tuple[int, ...]


class UnknownWork(TaxbreakError):
    """The work of a call cannot be told; the message says why."""


@dataclass(frozen=True, slots=True)
class Element:
    """An element type: its short name, its bytes, and how many values each element packs."""

    dtype: str
    size: int
    packed: int = 1


ELEMENTS: Mapping[str, Element] = {
    "double": Element("fp64", 8),
    "float": Element("fp32", 4),
    "c10::BFloat16": Element("bf16", 2),
    "c10::Half": Element("fp16", 2),
    "c10::Float8_e4m3fn": Element("fp8", 1),
    "c10::Float8_e4m3fnuz": Element("fp8", 1),
    "c10::Float8_e5m2": Element("fp8", 1),
    "c10::Float8_e5m2fnuz": Element("fp8", 1),
    "c10::Float8_e8m0fnu": Element("e8m0", 1),
    "c10::Float4_e2m1fn_x2": Element("fp4", 1, packed=2),
    "c10::complex<c10::Half>": Element("complex32", 4),
    "c10::complex<float>": Element("complex64", 8),
    "c10::complex<double>": Element("complex128", 16),
    "bool": Element("bool", 1),
    "unsigned char": Element("uint8", 1),
    "signed char": Element("int8", 1),
    "short": Element("int16", 2),
    "short int": Element("int16", 2),
    "short unsigned int": Element("uint16", 2),
    "unsigned short": Element("uint16", 2),
    "int": Element("int32", 4),
    "unsigned int": Element("uint32", 4),
    "long int": Element("int64", 8),
    "long long": Element("int64", 8),
    "long unsigned int": Element("uint64", 8),
    "unsigned long": Element("uint64", 8),
}
BOOL = ELEMENTS["bool"]
# What a result of two types is in, the wider one; numbers without axes do not widen.
_WIDTH = ("bool", "uint8", "int8", "int16", "int32", "int64", "fp8", "bf16", "fp16", "fp32", "fp64")
_NO_TENSOR = ("", "Scalar", "ScalarList", "TensorList", "GenericList", "Int", "Bool", "Double", "Device", "NoneType")


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor argument: its shape, its element type, and how many elements it has that are not one another."""

    dims: Shape
    element: Element
    distinct: int

    @property
    def bytes(self) -> int:
        return self.distinct * self.element.size

    @property
    def numel(self) -> int:
        return prod(self.dims)


@dataclass(frozen=True, slots=True)
class Convolution:
    """The three shapes of a convolution, as its backward call tells them together."""

    input: Shape
    weight: Shape
    output: Shape


@dataclass(frozen=True, slots=True)
class Around:
    """What stands around a call: the first kernel it launched, the op around it, its step's tokens, the shapes of all
    convolutions whose backward call is in the trace, and the model, where it is described.
    """

    kernel: str = ""
    outer: Call | None = None
    tokens: StepTokens | None = None
    convolutions: frozenset[Convolution] = field(default_factory=frozenset)
    model: ModelShape | None = None


class Arguments:
    """The arguments of a call; raises UnknownWork for whatever the trace does not hold."""

    def __init__(self, call: Call) -> None:
        if call.inputs is None:
            raise UnknownWork("recorded without shapes")
        self.op = call.op
        self._inputs = call.inputs

    def __len__(self) -> int:
        return len(self._inputs)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All tensors among the arguments, in their order; raises for one of an unknown element type."""
        return tuple(found for each in self._inputs if (found := _tensor(each, self.op)) is not None)

    def tensor(self, place: int, axes: int | None = None) -> Tensor:
        """Return the tensor at a place, which must have so many axes."""
        found = self.optional(place)
        if found is None:
            raise UnknownWork(f"{self.op}: argument {place} was not recorded as a tensor")
        if axes is not None and len(found.dims) != axes:
            raise UnknownWork(f"{self.op}: argument {place} has {len(found.dims)} axes, not {axes}")
        return found

    def optional(self, place: int) -> Tensor | None:
        """Return the tensor at a place; None where there is none."""
        return _tensor(self._inputs[place], self.op) if place < len(self._inputs) else None

    def shapes(self, place: int) -> tuple[Shape, ...]:
        """Return the shapes of a list of tensors."""
        found = self._inputs[place] if place < len(self._inputs) else Input("")
        if found.type != "TensorList" or not all(_is_shape(each) for each in found.dims):
            raise UnknownWork(f"{self.op}: the tensors of its list were not recorded")
        return found.dims

    def ints(self, place: int) -> Shape:
        """Return a list of integers."""
        numbers = re.findall(r"-?\d+", self._value(place))
        if not numbers:
            raise UnknownWork(f"{self.op}: the numbers of argument {place} were not recorded")
        return tuple(int(number) for number in numbers)

    def integer(self, place: int) -> int:
        """Return an integer."""
        return self.ints(place)[0]

    def flag(self, place: int) -> bool:
        """Return whether a truth value holds, or a kind other than 0; False where it was not recorded."""
        return self._value(place) not in ("", "False", "0")

    def flags(self, place: int) -> tuple[bool, ...]:
        """Return a list of truth values, empty where it was not recorded."""
        return tuple(word == "True" for word in re.findall(r"True|False", self._value(place)))

    def scalars(self) -> tuple[str, ...]:
        """Return the texts of all scalars, in their order."""
        return tuple(each.value for each in self._inputs if each.type == "Scalar")

    def _value(self, place: int) -> str:
        return self._inputs[place].value if place < len(self._inputs) else ""


RuleFunction = Callable[[Arguments, Around], Work]


@dataclass(frozen=True, slots=True)
class Rule:
    """How the work of an op is told; `of_step` and `of_outer`: by its step's tokens, by the op around it, too."""

    work: RuleFunction
    of_step: bool = False
    of_outer: bool = False


Rules = Mapping[str, Rule]


def rules(work: RuleFunction, *ops: str, of_step: bool = False, of_outer: bool = False) -> dict[str, Rule]:
    """Return one rule under the names of its ops."""
    return dict.fromkeys(ops, Rule(work, of_step=of_step, of_outer=of_outer))


def moved(num_bytes: int, element: Element) -> Work:
    """Return work that only moves bytes."""
    return Work(0, num_bytes, element.dtype)


def broadcast(*shapes: Shape) -> Shape:
    """Return the shape that tensors of these shapes make together."""
    axes = max((len(shape) for shape in shapes), default=0)
    padded = [(1,) * (axes - len(shape)) + shape for shape in shapes]
    result = tuple(0 if 0 in sizes else max(sizes) for sizes in zip(*padded, strict=True))
    if any(size not in (1, result[axis]) for shape in padded for axis, size in enumerate(shape)):
        raise UnknownWork("its shapes do not fit one another")
    return result


def promoted(tensors: tuple[Tensor, ...]) -> Element:
    """Return the element type of what these tensors make together."""
    shaped = [tensor for tensor in tensors if tensor.dims] or list(tensors)
    known = [tensor.element for tensor in shaped if tensor.element.dtype in _WIDTH]
    return max(known, key=lambda element: _WIDTH.index(element.dtype)) if known else shaped[0].element


def _tensor(recorded: Input, op: str) -> Tensor | None:
    element = ELEMENTS.get(recorded.type)
    if element is None:
        if recorded.type in _NO_TENSOR or not recorded.dims:
            return None
        raise UnknownWork(f"{op}: unknown element type {recorded.type!r}")
    if not _is_shape(recorded.dims):
        raise UnknownWork(f"{op}: {recorded.dims!r} is no shape")
    return Tensor(recorded.dims, element, _distinct(recorded.dims, recorded.strides))


def _distinct(dims: Shape, strides: Shape | None) -> int:
    """Count elements: those of an axis of stride 0 are one, and those of windows that overlap are no more than lie
    between first and last.
    """
    if strides is None or len(strides) != len(dims) or 0 in dims:
        return prod(dims)
    span = 1 + sum((size - 1) * stride for size, stride in zip(dims, strides, strict=True))
    return min(span, prod(size for size, stride in zip(dims, strides, strict=True) if stride))


def _is_shape(dims: object) -> bool:
    return isinstance(dims, tuple) and all(type(size) is int and size >= 0 for size in dims)
