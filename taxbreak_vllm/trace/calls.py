"""What ops were called with and how kernels were configured: what can be replayed.

A `Call` is what can be replayed; `signature` names it together with the kernel it launched (methodology section 6), the
same on every machine. Device and torch version, the rest of a signature, are what `baselines` keeps its entries by.
"""

from dataclasses import dataclass, replace
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

_KEY_BYTES = 16

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

    def kept(self, ops: NDArray[np.bool_], kernels: NDArray[np.bool_]) -> "Calls":
        """Return the calls of some of the ops and the configurations of some of the kernels."""
        return replace(
            self,
            call_of_op=self.call_of_op[ops],
            configuration_of_kernel=self.configuration_of_kernel[kernels],
        )
