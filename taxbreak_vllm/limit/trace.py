"""What the shapes recorded in a trace tell of its device's time beside what the hardware allows.

In: a `Recording` opened with its calls, and ceilings where they are known. Out: `Limit`, or in one line why there is
none.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from taxbreak_vllm.limit.ceilings import NO_CEILINGS, ceilings_of
from taxbreak_vllm.limit.charges import Charges, charge
from taxbreak_vllm.limit.phases import step_bar, sum_bars
from taxbreak_vllm.limit.rows import Floors, op_rows, part_rows
from taxbreak_vllm.model.breakdown import StepBreakdown
from taxbreak_vllm.model.ceilings import Ceilings, DeviceProperties
from taxbreak_vllm.model.limit import SLACK, Bar, Limit, StepTokens, Uncovered
from taxbreak_vllm.model.shape import ModelShape
from taxbreak_vllm.taxes.measured import FAMILIES, Measured, group_by_time
from taxbreak_vllm.taxes.recording import Recording
from taxbreak_vllm.trace.dispatches import Bool
from taxbreak_vllm.trace.intervals import Busy, Index, Int64
from taxbreak_vllm.trace.kernels import Family
from taxbreak_vllm.trace.steps import StepWindow

MIN_COVERED = 0.9  # of the device time whose work is known, for a share of a ceiling to say anything
MOST_SHORTEST_NS = 5_000  # a kernel above this is not the shortest of any device, whatever else a trace holds

_LINK = re.compile(r"HtoD|DtoH|HostToDevice|DeviceToHost")
_GRAPH = "launched by graphs, whose ops and shapes are not recorded"
_COLLECTIVE = "collectives: the time of links and of other ranks"
_COPIES = "copies between host and device: the link's time"
_UNLINKED = "no launch event"


def limit_of(
    recording: Recording,
    *,
    steps: Sequence[int] | None = None,
    properties: DeviceProperties | None = None,
    tokens: Sequence[StepTokens | None] | None = None,
    model: ModelShape | None = None,
) -> Limit | str:
    """Add up the work of a recording's ops beside their device time; the reason in one line where nothing is known.

    `steps` chooses some by number; without it the whole trace is meant, of a live recording its step. Ceilings are
    those that `taxbreak floor` measured, where the recording was opened with baselines, else what follows of
    `properties` of the device, else its maker's. `tokens` has those of each step, where the caller knows them better
    than the name of the step tells; `model` is asked where a call does not hold what it worked on.
    """
    calls = recording.events.calls
    if calls is None:
        return "read without the calls of its ops"
    if all(not call.inputs for call in calls.calls):
        return "recorded without shapes (record_shapes=True), so no op's work is known"
    measured, windows = recording.measured, recording.windows
    if not windows or (steps is None and not recording.is_live):
        meant: Sequence[StepWindow] = (recording.survey.whole,)
        of_dispatch = np.zeros(len(measured.dispatches), dtype=np.intp)
        of_activity = np.zeros(len(measured.activities.row), dtype=np.intp)
    else:
        numbers = range(len(windows)) if steps is None else sorted(set(steps))
        meant = [windows[number] for number in numbers]
        of_dispatch = group_by_time(meant, measured.dispatches.launch_ns)
        of_activity = group_by_time(meant, measured.activities.start_ns)
    linked = measured.activities.dispatch >= 0
    of_activity[linked] = of_dispatch[measured.activities.dispatch[linked]]
    spent = _Spent.of(measured, of_dispatch >= 0, of_activity >= 0)
    if not spent.dispatch_ns.any():
        return "no device time with a launch event"
    measured_here = None if recording.view is None else recording.view.ceilings
    known = ceilings_of(recording.environment["device_name"], measured=measured_here, properties=properties)
    charges = charge(measured, spent.is_chargeable, spent.dispatch_ns, windows, tokens, model)
    limit = _limit(measured, charges, spent, known, _wall_ns(measured, meant, of_activity))
    breakdown = recording.breakdown
    shown = [breakdown.total] if steps is None else [breakdown.steps[number] for number in sorted(set(steps))]
    return replace(limit, bar=_bar(limit, shown))


def _bar(limit: Limit, steps: Sequence[StepBreakdown]) -> Bar:
    """Cut the device's time of steps; where kernels overlap, what is known is the same share of it as of their sum."""
    bar = sum_bars(step_bar(replace(step, limit=None)).bar for step in steps)
    whole_ns = limit.device_ns + sum(part.device_ns for part in limit.apart)
    if limit.floor_ns is None or limit.above_ns is None or limit.above_ns < 0 or not whole_ns:
        return bar
    active_ns = sum(step.device.active_ns for step in steps)
    known_ns = active_ns * limit.covered_ns // whole_ns
    limit_ns = active_ns * limit.floor_ns[0] // whole_ns
    return replace(bar, limit_ns=limit_ns, above_ns=known_ns - limit_ns, unknown_ns=bar.unknown_ns - known_ns)


