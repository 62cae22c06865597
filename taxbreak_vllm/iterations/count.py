"""Turns of an engine's loop, a few at a time, in; the sums over all its iterations, phase by phase, out.

A step's times may come back some turns later, so each time some of the turns before are looked at once more; no
iteration counts twice.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TypeVar

import numpy as np

from taxbreak_vllm.iterations.account import Iterations, Turns
from taxbreak_vllm.iterations.rows import NUM_COLUMNS, Column
from taxbreak_vllm.iterations.spans import Bool, Int64
from taxbreak_vllm.iterations.waits import NO_ARRIVALS, Arrivals
from taxbreak_vllm.model.engine import Between, EnginePart, EngineState, IdleFrom, IterationSums
from taxbreak_vllm.model.step import PHASES, Phase

T = TypeVar("T", EnginePart, Between)

_HELD = 4  # turns whose steps may not have come back
_KEPT = 32  # turns that what is counted next is joined with


class LoopCount:
    """The sums of one engine's loop.

    Where a device is asked about some iterations, the others are left out. Where the loop `works_ahead`, what a device
    waited for is told by the device alone, and so are iterations of which it does not tell; as long as it has told of
    none, those it was asked about count without parts. `num_left_out` counts them all.
    """

    def __init__(self, *, works_ahead: bool = False) -> None:
        self._works_ahead = works_ahead
        self.idle_from: IdleFrom | None = None if works_ahead else IdleFrom.WORKER_CALLS
        self._rows: Int64 = np.zeros((0, NUM_COLUMNS), dtype=np.int64)
        self._counted_ns: int | None = None
        self._last_step = 0
        self.phases: Mapping[Phase, IterationSums] = {}
        self.busy_ns: Mapping[EnginePart, int] = {}
        self.num_unjoined = 0
        self.num_left_out = 0

    def add(self, new: Int64, arrivals: Arrivals = NO_ARRIVALS) -> None:
        """Count turns that follow on those counted last; `arrivals` are the requests that came meanwhile."""
        rows = np.concatenate((self._rows, new))
        if not len(new) and (not len(rows) or self._counted_ns == rows[-1, Column.INPUT0]):
            return
        turns = Turns(rows, arrivals)
        until_ns = int(rows[-_HELD if len(new) and len(rows) > _HELD else -1, Column.INPUT0])
        from_ns = int(rows[0, Column.INPUT0]) if self._counted_ns is None else self._counted_ns
        if until_ns > from_ns:
            self.busy_ns = _sum((self.busy_ns, turns.busy_ns(from_ns, until_ns)))
            self._counted_ns = until_ns
        found = turns.iterations()
        is_new = found.step > self._last_step
        if is_new.any():
            self._add(found, is_new)
            self._last_step = int(found.step[-1])
        self.num_unjoined += int(turns.is_unjoined[len(rows) - len(new) :].sum())
        self._rows = rows[-_KEPT:]

    def _add(self, found: Iterations, is_new: Bool) -> None:
        num_new = int(is_new.sum())
        is_new = is_new & found.is_asked
        is_told = is_new & found.is_from_device
        if is_told.any() and self.idle_from is not IdleFrom.DEVICE_EVENTS:
            self.idle_from = IdleFrom.DEVICE_EVENTS
            if self._works_ahead:
                self.phases = {}  # these have no parts
        if self._works_ahead and self.idle_from is IdleFrom.DEVICE_EVENTS:
            is_new = is_told
        self.num_left_out += num_new - int(is_new.sum())
        sums = _by_phase(found, is_new, tells_parts=self.idle_from is not None)
        self.phases = _added(self.phases, sums)

    def told(self, state: EngineState) -> EngineState:
        """Return a state with these sums; the totals are those of its phases."""
        total = total_of(self.phases.values())
        return replace(
            state,
            num_iterations=total.num,
            iterations_ns=total.total_ns,
            worker_ns=total.worker_ns,
            exposed_ns=total.exposed_ns,
            between_ns=total.between_ns,
            phases=self.phases,
            idle_from=self.idle_from,
            busy_ns=self.busy_ns,
            num_unjoined=self.num_unjoined,
            num_left_out=self.num_left_out,
        )


def total_of(sums: Iterable[IterationSums]) -> IterationSums:
    """Add sums up."""
    parts = tuple(sums)
    return IterationSums(
        num=sum(each.num for each in parts),
        total_ns=sum(each.total_ns for each in parts),
        worker_ns=sum(each.worker_ns for each in parts),
        exposed_ns=_sum(each.exposed_ns for each in parts),
        between_ns=_sum(each.between_ns for each in parts),
    )


def _by_phase(found: Iterations, is_chosen: Bool, *, tells_parts: bool) -> dict[Phase, IterationSums]:
    sums = {}
    for index in np.unique(found.phase_index[is_chosen]):
        own = is_chosen & (found.phase_index == index)
        parts = {label: int(spans[own].sum()) for label, spans in found.parts_ns.items()} if tells_parts else {}
        sums[PHASES[index]] = IterationSums(
            num=int(own.sum()),
            total_ns=int(found.total_ns[own].sum()),
            worker_ns=int(found.worker_ns[own].sum()),
            exposed_ns={label: value for label, value in parts.items() if isinstance(label, EnginePart)},
            between_ns={label: value for label, value in parts.items() if isinstance(label, Between)},
        )
    return sums


def _added(phases: Mapping[Phase, IterationSums], more: Mapping[Phase, IterationSums]) -> dict[Phase, IterationSums]:
    return {
        phase: total_of(each[phase] for each in (phases, more) if phase in each)
        for phase in PHASES
        if phase in phases or phase in more
    }


def _sum(spent: Iterable[Mapping[T, int]]) -> dict[T, int]:
    total: Counter[T] = Counter()
    for each in spent:
        total.update(each)
    return dict(total)
