"""The least time of ops, and their rows: by op and shapes, and by family.

In: the ops of a trace as columns, each with its work. Out: `Floors`, `OpLimit` and `PartLimit`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from taxbreak_vllm.limit.charges import Charges
from taxbreak_vllm.model.ceilings import Ceilings
from taxbreak_vllm.model.limit import SLACK, Bound, OpLimit, PartLimit, Work
from taxbreak_vllm.taxes.measured import FAMILIES, Measured
from taxbreak_vllm.trace.calls import Call
from taxbreak_vllm.trace.dispatches import Bool
from taxbreak_vllm.trace.intervals import Index, Int64

BOUNDS = tuple(Bound)
Floats = NDArray[np.float64]
_UNKNOWN = -1


@dataclass(frozen=True, slots=True)
class Floors:
    """The least time of each op in ns, NaN where no ceiling is known, lowest and highest; its bound, into `BOUNDS`."""

    least_ns: Floats
    most_ns: Floats
    bound: Index
    reads_cache: Bool
    is_impossible: Bool
    compute_ns: int | None
    memory_ns: int | None
    unknown_dtypes: tuple[str, ...]

    @classmethod
    def of(
        cls,
        works: Sequence[Work],
        work: Index,
        device_ns: Int64,
        num_kernels: Int64,
        ceilings: Ceilings | None,
        shortest_ns: int | None,
    ) -> "Floors":
        """Work out the floors of ops, each with its work, device time and number of kernels."""
        if ceilings is None:
            nothing = np.full(len(work), np.nan)
            no = np.zeros(len(work), dtype=bool)
            return cls(nothing, nothing, np.full(len(work), _UNKNOWN), no, no, None, None, ())
        compute, memory, most = (
            np.array([_or_nan(each) for each in times], dtype=np.float64)[work]
            for times in (
                [ceilings.compute_ns(one.flops, one.dtype) for one in works],
                [ceilings.memory_ns(one.bytes) for one in works],
                [ceilings.memory_ns(one.most_bytes or one.bytes) for one in works],
            )
        )
        products = np.where(np.array([one.is_reduced for one in works], dtype=bool)[work], 0, compute)
        num_bytes = np.array([one.bytes for one in works], dtype=np.int64)[work]
        least = np.maximum(products, memory)
        # what it reads may lie in the cache, and what it writes may stay there
        from_memory = np.maximum(num_bytes - 2 * ceilings.cache_bytes, 0) * (memory / np.maximum(num_bytes, 1))
        reads_cache = (least > device_ns) & (np.maximum(products, from_memory) <= device_ns)
        bound = np.where(products >= memory, BOUNDS.index(Bound.COMPUTE), BOUNDS.index(Bound.MEMORY))
        bound[np.isnan(least)] = _UNKNOWN
        if shortest_ns is not None:
            bound[least < shortest_ns * np.maximum(num_kernels, 1)] = BOUNDS.index(Bound.LATENCY)
        missing = {
            one.dtype
            for one in (works[place] for place in np.unique(work).tolist())
            if ceilings.compute_ns(one.flops, one.dtype) is None
        }
        return cls(
            least_ns=np.where(reads_cache, device_ns, least),
            most_ns=np.where(reads_cache, device_ns, np.maximum(products, most)),
            bound=bound,
            reads_cache=reads_cache,
            is_impossible=~reads_cache & (least > SLACK * device_ns) & (bound != BOUNDS.index(Bound.LATENCY)),
            compute_ns=_sum(compute),
            memory_ns=_sum(np.where(reads_cache, np.minimum(memory, device_ns), memory)),
            unknown_dtypes=tuple(sorted(missing)),
        )

    @property
    def num_impossible(self) -> int:
        return int(self.is_impossible.sum())

    @property
    def total_ns(self) -> tuple[int, int] | None:
        """The sum over all ops; None where one is not known."""
        least, most = _sum(self.least_ns), _sum(self.most_ns)
        return None if least is None or most is None else (least, most)

    def above_ns(self, device_ns: Int64) -> int | None:
        """Device time above the least; None where that of one op is not known."""
        least = _sum(self.least_ns)
        return None if least is None else int(device_ns.sum()) - least

    def bound_ns(self, device_ns: Int64) -> Mapping[Bound, int]:
        """Split device time by what the ops' least time hangs on."""
        return {each: int(device_ns[self.bound == place].sum()) for place, each in enumerate(BOUNDS)}


def op_rows(
    measured: Measured, charges: Charges, call: Index, work: Index, device_ns: Int64, floors: Floors
) -> tuple[OpLimit, ...]:
    """Return one row for each distinct call and work, by time above the least, or by time where that is not known."""
    assert measured.events.calls is not None
    calls = measured.events.calls.calls
    pairs, group = np.unique(np.stack((call, work)), axis=1, return_inverse=True)
    group, num = group.reshape(-1), pairs.shape[1]
    time = np.zeros(num, dtype=np.int64)
    np.add.at(time, group, device_ns)
    bounds = np.bincount(group * (len(BOUNDS) + 1) + floors.bound - _UNKNOWN, minlength=num * (len(BOUNDS) + 1))
    columns = (
        np.bincount(group, minlength=num),
        time,
        np.bincount(group, weights=floors.least_ns, minlength=num),
        bounds.reshape(num, len(BOUNDS) + 1).argmax(axis=1) + _UNKNOWN,
        np.bincount(group, weights=floors.reads_cache, minlength=num) > 0,
    )
    rows = [
        _row(calls[number], charges.works[own], *figures)
        for (number, own), *figures in zip(pairs.T.tolist(), *(column.tolist() for column in columns), strict=True)
    ]
    return tuple(sorted(rows, key=lambda row: -(row.device_ns if row.above_ns is None else row.above_ns)))


def _row(call: Call, work: Work, count: int, device_ns: int, floor_ns: float, bound: int, reads_cache: bool) -> OpLimit:
    return OpLimit(
        op=call.op,
        shapes=shapes_of(call),
        dtype=work.dtype,
        count=count,
        flops=work.flops * count,
        bytes=work.bytes * count,
        most_bytes=None if work.most_bytes is None else work.most_bytes * count,
        device_ns=device_ns,
        floor_ns=None if np.isnan(floor_ns) else round(floor_ns),
        bound=None if bound == _UNKNOWN else BOUNDS[bound],
        reads_cache=reads_cache,
    )


def shapes_of(call: Call) -> str:
    """Say the shapes of a call's tensors."""
    shapes = [each.dims for each in call.inputs or () if each.dims and isinstance(each.dims[0], int)]
    return " ".join("x".join(map(str, shape)) for shape in shapes)


def part_rows(works: Sequence[Work], family: Index, device_ns: Int64, floors: Floors) -> Mapping[str, PartLimit]:
    """Return the sums of each family, that with most device time first."""
    flops, num_bytes = ([getattr(work, name) for work in works] for name in ("flops", "bytes"))
    parts = {}
    for number in np.unique(family).tolist():
        own = np.flatnonzero(family == number).tolist()
        parts[str(FAMILIES[number])] = PartLimit(
            flops=sum(flops[row] for row in own),
            bytes=sum(num_bytes[row] for row in own),
            device_ns=int(device_ns[own].sum()),
            floor_ns=_sum(floors.least_ns[own]),
        )
    return dict(sorted(parts.items(), key=lambda part: -part[1].device_ns))


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value


def _sum(times_ns: Floats) -> int | None:
    total = float(times_ns.sum())
    return None if np.isnan(total) else round(total)
