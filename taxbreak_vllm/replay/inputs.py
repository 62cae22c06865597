"""From a recorded `Call` to arguments that torch takes: the right dtypes, shapes and strides, with values made up.

In: a Call. Out: the overload of its op and its arguments, at full size, with no element, or of unit size. Values are
random where they are data and valid where they index something. What the trace does not hold, and what no made-up value
can stand for, is refused with a reason: values never matter, or the op is not replayed.
"""

# ruff: noqa: ANN401 - schemas and ops of torch have no types

import importlib
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import torch

from taxbreak_vllm.model.errors import ReplayError
from taxbreak_vllm.trace.calls import Call, Input

DTYPES = {
    "float": torch.float32,
    "double": torch.float64,
    "c10::Half": torch.float16,
    "c10::BFloat16": torch.bfloat16,
    "c10::Float8_e4m3fn": torch.float8_e4m3fn,
    "c10::Float8_e5m2": torch.float8_e5m2,
    "c10::Float8_e4m3fnuz": torch.float8_e4m3fnuz,
    "c10::Float8_e5m2fnuz": torch.float8_e5m2fnuz,
    "c10::complex<float>": torch.complex64,
    "c10::complex<double>": torch.complex128,
    "c10::complex<c10::Half>": torch.complex32,
    "bool": torch.bool,
    "unsigned char": torch.uint8,
    "signed char": torch.int8,
    "short": torch.int16,
    "short int": torch.int16,
    "int": torch.int32,
    "long int": torch.int64,
    "long long": torch.int64,
    "short unsigned int": torch.uint16,
    "unsigned int": torch.uint32,
    "long unsigned int": torch.uint64,
} | {
    f"c10::{name}": getattr(torch, dtype)
    for name, dtype in (("Float8_e8m0fnu", "float8_e8m0fnu"), ("Float4_e2m1fn_x2", "float4_e2m1fn_x2"))
    if hasattr(torch, dtype)  # torch 2.7 and 2.8 on
}  # fmt: skip
# A double or long without axes is nearly always a Python number, which weighs less in type promotion than a tensor.
_NUMBERS = {"double": 1.0, "long int": 1}
# A trace holds no text. These are what vLLM passes where the argument has no default, by op and argument.
_TEXTS = {
    ("_C::cpu_fused_moe", "act"): "silu",
    ("_C::cpu_fused_moe", "isa"): "vec",
    ("_C::cpu_attn_reshape_and_cache", "isa"): "vec",
    ("_C_cache_ops::reshape_and_cache", "kv_cache_dtype"): "auto",
    ("_C_cache_ops::reshape_and_cache_flash", "kv_cache_dtype"): "auto",
    ("_C_cache_ops::concat_and_cache_mla", "kv_cache_dtype"): "auto",
}
# Integer tensors whose values address rows of another tensor: (op, argument) -> (argument addressed, its axis).
_INDEXES = {
    ("aten::embedding", "indices"): ("weight", 0),
    ("aten::index_select", "index"): ("self", None),
    ("aten::gather", "index"): ("self", None),
    ("aten::take_along_dim", "indices"): ("self", None),
    ("aten::scatter_", "index"): ("self", None),
    ("aten::scatter", "index"): ("self", None),
    ("aten::index_add_", "index"): ("self", None),
    ("aten::index_copy_", "index"): ("self", None),
    ("_C::rotary_embedding", "positions"): ("cos_sin_cache", 0),
    ("_C::cpu_fused_moe", "topk_id"): ("w13", 0),
}
# Integers that something is divided by must not be 0.
_DIVIDES = re.compile(
    r"::(div|floor_div|floor_divide|true_divide|remainder|fmod|__i?(floor|true)?div__|_foreach_div)_?$"
)
_VLLM_NAMESPACES = ("_C", "_C_cache_ops", "_C_cpu_ops", "_moe_C", "_vllm_fa2_C", "_vllm_fa3_C", "vllm")


class Size(StrEnum):
    """Which inputs: as recorded; with no element, so that only dispatch remains; or the least a library works on."""

    FULL = "full"
    ZERO = "zero"
    UNIT = "unit"