def _wall_ns(measured: Measured, steps: Sequence[StepWindow], of_activity: Index) -> int:
    """Return the time from the start of each step to the end of what it ran on the device, none of it twice."""
    start_ns = np.array([step.start_ns for step in steps], dtype=np.int64)
    end_ns = np.array([step.end_ns for step in steps], dtype=np.int64)
    own = of_activity >= 0
    np.maximum.at(end_ns, of_activity[own], measured.activities.end_ns[own])
    busy = Busy.of(start_ns, end_ns)
    return int((busy.end_ns - busy.start_ns).sum())


@dataclass(frozen=True, slots=True)
class _Spent:
    """Of the dispatches that are meant, on the shown device: which they are, their device time, their families.

    `dispatch_ns` and `family` are of all dispatches, the time of any other being 0; `unlinked_ns` is of no dispatch.
    """

    is_meant: Bool
    dispatch_ns: Int64
    family: Index
    is_graph: Bool
    is_collective: Bool
    is_link: Bool
    unlinked_ns: int
    shortest_ns: int | None

    @property
    def is_counted(self) -> Bool:
        """What is the device's own time."""
        return self.is_meant & ~self.is_collective & ~self.is_link

    @property
    def is_chargeable(self) -> Bool:
        return self.is_counted & ~self.is_graph

    @classmethod
    def of(cls, measured: Measured, is_meant: Bool, is_meant_activity: Bool) -> "_Spent":
        activities, dispatches = measured.activities, measured.dispatches
        first = np.where(dispatches.first_kernel >= 0, dispatches.first_kernel, dispatches.first)
        is_shown = activities.device == measured.device
        length_ns = np.where(is_shown & is_meant_activity, activities.end_ns - activities.start_ns, 0)
        linked = activities.dispatch >= 0
        dispatch_ns = np.zeros(len(dispatches), dtype=np.int64)
        np.add.at(dispatch_ns, activities.dispatch[linked], length_ns[linked])
        family_of_kind = np.array([FAMILIES.index(kind.family) for kind in measured.kinds], dtype=np.intp)
        family = family_of_kind[measured.kind[first]]
        is_link_name = np.array([_LINK.search(name) is not None for name in measured.events.names], dtype=bool)
        kernels = (activities.end_ns - activities.start_ns)[activities.is_kernel & is_shown]
        kernels = kernels[(kernels > 0) & (kernels <= MOST_SHORTEST_NS)]
        return cls(
            is_meant=is_meant & is_shown[first],
            dispatch_ns=dispatch_ns,
            family=family,
            is_graph=dispatches.is_graph,
            is_collective=(family == FAMILIES.index(Family.COLLECTIVE)) & ~dispatches.is_graph,
            is_link=(dispatches.num_kernels == 0) & is_link_name[activities.name[first]],
            unlinked_ns=int(length_ns[~linked].sum()),
            shortest_ns=int(kernels.min()) if measured.backend.has_launches and len(kernels) else None,
        )

    def total_ns(self, rows: Bool) -> int:
        return int(self.dispatch_ns[rows].sum())


