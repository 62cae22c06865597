"""What each op was called with and how each kernel was configured, collected beside the events' times.

In: the events that a reader keeps, one after the other. Out: `Calls`. Arguments stay text until the end, when each
distinct one is decoded once.
"""

from collections import defaultdict
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from taxbreak_vllm.trace.calls import Call, Calls, Input, Kernel
from taxbreak_vllm.trace.read.event import Event, EventArgs

# Traces before torch 2.1 write "long" for what later ones call "long int".
_SAME_TYPE = {"long": "long int"}

T = TypeVar("T")


class CallArgs(
    EventArgs,
    gc=False,
    frozen=True,
    rename={
        "dims": "Input Dims",
        "types": "Input type",
        "strides": "Input Strides",
        "values": "Concrete Inputs",
        "shared_memory": "shared memory",
        "registers": "registers per thread",
    },
):
    """An event's arguments with those that say what an op was called with and how a kernel was configured, as text."""

    dims: msgspec.Raw = msgspec.Raw()
    types: msgspec.Raw = msgspec.Raw()
    strides: msgspec.Raw = msgspec.Raw()
    values: msgspec.Raw = msgspec.Raw()
    grid: msgspec.Raw = msgspec.Raw()
    block: msgspec.Raw = msgspec.Raw()
    shared_memory: msgspec.Raw = msgspec.Raw()
    registers: msgspec.Raw = msgspec.Raw()


class CallEvent(Event, gc=False):
    """An event with all its arguments."""

    args: CallArgs = CallArgs()


_NO_ARGS = CallArgs()
_LISTS = msgspec.json.Decoder(list[Any])
_INTS = msgspec.json.Decoder(tuple[int, ...])
_INT = msgspec.json.Decoder(int)


class CallCollector:
    """Collects the calls of ops and the configurations of kernels, in the order of the rows they belong to."""

    def __init__(self) -> None:
        self._calls = _Interner()
        self._kernels = _Interner()
        self._call_of_op: list[int] = []
        self._configuration_of_kernel: list[int] = []

    def add_op(self, event: Event) -> None:
        """Take in the next op; one that could only be read leniently has no arguments."""
        args = event.args if isinstance(event.args, CallArgs) else _NO_ARGS
        name = event.name
        self._call_of_op.append(self._calls.ids[name, *map(bytes, (args.dims, args.types, args.strides, args.values))])

    def add_kernel(self, event: Event) -> None:
        """Take in the next kernel."""
        args = event.args if isinstance(event.args, CallArgs) else _NO_ARGS
        raw = tuple(map(bytes, (args.grid, args.block, args.shared_memory, args.registers)))
        self._configuration_of_kernel.append(self._kernels.ids[raw])

    def finish(self) -> Calls:
        """Decode each distinct call and configuration once."""
        calls, call_of = self._calls.decode(_call)
        kernels, kernel_of = self._kernels.decode(_kernel)
        return Calls(
            calls=calls,
            kernels=kernels,
            call_of_op=call_of[np.array(self._call_of_op, dtype=np.int32)],
            configuration_of_kernel=kernel_of[np.array(self._configuration_of_kernel, dtype=np.int32)],
        )


class _Interner:
    """Numbers distinct texts as they come; what they say is decoded, and made one where it is the same, at the end."""

    def __init__(self) -> None:
        self.ids: defaultdict[tuple[Any, ...], int] = defaultdict()
        self.ids.default_factory = self.ids.__len__

    def decode(self, make: Callable[..., T]) -> tuple[tuple[T, ...], NDArray[np.int32]]:
        numbers: dict[T, int] = {}
        index = [numbers.setdefault(make(*raw), len(numbers)) for raw in self.ids]
        return tuple(numbers), np.array(index, dtype=np.int32)


def _call(op: str, *raw: bytes) -> Call:
    try:
        dims, types, strides, values = (_LISTS.decode(text) if text else None for text in raw)
        dims, strides = _frozen(dims), _frozen(strides)
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError):
        return Call(op, None)
    if dims is None or types is None or len(dims) != len(types):
        return Call(op, None)
    strides = strides if strides is not None and len(strides) == len(dims) else None
    values = values if values is not None and len(values) == len(dims) else None
    return Call(
        op,
        tuple(
            Input(
                type=_SAME_TYPE.get(str(types[i]), str(types[i])),
                dims=dims[i],
                strides=None if strides is None else strides[i],
                value="" if values is None else str(values[i]),
            )
            for i in range(len(dims))
        ),
    )


def _kernel(grid: bytes, block: bytes, shared_memory: bytes, registers: bytes) -> Kernel:
    try:
        return Kernel(
            grid=_INTS.decode(grid) if grid else (),
            block=_INTS.decode(block) if block else (),
            shared_memory=_INT.decode(shared_memory) if shared_memory else -1,
            registers=_INT.decode(registers) if registers else -1,
        )
    except (msgspec.DecodeError, UnicodeDecodeError):
        return Kernel()


def _frozen(value: object) -> Any:  # noqa: ANN401 - ints, nested as deep as lists of tensors are
    """Make lists tuples; raises ValueError where there is something else than numbers in them."""
    if isinstance(value, list):
        return tuple(_frozen(part) for part in value)
    if value is None or type(value) is int:
        return value
    raise ValueError(f"{value!r} is no size")