class RefusedError(ReplayError):
    """This call cannot be replayed; the message says why."""


class TooLargeError(ReplayError):
    """The inputs alone exceed the memory cap."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """An overload with its arguments, ready to be called again and again."""

    overload: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def __call__(self) -> object:
        return self.overload(*self.args, **self.kwargs)


def load_namespace(namespace: str, modules: Sequence[str] = ()) -> None:
    """Import what registers the ops of a namespace: vLLM's kernels for its own, and the modules a user named."""
    for module in modules:
        importlib.import_module(module)
    if namespace in _VLLM_NAMESPACES:
        try:
            importlib.import_module("vllm.platforms").current_platform.import_kernels()
        except ImportError as error:
            raise RefusedError(f"vLLM is not importable here: {error}") from None


def resized(call: Call, size: Size) -> Iterator[Call]:
    """Yield the call at this size, the likeliest form first: which of them an op takes, only trying tells.

    Without elements: the batch, the length most tensors share on their first axis, becomes 0; else that of the first
    tensor alone; else every axis. Of unit size: every axis becomes 1.
    """
    if size is Size.FULL or call.inputs is None:
        yield call
        return
    if size is Size.UNIT:
        yield _with_dims(call, lambda _, dims: (1,) * len(dims))
        return
    firsts = [i.dims[0] for i in call.inputs if _is_tensor(i) and i.dims]
    if firsts:
        counts = Counter(firsts)
        batch = min(counts, key=lambda length: (-counts[length], length))
        yield _with_dims(call, lambda _, dims: (0, *dims[1:]) if dims and dims[0] == batch else dims)
        first = next(n for n, i in enumerate(call.inputs) if _is_tensor(i) and i.dims)
        yield _with_dims(call, lambda n, dims: (0, *dims[1:]) if n == first else dims)
    yield _with_dims(call, lambda _, dims: (0,) * len(dims))


def prepare(call: Call, *, device: str, max_bytes: int, dtype: str = "") -> Prepared:
    """Build the arguments of a call; `dtype` is that of the model, for lists of tensors, whose own is not recorded.

    Raises RefusedError where the trace does not hold an argument or no overload takes what it holds, TooLargeError
    where the inputs need more than `max_bytes`.
    """
    if call.inputs is None:
        raise RefusedError("recorded without shapes")
    wanted = sum(_bytes(part) for i in call.inputs for part in _tensors(i, dtype))
    if wanted > max_bytes:
        raise TooLargeError(f"its inputs take {wanted / 2**30:.1f} GiB")
    reasons = []
    for overload in _overloads(call.op):
        arguments = overload._schema.arguments
        if len(arguments) != len(call.inputs):
            continue
        try:
            return _bind(call, overload, device=device, dtype=dtype)
        except RefusedError as error:
            reasons.append(str(error))
    raise RefusedError(reasons[0] if reasons else "no overload takes as many arguments")


def _overloads(op: str) -> list[Any]:
    namespace, _, name = op.partition("::")
    try:
        packet = getattr(getattr(torch.ops, namespace), name)
    except (AttributeError, RuntimeError):
        raise RefusedError("no such op is registered here") from None
    return [getattr(packet, overload) for overload in packet.overloads()]


def _bind(call: Call, overload: Any, *, device: str, dtype: str) -> Prepared:
    assert call.inputs is not None
    arguments = overload._schema.arguments
    made: dict[str, Any] = {}
    by_name = dict(zip((argument.name for argument in arguments), call.inputs, strict=True))
    for argument in arguments:
        made[argument.name] = _make(call.op, argument, by_name, device=device, dtype=dtype)
    if "handler_tensor" in made:
        made["handler_tensor"] = _onednn_handler(call.op, by_name)
    args = tuple(made[argument.name] for argument in arguments if not argument.kwarg_only)
    kwargs = {argument.name: made[argument.name] for argument in arguments if argument.kwarg_only}
    return Prepared(overload, args, kwargs)


