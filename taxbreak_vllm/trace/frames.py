"""The Python functions that ran, as columns: what a trace with stacks tells beside its ops and calls."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from taxbreak_vllm.trace.intervals import Int64


@dataclass(frozen=True, slots=True)
class Frames:
    """One row a call of a function, in file order: `name` into `names`, `thread` into Events.threads, both int32."""

    start_ns: Int64
    end_ns: Int64
    name: NDArray[np.int32]
    thread: NDArray[np.int32]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.start_ns)