def _limit(measured: Measured, charges: Charges, spent: _Spent, ceilings: Ceilings | None, window_ns: int) -> Limit:
    ops = _Ops.of(charges, spent, measured)
    measured_ns = None if ceilings is None else ceilings.shortest_kernel_ns
    shortest_ns = min((ns for ns in (spent.shortest_ns, measured_ns) if ns is not None), default=None)
    floors = Floors.of(charges.works, ops.work, ops.device_ns, ops.num_kernels, ceilings, shortest_ns)
    works = [charges.works[each] for each in ops.work.tolist()]
    device_ns, covered_ns = spent.total_ns(spent.is_counted), int(ops.device_ns.sum())
    is_matrix = np.array([work.is_matrix for work in works], dtype=bool)
    compute_ns, memory_ns = floors.compute_ns, floors.memory_ns
    is_covered = covered_ns >= MIN_COVERED * (device_ns + spent.unlinked_ns) and window_ns > 0
    is_possible = max(compute_ns or 0, memory_ns or 0) <= SLACK * covered_ns
    is_shared = is_covered and is_possible
    return Limit(
        window_ns=window_ns,
        device_ns=device_ns,
        covered_ns=covered_ns,
        flops=sum(work.flops for work in works),
        bytes=sum(work.bytes for work in works),
        most_bytes=sum(work.most_bytes or work.bytes for work in works),
        matrix_device_ns=int(ops.device_ns[is_matrix].sum()),
        compute_ns=compute_ns,
        memory_ns=memory_ns,
        floor_ns=floors.total_ns,
        above_ns=floors.above_ns(ops.device_ns),
        mfu=compute_ns / window_ns if compute_ns is not None and is_shared else None,
        mbu=memory_ns / window_ns if memory_ns is not None and is_shared else None,
        bound_ns=None if ceilings is None else floors.bound_ns(ops.device_ns),
        shortest_kernel_ns=shortest_ns,
        ceilings=ceilings,
        parts=part_rows(works, ops.family, ops.device_ns, floors),
        ops=op_rows(measured, charges, ops.call, ops.work, ops.device_ns, floors),
        uncovered=tuple(_uncovered(charges, spent)),
        apart=tuple(_apart(spent)),
        notes=tuple(_notes(ceilings, floors, is_covered=is_covered, is_possible=is_possible)),
    )


@dataclass(frozen=True, slots=True)
class _Ops:
    """The ops that are charged, each once: call, work, family, device time and number of kernels."""

    call: Index
    work: Index
    family: Index
    device_ns: Int64
    num_kernels: Int64

    @classmethod
    def of(cls, charges: Charges, spent: _Spent, measured: Measured) -> "_Ops":
        rows = np.flatnonzero(charges.op >= 0)
        _, first, op = np.unique(charges.op[rows], return_index=True, return_inverse=True)
        device_ns, num_kernels = (np.zeros(len(first), dtype=np.int64) for _ in range(2))
        np.add.at(device_ns, op, spent.dispatch_ns[rows])
        np.add.at(num_kernels, op, measured.dispatches.num_kernels[rows])
        longest = rows[np.lexsort((-spent.dispatch_ns[rows], op))]
        is_first = np.append(True, np.diff(np.sort(op)) > 0)[: len(rows)]
        head = rows[first]
        return cls(charges.call[head], charges.work[head], spent.family[longest[is_first]], device_ns, num_kernels)


def _uncovered(charges: Charges, spent: _Spent) -> Iterable[Uncovered]:
    """Give the reasons of device time without work, the longest first."""
    time_by_reason: Counter[str] = Counter({_GRAPH: spent.total_ns(spent.is_counted & spent.is_graph)})
    rows = np.flatnonzero(spent.is_chargeable & (charges.work < 0))
    for number in np.unique(charges.reason[rows]).tolist():
        own = rows[charges.reason[rows] == number]
        time_by_reason[charges.reasons[number]] += int(spent.dispatch_ns[own].sum())
    return (Uncovered(reason=reason, device_ns=ns) for reason, ns in time_by_reason.most_common() if ns)


def _apart(spent: _Spent) -> Iterable[Uncovered]:
    times = {
        _COLLECTIVE: spent.total_ns(spent.is_meant & spent.is_collective),
        _COPIES: spent.total_ns(spent.is_meant & spent.is_link),
        _UNLINKED: spent.unlinked_ns,
    }
    return (Uncovered(reason=reason, device_ns=ns) for reason, ns in times.items() if ns)


def _notes(ceilings: Ceilings | None, floors: Floors, *, is_covered: bool, is_possible: bool) -> Iterable[str]:
    if ceilings is None:
        yield NO_CEILINGS
        return
    if ceilings.bytes_per_s is None:
        yield "the bandwidth of its memory is not known, so no least time is told"
    for dtype in floors.unknown_dtypes:
        yield f"no ceiling is known for products in {dtype}, so the least time of those is not told"
    if not is_covered:
        yield f"the work of less than {MIN_COVERED:.0%} of the device time is known, so MFU and MBU are not told"
    if floors.num_impossible:
        yield (
            f"faster than the ceilings allow: {floors.num_impossible} calls, whose work is counted too high, or the "
            "ceilings are too low"
        )
    if not is_possible:
        yield "its ops took less than the least time of all together, so MFU and MBU are not told"