def _make(op: str, argument: Any, by_name: dict[str, Input], *, device: str, dtype: str) -> Any:
    """Make one argument after its schema's type."""
    recorded = by_name[argument.name]
    kind = str(argument.type)
    is_optional = kind.startswith("Optional[")
    kind = kind.removeprefix("Optional[").removesuffix("]") if is_optional else kind
    if kind == "Generator":
        raise RefusedError("draws random numbers, whose generator is state that others share")
    if kind == "Tensor":
        if not _is_tensor(recorded):
            return _missing(op, argument, recorded, is_optional)
        if not recorded.dims and recorded.type in _NUMBERS and argument.alias_info is None:
            return _NUMBERS[recorded.type]
        fill = 1 if _DIVIDES.search(op) else 0
        return _tensor(recorded, _limit(op, argument.name, by_name), device, fill)
    if kind.startswith("List["):
        return _make_list(op, argument, recorded, kind[5:].removesuffix("]"), device, dtype, is_optional)
    if kind == "Device":
        return torch.device(device)  # not recorded; what launched something was on the device
    if recorded.value:
        return _scalar(kind, recorded.value)
    return _missing(op, argument, recorded, is_optional)


def _make_list(
    op: str,
    argument: Any,
    recorded: Input,
    kind: str,
    device: str,
    dtype: str,
    is_optional: bool,
) -> Any:
    if "Tensor" in kind:
        if recorded.type != "TensorList" or not all(map(_is_shape, recorded.dims)):
            raise RefusedError(f"the tensors of {argument.name} are not recorded")
        return [_tensor(part, None, device) for part in _tensors(recorded, dtype)]
    if recorded.value.startswith("["):
        parts = [part.strip() for part in recorded.value.strip("[]").split(",") if part.strip()]
        return [_scalar(kind, part) for part in parts]
    if recorded.value and recorded.type == "Scalar":  # int[1] takes a bare int
        return [_scalar(kind, recorded.value)]
    return _missing(op, argument, recorded, is_optional)


def _missing(op: str, argument: Any, recorded: Input, is_optional: bool) -> Any:
    """Stand in for what the trace does not hold: None, the default, or a text that vLLM is known to pass."""
    if recorded.type:
        raise RefusedError(f"{argument.name} is recorded as {recorded.type}, not {argument.type}")
    if (op, argument.name) in _TEXTS:
        return _TEXTS[op, argument.name]
    if argument.has_default_value():
        return argument.default_value
    if is_optional:
        return None
    raise RefusedError(f"its argument {argument.name} ({argument.type}) is not recorded")


def _scalar(kind: str, value: str) -> Any:
    """Read a scalar of a schema's type from its text; dtypes, layouts and memory formats are integers there."""
    try:
        if kind in ("int", "SymInt"):
            return {"True": 1, "False": 0}.get(value) if value in ("True", "False") else int(value)
        if kind == "bool":
            return value in ("True", "1")
        if kind in ("float", "SymFloat"):
            return float(value)
        if kind in ("number", "Scalar"):
            if value in ("True", "False"):
                return value == "True"
            if value.lstrip("-").isdigit():
                return int(value)
            return complex(value) if value.endswith("j") else float(value)
    except ValueError:
        raise RefusedError(f"{value!r} is no {kind}") from None
    raise RefusedError(f"an argument of type {kind} cannot be made")


def _tensor(recorded: Input, limit: int | None, device: str, fill: int = 0) -> torch.Tensor:
    """Make a tensor of the recorded strides, its storage just large enough; integers that index nothing are `fill`."""
    dtype = DTYPES[recorded.type]
    dims = recorded.dims
    strides = recorded.strides if recorded.strides is not None and len(recorded.strides) == len(dims) else None
    if strides is None:
        return _values(math.prod(dims), dtype, limit, device, fill).view(dims)
    return torch.as_strided(_values(_storage(dims, strides), dtype, limit, device, fill), dims, strides)


