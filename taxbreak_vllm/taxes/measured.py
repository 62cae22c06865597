"""A trace with everything measured: one value a dispatch or activity, as columns."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from taxbreak_vllm.model.breakdown import Attribution
from taxbreak_vllm.taxes.equations import Spans
from taxbreak_vllm.trace.dispatches import Activities, Bool, Dispatches, Host
from taxbreak_vllm.trace.intervals import Index, Int64, Partition
from taxbreak_vllm.trace.kernels import Family, KernelClass
from taxbreak_vllm.trace.read.kineto import Events
from taxbreak_vllm.trace.steps import StepWindow
from taxbreak_vllm.trace.timeline import DeviceTimeline

FAMILIES = list(Family)

NONE = np.iinfo(np.int64).min


@dataclass(frozen=True, slots=True)
class Measured:
    """A trace with everything measured: columns of `trace`; raw spans, ΔFT, ΔCT, ΔKT of each dispatch (None: unknown).

    For each activity `kind` indexes `kinds` and `op` Events.names: the leaf op around its launch, the launch call where
    there is none, len(names) where it has no launch event. `device` is the one whose device figures are shown.
    `excess_ns` is ΔKT_excess of each dispatch, `tier` (into `TIERS`) where its baseline is from, `is_denied` marks
    those that are never replayed.
    """

    events: Events
    device_type: str
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
    ft_ns: Int64
    ct_ns: Int64 | None
    kt_ns: Int64 | None
    excess_ns: Int64 | None
    tier: NDArray[np.int8]
    is_denied: Bool
    attribution: Attribution = Attribution.EXCLUSIVE
    op_cost_ns: int = 0

    @property
    def orchestration_ns(self) -> Int64:
        """What each dispatch costs the host, as far as it is known."""
        known = [column for column in (self.ft_ns, self.ct_ns, self.kt_ns) if column is not None]
        return np.asarray(np.sum(known, axis=0, dtype=np.int64))


def group_by_time(windows: Sequence[StepWindow], at_ns: Int64) -> Index:
    """Return for each instant the index of the step window it falls in, -1 for none."""
    start = np.array([window.start_ns for window in windows], dtype=np.int64)
    end = np.array([window.end_ns for window in windows], dtype=np.int64)
    index = np.searchsorted(start, at_ns, side="right") - 1
    return np.where((index >= 0) & (at_ns < end[np.maximum(index, 0)]), index, -1)
