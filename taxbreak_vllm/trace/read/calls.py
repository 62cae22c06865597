"""What each op was called with and how each kernel was configured: read apart from the times, as only replay asks.

In: a path. Out: `Calls`, the distinct calls of the trace and, for each op and kernel in file order, which is its own.
A `Call` is what can be replayed; `signature` names it together with the kernel it launched (methodology section 6), the
same on every machine. Device and torch version, the rest of a signature, are what `baselines` keeps its entries by.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from taxbreak_vllm.trace.read.blocks import decode, read_blocks

_OP_CATEGORIES = ("cpu_op", "Operator")
_KERNEL_CATEGORIES = ("kernel", "concurrent_kernel", "Kernel")
_KEY_BYTES = 16

# Traces before torch 2.1 write "long" for what later ones call "long int".
_SAME_TYPE = {"long": "long int"}

T = TypeVar("T")

Dims = tuple[Any, ...]  # of a tensor: ints; of a list of tensors: a tuple for each


@dataclass(frozen=True, slots=True)
class Input:
    """One argument as the profiler saw it.

    `type` is its own word ("float", "c10::BFloat16", "Scalar", "ScalarList", "TensorList"; "" where it has none, as for
    text and for None). `dims` and `strides` are of a tensor, `value` the text of a scalar or list of them; `strides`
    is None in traces older than torch 2.1.
    """

    type: str
    dims: Dims = ()
    strides: Dims | None = None
    value: str = ""


@dataclass(frozen=True, slots=True)
class Call:
    """An op and its arguments; `inputs` is None where the trace holds no shapes."""

    op: str
    inputs: tuple[Input, ...] | None = ()


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel with its launch configuration; all empty on the CPU backend, where an op is its own kernel."""

    name: str = ""
    grid: tuple[int, ...] = ()
    block: tuple[int, ...] = ()
    shared_memory: int = -1
    registers: int = -1

    def named(self, name: str) -> "Kernel":
        """Return the same configuration under a name."""
        return replace(self, name=name)


def signature(call: Call, kernel: Kernel = Kernel()) -> str:
    """Return the key of a call that launches this kernel: 32 hexadecimal digits, stable across runs and machines."""
    import hashlib  # loads OpenSSL, 3 MB that a trace without baselines does not need

    launch = (kernel.name, kernel.grid, kernel.block, kernel.shared_memory)
    canonical = msgspec.json.encode((call.op, call.inputs, launch))
    return hashlib.blake2b(canonical, digest_size=_KEY_BYTES).hexdigest()


@dataclass(frozen=True, slots=True)
class Calls:
    """The calls of a trace: distinct ones, and for each op and kernel in file order the index of its own, int32.

    `kernels` hold configurations alone, without names, which the columns of `Events` have.
    """

    calls: tuple[Call, ...]
    kernels: tuple[Kernel, ...]
    call_of_op: NDArray[np.int32]
    configuration_of_kernel: NDArray[np.int32]


_RENAMED = {
    "dims": "Input Dims",
    "types": "Input type",
    "strides": "Input Strides",
    "values": "Concrete Inputs",
    "shared_memory": "shared memory",
    "registers": "registers per thread",
}


class _Args(msgspec.Struct, gc=False, frozen=True, rename=_RENAMED):
    dims: msgspec.Raw = msgspec.Raw()
    types: msgspec.Raw = msgspec.Raw()
    strides: msgspec.Raw = msgspec.Raw()
    values: msgspec.Raw = msgspec.Raw()
    grid: msgspec.Raw = msgspec.Raw()
    block: msgspec.Raw = msgspec.Raw()
    shared_memory: msgspec.Raw = msgspec.Raw()
    registers: msgspec.Raw = msgspec.Raw()


class _Event(msgspec.Struct, gc=False):
    ph: str = ""
    cat: str = ""
    name: str = ""
    ts: msgspec.Raw = msgspec.Raw()
    args: _Args = _Args()


_LISTS = msgspec.json.Decoder(list[Any])
_EVENTS = msgspec.json.Decoder(list[_Event])
_RAW_EVENTS = msgspec.json.Decoder(list[msgspec.Raw])
_EVENT = msgspec.json.Decoder(_Event)
_INTS = msgspec.json.Decoder(tuple[int, ...])
_INT = msgspec.json.Decoder(int)


def read_calls(path: str | Path) -> Calls:
    """Read the calls of a trace file; raises TraceFormatError as `read_events` does.

    The rows are those of `Events.rows(Kind.OP)` and `Events.rows(Kind.KERNEL)`. An op without recorded shapes, and one
    whose arguments make no sense, is a Call with `inputs` None.
    """
    reader = _Reader()
    read_blocks(Path(path), reader.add)
    return reader.finish()


class _Reader:
    """Collects interned calls block by block."""

    def __init__(self) -> None:
        self._calls = _Interner()
        self._kernels = _Interner()
        self._call_of_op: list[int] = []
        self._configuration_of_kernel: list[int] = []

    def add(self, text: bytes) -> None:
        """Add the events of a JSON list; raises msgspec.DecodeError, with nothing added, where the text is not one."""
        try:
            events = decode(_EVENTS, text)
        except (msgspec.ValidationError, UnicodeDecodeError):
            events = [_lenient(raw) for raw in decode(_RAW_EVENTS, text)]
        for event in events:
            if event.ph != "X" or bytes(event.ts) in (b"", b"null"):
                continue
            args = event.args
            if event.cat in _OP_CATEGORIES:
                if not event.name.startswith("ProfilerStep#"):
                    raw = (event.name, *map(bytes, (args.dims, args.types, args.strides, args.values)))
                    self._call_of_op.append(self._calls.ids[raw])
            elif event.cat in _KERNEL_CATEGORIES:
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


def _lenient(raw: msgspec.Raw) -> _Event:
    try:
        return _EVENT.decode(raw)
    except (msgspec.ValidationError, UnicodeDecodeError):
        return _Event()