def _values(count: int, dtype: torch.dtype, limit: int | None, device: str, fill: int) -> torch.Tensor:
    if dtype is torch.bool:
        return torch.arange(count, device=device) % 2 == 0
    if dtype.is_complex or (dtype.is_floating_point and dtype.itemsize >= 2):
        # near 1, away from what makes arithmetic slow (denormals) or endless (infinities)
        wide = torch.complex64 if dtype.is_complex else torch.float32
        return (torch.rand(count, device=device, dtype=wide) * 0.5 + 0.5).to(dtype)
    if dtype.is_floating_point:
        # 1.0 or near in every 8-bit format
        return torch.full((count,), 0x38, dtype=torch.uint8, device=device).view(dtype)
    if limit:
        return (torch.arange(count, device=device) % limit).to(dtype)
    return torch.full((count,), fill, dtype=dtype, device=device)  # 0 is a valid index of anything


def _limit(op: str, name: str, by_name: dict[str, Input]) -> int | None:
    """Below what an integer tensor's values must stay; None where they need not be spread."""
    if (op, name) not in _INDEXES:
        return None
    other, axis = _INDEXES[op, name]
    dims = by_name[other].dims if other in by_name else ()
    if axis is None:
        value = by_name["dim"].value if "dim" in by_name else ""
        axis = int(value) if value.lstrip("-").isdigit() else 0
    return max(1, int(dims[axis])) if -len(dims) <= axis < len(dims) else None


def _onednn_handler(op: str, by_name: dict[str, Input]) -> torch.Tensor:
    """Prepare weights for vLLM's oneDNN GEMM: the argument holds the address of what it prepared at load time."""
    if op != "_C::onednn_mm" or by_name["a"].type not in DTYPES:
        raise RefusedError("it takes the address of weights prepared at load time")
    depth, width = by_name["a"].dims[-1], by_name["c"].dims[-1]
    weight = torch.rand(width, depth).to(DTYPES[by_name["a"].type]).t()
    return torch.tensor(torch.ops._C.create_onednn_mm_handler(weight, 128), dtype=torch.int64)


def _is_tensor(recorded: Input) -> bool:
    return recorded.type in DTYPES


def _tensors(recorded: Input, dtype: str) -> list[Input]:
    """The tensors in an argument, those of a list in `dtype`, else float."""
    if _is_tensor(recorded):
        return [recorded]
    if recorded.type != "TensorList":
        return []
    word = dtype if dtype in DTYPES else "float"
    strides = recorded.strides or (None,) * len(recorded.dims)
    return [Input(word, d, s) for d, s in zip(recorded.dims, strides, strict=True) if _is_shape(d)]


def _is_shape(dims: object) -> bool:
    return isinstance(dims, tuple | list)  # in a list of tensors JSON makes lists of the tuples, on the way to a child


def _bytes(recorded: Input) -> int:
    strides = recorded.strides if recorded.strides is not None and len(recorded.strides) == len(recorded.dims) else None
    count = math.prod(recorded.dims) if strides is None else _storage(recorded.dims, strides)
    return int(count * DTYPES[recorded.type].itemsize)


def _storage(dims: Sequence[int], strides: Sequence[int]) -> int:
    """Elements that a tensor of these strides spans."""
    return 0 if 0 in dims else 1 + sum((d - 1) * s for d, s in zip(dims, strides, strict=True))


def _with_dims(call: Call, change: Callable[[int, tuple[int, ...]], tuple[int, ...]]) -> Call:
    """Change the shapes of all tensors; strides keep their order and broadcast axes stay such."""
    assert call.inputs is not None
    inputs = []
    for number, recorded in enumerate(call.inputs):
        if _is_tensor(recorded) and recorded.dims:
            dims = change(number, recorded.dims)
            inputs.append(replace(recorded, dims=dims, strides=_restride(recorded, dims)))
        else:
            inputs.append(recorded)
    return replace(call, inputs=tuple(inputs))


def _restride(recorded: Input, dims: tuple[int, ...]) -> tuple[int, ...] | None:
    if recorded.strides is None or len(recorded.strides) != len(dims) or dims == recorded.dims:
        return recorded.strides
    strides = [0] * len(dims)
    step = 1
    for axis in sorted(range(len(dims)), key=lambda axis: (recorded.strides[axis], -axis)):  # type: ignore[index]
        if recorded.strides[axis] != 0:
            strides[axis] = step
            step *= max(1, dims[axis])
    return tuple(strides)
