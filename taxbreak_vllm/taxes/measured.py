"""A trace with everything measured: one value a dispatch or activity, as columns."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from taxbreak_vllm.model.breakdown import Attribution
from taxbreak_vllm.taxes.equations import Spans
from taxbreak_vllm.trace.backend import Backend
from taxbreak_vllm.trace.dispatches import Activities, Bool, Dispatches, Host
from taxbreak_vllm.trace.events import Events
from taxbreak_vllm.trace.intervals import Index, Int64, Partition
from taxbreak_vllm.trace.kernels import Family, KernelClass
from taxbreak_vllm.trace.steps import StepWindow
from taxbreak_vllm.trace.timeline import DeviceTimeline

FAMILIES = list(Family)
NONE = np.iinfo(np.int64).min


@dataclass(frozen=True, slots=True)
class TaxColumns:
    """Taxes by their names in `model.breakdown.Taxes`, int64 ns, one a dispatch or one a group; None: unknown."""

    delta_ft_ns: Int64 | None = None
    delta_ct_ns: Int64 | None = None
    delta_kt_ns: Int64 | None = None
    delta_kt_excess_ns: Int64 | None = None

    def each(self, change: Callable[[Int64], Int64]) -> "TaxColumns":
        """Apply a function to every known column."""
        return TaxColumns(
            **{name: None if column is None else change(column) for name, column in self.by_name().items()}
        )

    def plus(self, other: "TaxColumns") -> "TaxColumns":
        """Add group by group; what one of the two does not know stays unknown."""
        pairs = zip(self.by_name().items(), other.by_name().values(), strict=True)
        return TaxColumns(**{name: None if a is None or b is None else a + b for (name, a), b in pairs})

    def by_name(self) -> dict[str, Int64 | None]:
        """Return the columns by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def host_tax_ns(self) -> Int64 | None:
        """ΔFT + ΔCT, as far as they are known; None without any."""
        return _sum_of_known(self.delta_ft_ns, self.delta_ct_ns)

    def orchestration_ns(self) -> Int64 | None:
        """ΔFT + ΔCT + ΔKT, as far as they are known; None without any."""
        return _sum_of_known(self.delta_ft_ns, self.delta_ct_ns, self.delta_kt_ns)


@dataclass(frozen=True, slots=True)
class Basis:
    """What the figures of a trace rest on: its kind of device, whose definitions, T_sys where it is known, and what the
    profiler added to an op.
    """

    backend: Backend
    attribution: Attribution = Attribution.EXCLUSIVE
    floor_ns: int | None = None
    op_cost_ns: int = 0


@dataclass(frozen=True, slots=True)
class Measured:
    """A trace with everything measured: columns of `trace`; raw spans and taxes of each dispatch.

    For each activity `kind` indexes `kinds` and `op` Events.names: the leaf op around its launch, the launch call where
    there is none, len(names) where it has no launch event. `device` is the one whose device figures are shown. `tier`
    (into `TIERS`) tells where each dispatch's baseline is from, `is_denied` marks those that are never replayed.
    """

    events: Events
    basis: Basis
    host: Host
    activities: Activities
    dispatches: Dispatches
    partition: Partition
    timeline: DeviceTimeline
    device: int
    kinds: tuple[KernelClass, ...]
    kind: Index
    op: Int64
    spans: Spans
    taxes: TaxColumns
    tier: NDArray[np.int8]
    is_denied: Bool

    @property
    def backend(self) -> Backend:
        return self.basis.backend

    @property
    def orchestration_ns(self) -> Int64:
        """What each dispatch costs the host, as far as it is known."""
        known = self.taxes.orchestration_ns()
        return np.zeros(len(self.dispatches), dtype=np.int64) if known is None else known


def _sum_of_known(*columns: Int64 | None) -> Int64 | None:
    known = [column for column in columns if column is not None]
    return np.asarray(np.sum(known, axis=0, dtype=np.int64)) if known else None


def group_by_time(windows: Sequence[StepWindow], at_ns: Int64) -> Index:
    """Return for each instant the index of the step window it falls in, -1 for none."""
    start = np.array([window.start_ns for window in windows], dtype=np.int64)
    end = np.array([window.end_ns for window in windows], dtype=np.int64)
    index = np.searchsorted(start, at_ns, side="right") - 1
    return np.where((index >= 0) & (at_ns < end[np.maximum(index, 0)]), index, -1)
