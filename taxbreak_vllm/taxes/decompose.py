"""Put a trace together: columns → spans → taxes → a `Breakdown` with one StepBreakdown a step, and the total.

The order of work reads off `decompose` and `measure`; the sums over steps are in `sums`, the equations in `equations`.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from taxbreak_vllm.baselines.store import View
from taxbreak_vllm.model.baseline import FloorKind, Floors
from taxbreak_vllm.model.breakdown import Attribution, Breakdown, Source, StepBreakdown, Tier
from taxbreak_vllm.taxes import equations
from taxbreak_vllm.taxes.figures import summarize
from taxbreak_vllm.taxes.measured import FAMILIES, Measured
from taxbreak_vllm.taxes.tiers import ReplayedTimes, gather
from taxbreak_vllm.taxes.total import Totals
from taxbreak_vllm.trace.cpu import OpCosts, free_ns, link_cpu
from taxbreak_vllm.trace.dispatches import (
    Activities,
    Bool,
    Dispatches,
    Host,
    has_launch_call,
    link,
    require,
    tells_rocm,
)
from taxbreak_vllm.trace.intervals import Index, Int64
from taxbreak_vllm.trace.kernels import KernelClass as KernelKind
from taxbreak_vllm.trace.kernels import KernelRules
from taxbreak_vllm.trace.parts import Part
from taxbreak_vllm.trace.read.calls import Calls
from taxbreak_vllm.trace.read.kineto import EventKind, Events
from taxbreak_vllm.trace.signatures import sign, sign_ops
from taxbreak_vllm.trace.steps import StepWindow, find_steps, whole_trace
from taxbreak_vllm.trace.timeline import DeviceTimeline, main_device, partition_host

if TYPE_CHECKING:
    from taxbreak_vllm.taxes.parts import Rest
    from taxbreak_vllm.trace.large.spill import SpilledEvents


@dataclass(frozen=True, slots=True)
class Replayed:
    """What replay knows of a trace: the calls of its ops, and the baselines of where it was made."""

    calls: Calls
    view: View


def decompose(
    trace: "Events | SpilledEvents",
    *,
    source: Source,
    rules: KernelRules,
    floor_ns: int | None = None,
    attribution: Attribution = Attribution.EXCLUSIVE,
    op_cost_ns: int = 0,
    replayed: Replayed | None = None,
) -> Breakdown:
    """Decompose a trace into ΔFT, ΔCT, ΔKT, device time and HDBI, per step and in total.

    `floor_ns` is a measured T_sys; without it that of `replayed`, else the trace's own quickest launches stand for it.
    `op_cost_ns` is what the profiler added to each op, to be taken off ΔFT. A spilled trace is measured part by part,
    unless with the published definitions, which join by External id across all of it, or with baselines, which join by
    the order of its ops. Raises TraceFormatError where there is nothing to decompose.
    """
    head = trace.head
    apply = partial(
        measure, rules=rules, floor_ns=floor_ns, attribution=attribution, op_cost_ns=op_cost_ns, replayed=replayed
    )
    if not isinstance(trace, Events) and (attribution is Attribution.PAPER or replayed):
        trace = trace.load()
    if isinstance(trace, Events):
        windows, whole = tuple(find_steps(trace)), whole_trace(trace)
        parts = iter([(Part.all_of(trace, windows), *apply(trace, windows or [whole]))])
    else:
        from taxbreak_vllm.taxes.parts import measure_parts  # what a small trace need not load
        from taxbreak_vllm.trace.large.spill import TraceSurvey

        survey = TraceSurvey.of(trace)
        whole = survey.whole
        parts = measure_parts(trace, survey, lambda rest: _sample(rest, rules), apply)
    totals, notes, device_type = Totals(whole, head.threads), [], source.device_type
    steps: list[StepBreakdown] = []
    for part, measured, part_notes in parts:
        totals.add(measured, part)
        steps += summarize(measured, part.windows, len(steps))
        notes, device_type = part_notes, source.device_type or measured.device_type
    total = totals.total()
    if totals.num_lost_graphs:
        notes.append(
            f"{totals.num_lost_graphs} graph launches left no recorded node (profiler buffer overflow?): "
            "device time is incomplete, so HDBI is null there"
        )
    if head.is_truncated:
        notes.append("the file ends in the middle: read up to its last whole event")
    return Breakdown(
        source=dataclasses.replace(source, device_type=device_type),
        attribution=attribution,
        coverage=totals.coverage(head.num_events, head.num_dropped),
        steps=tuple(steps or [total]),
        total=dataclasses.replace(total, name=None, number=None),
        devices=totals.devices(),
        threads=totals.threads(),
        notes=tuple(notes),
    )


def measure(
    events: Events,
    windows: Sequence[StepWindow],
    *,
    rules: KernelRules,
    floor_ns: int | None = None,
    attribution: Attribution = Attribution.EXCLUSIVE,
    op_cost_ns: int = 0,
    replayed: Replayed | None = None,
    rest: "Rest | None" = None,
) -> tuple[Measured, list[str]]:
    """Join, classify and apply the equations; return the columns and, for the reader, what stands on an estimate.

    `rest` is what a part of a trace must be told of the rest; with it there is no `replayed`.
    """
    if rest is None:
        require(events.path, len(events.rows(EventKind.OP, EventKind.KERNEL, EventKind.MEMCPY, EventKind.MEMSET)))
    if rest.is_cpu if rest else is_cpu_backend(events):
        return _measure_cpu(events, windows, rules, op_cost_ns, replayed, rest)
    host, activities, dispatches = link(events)
    op = _ops(events, activities, dispatches)
    kinds, kind = _classify(events, activities, op, rules.classify)
    i_lib = np.array([k.i_lib for k in kinds], dtype=bool)[kind[dispatches.first]] & ~dispatches.is_graph
    is_kernel_launch = dispatches.num_kernels > 0

    partition = partition_host(host)
    starts = rest.starts(host) if rest else equations.step_starts(host, dispatches, windows)
    spans = equations.spans(host, dispatches, partition, starts)
    if rest:
        spans = rest.completed(spans, host, dispatches)
    evidence = _evidence(events, host, activities, dispatches, kinds, kind, floor_ns, replayed)
    base_ns = rest.estimates.base_ns if rest else _t_base(dispatches, spans, i_lib, evidence)
    ct_ns = None if base_ns is None else equations.delta_ct(spans.t_dispatch, i_lib, base_ns, evidence.dispatch_ns)
    if ct_ns is not None:
        library = equations.library_spans(partition, dispatches, ct_ns)
        del partition  # two at once would be the peak of memory
        partition = partition_host(host, library)
    floors = replayed.view.floors if replayed else None
    measured_ns = floors.median_ns(FloorKind.KERNEL, 1) if floors and floor_ns is None else floor_ns
    sys_ns = measured_ns
    if measured_ns is None:
        sys_ns = rest.estimates.sys_ns if rest else equations.t_sys(activities, dispatches)
    device = rest.survey.device if rest else main_device(activities)
    measured = Measured(
        events=events,
        device_type="rocm" if (rest.is_rocm if rest else is_rocm(events)) else "cuda",
        host=host,
        activities=activities,
        dispatches=dispatches,
        partition=partition,
        timeline=DeviceTimeline.of(device, activities, dispatches, host, partition),
        device=device,
        kinds=kinds,
        kind=kind,
        op=op,
        spans=spans,
        ft_ns=equations.observed(equations.delta_ft(spans, ct_ns), spans.num_ops, op_cost_ns),
        op_cost_ns=op_cost_ns,
        ct_ns=ct_ns,
        kt_ns=None if sys_ns is None else equations.delta_kt(is_kernel_launch, _floor(dispatches, sys_ns, floors)),
        excess_ns=None if sys_ns is None else equations.delta_kt_excess(evidence.launch_ns, sys_ns),
        tier=evidence.tier,
        is_denied=evidence.is_denied,
    )
    notes = _cuda_notes(base_ns, sys_ns, measured_ns, replayed)
    if attribution is Attribution.PAPER:
        from taxbreak_vllm.taxes import published

        measured = published.attribute(measured, sys_ns)
        notes.append(
            "attribution as published: each kernel from its op's start, device time a sum, nvjet framework-native"
        )
    return measured, notes


def _evidence(
    events: Events,
    host: Host,
    activities: Activities,
    dispatches: Dispatches,
    kinds: tuple[KernelKind, ...],
    kind: Index,
    floor_ns: int | None,
    replayed: Replayed | None,
) -> ReplayedTimes:
    """Look the dispatches up among the baselines; those of a family stand in for one another."""
    if replayed is None:
        return ReplayedTimes.none(len(dispatches), Tier.TRACE if floor_ns is None else Tier.FLOOR)
    signed = sign(events, host, activities, dispatches, replayed.calls)
    family = np.array([FAMILIES.index(k.family) for k in kinds], dtype=np.intp)[kind[dispatches.first]]
    is_signed = signed.of_dispatch >= 0
    likes: list[Index] = [np.where(is_signed, dispatches.leaf_name, -1), np.where(is_signed, family, -1)]
    return gather(replayed.view, signed.distinct, signed.of_dispatch.astype(np.intp), likes, rest=Tier.TRACE).floored(
        ~is_signed
    )


def _floor(dispatches: Dispatches, sys_ns: int, floors: Floors | None) -> Int64:
    """T_sys of each dispatch; of a graph launch T_sys_graph(n) where graphs were measured."""
    floor_ns = np.full(len(dispatches), sys_ns, dtype=np.int64)
    points = floors.graph_points() if floors else ()
    if len(points) > 1:
        floor_ns[dispatches.is_graph] = equations.t_sys_graph(dispatches.num_activities[dispatches.is_graph], points)
    return floor_ns


def _t_base(dispatches: Dispatches, spans: equations.Spans, i_lib: Bool, evidence: ReplayedTimes) -> int | None:
    """T_base over what was replayed, where any framework-native dispatch was, else over the trace."""
    chosen = (dispatches.num_kernels > 0) & ~dispatches.is_graph & (dispatches.root >= 0)
    base_ns = equations.t_base(evidence.dispatch_ns, i_lib, chosen & evidence.is_replayed)
    return base_ns if base_ns is not None else equations.t_base(spans.t_dispatch, i_lib, chosen)


def _sample(rest: "Rest", rules: KernelRules) -> tuple[Int64, Int64, Int64]:
    """Return what `streaming.estimate` wants to know of a part."""
    part, nothing = rest.part, np.empty(0, dtype=np.int64)
    if rest.is_cpu:
        return nothing, nothing, free_ns(part.events, rules.is_metadata_op)
    host, activities, dispatches = link(part.events)
    kinds, kind = _classify(part.events, activities, _ops(part.events, activities, dispatches), rules.classify)
    i_lib = np.array([k.i_lib for k in kinds], dtype=bool)[kind[dispatches.first]]
    spans = equations.spans(host, dispatches, partition_host(host), rest.starts(host))
    _, is_own = part.owned(activities, dispatches)
    is_native = (dispatches.num_kernels > 0) & ~i_lib & ~dispatches.is_graph & (dispatches.root >= 0)
    return spans.t_dispatch[is_own & is_native], equations.idle_latencies(activities, dispatches)[is_own], nothing


def is_cpu_backend(events: Events) -> bool:
    """Tell a trace of the CPU backend: ops, but no device activity and no launch call that could have made one."""
    if len(events.rows(EventKind.KERNEL, EventKind.MEMCPY, EventKind.MEMSET)) or not len(events.rows(EventKind.OP)):
        return False
    return not has_launch_call(events)


def is_rocm(events: Events) -> bool:
    """Tell a trace of an AMD GPU: by the profiler's versions, or by a call of HIP where they are lost."""
    calls = np.unique(events.name[events.rows(EventKind.RUNTIME)]).tolist()
    return tells_rocm(events.metadata, (events.names[name] for name in calls))


def _measure_cpu(
    events: Events,
    windows: Sequence[StepWindow],
    rules: KernelRules,
    op_cost_ns: int,
    replayed: Replayed | None,
    rest: "Rest | None",
) -> tuple[Measured, list[str]]:
    of_op = _cpu_evidence(events, rules, replayed)
    host, activities, dispatches, front = link_cpu(
        events,
        rules.is_metadata_op,
        OpCosts(of_op.dispatch_ns, of_op.library_ns),
        dispatch_ns=rest.estimates.dispatch_ns if rest else None,
    )
    op = _ops(events, activities, dispatches)
    kinds, kind = _classify(events, activities, op, lambda name, _: rules.classify_op(name))
    evidence = of_op.of(np.searchsorted(events.rows(EventKind.OP), dispatches.row))
    ct_ns = front.library_end - front.library_start if np.any(of_op.library_ns >= 0) else None
    partition = partition_host(host, (front.library_start, front.library_end))
    starts = rest.starts(host) if rest else equations.step_starts(host, dispatches, windows)
    spans = equations.cpu_spans(host, dispatches, partition, starts)
    if rest:
        spans = rest.completed(spans, host, dispatches)
    device = main_device(activities)
    measured = Measured(
        events=events,
        device_type="cpu",
        host=host,
        activities=activities,
        dispatches=dispatches,
        partition=partition,
        timeline=DeviceTimeline.of(device, activities, dispatches, host, partition),
        device=device,
        kinds=kinds,
        kind=kind,
        op=op,
        spans=spans,
        # the front-end is not in T_dispatch here: ΔCT was device time before, so ΔFT stays whole
        ft_ns=equations.observed(equations.delta_ft(spans, None), spans.num_ops, op_cost_ns),
        op_cost_ns=op_cost_ns,
        ct_ns=ct_ns,
        kt_ns=np.zeros_like(spans.t_py),
        excess_ns=None,
        tier=evidence.tier,
        is_denied=evidence.is_denied,
    )
    notes = [
        "no device activity: analyzed as the CPU backend, where ΔKT is 0 by definition and TKLQT does not exist",
    ]
    if ct_ns is None:
        notes.append("ΔCT on the CPU backend needs replay; until then a library's front-end counts as compute")
    if replayed is None or not np.all(evidence.is_replayed):
        notes.append(
            f"the dispatch of an op that was not replayed, nor any like it, is taken as {front.dispatch_ns} ns, "
            "the median of the ops here that compute nothing"
        )
    return measured, notes


def _cpu_evidence(events: Events, rules: KernelRules, replayed: Replayed | None) -> ReplayedTimes:
    """Look every op up among the baselines; the front-end is a library's only where the rules say it is one."""
    ops = events.rows(EventKind.OP)
    if replayed is None:
        return ReplayedTimes.none(len(ops), Tier.TRACE)
    distinct, index = sign_ops(events, ops, replayed.calls)
    kinds = [rules.classify_op(name) for name in events.names]
    name = events.name[ops]
    family = np.array([FAMILIES.index(k.family) for k in kinds], dtype=np.intp)[name]
    is_computing = ~np.array([rules.is_metadata_op(name) for name in events.names], dtype=bool)[name]
    likes: list[Index] = [np.where(is_computing, name, -1), np.where(is_computing, family, -1)]
    found = gather(replayed.view, distinct, index, likes, rest=Tier.TRACE)
    i_lib = np.array([k.i_lib for k in kinds], dtype=bool)[name]
    return dataclasses.replace(found, library_ns=np.where(i_lib, found.library_ns, 0))


def _ops(events: Events, activities: Activities, dispatches: Dispatches) -> Int64:
    """Name what launched each activity: the leaf op, else the launch call; len(events.names) where nothing is known."""
    op = np.full(len(activities.row), len(events.names), dtype=np.int64)
    linked = activities.dispatch >= 0
    of_dispatch = np.where(dispatches.leaf_name >= 0, dispatches.leaf_name, events.name[dispatches.row])
    op[linked] = of_dispatch[activities.dispatch[linked]]
    return op


def _classify(
    events: Events, activities: Activities, op: Int64, classify: Callable[[str, str], KernelKind]
) -> tuple[tuple[KernelKind, ...], Index]:
    """Classify each distinct pair of kernel and op once; return the kinds and, for each activity, which is its own."""
    width = len(events.names) + 1
    pairs, index = np.unique(activities.name * np.int64(width) + op, return_inverse=True)
    names = (*events.names, "")
    return tuple(classify(names[pair // width], names[pair % width]) for pair in pairs.tolist()), index


def _cuda_notes(
    base_ns: int | None, sys_ns: int | None, measured_ns: int | None, replayed: Replayed | None
) -> list[str]:
    notes = []
    if base_ns is None:
        notes.append("no framework-native kernel under an op, so T_base and ΔCT cannot be read from this trace")
    elif replayed is None:
        notes.append(
            f"T_base {base_ns} ns is the median dispatch of this trace's framework-native kernels, not replayed"
        )
    else:
        notes.append(f"T_base {base_ns} ns is the median replayed dispatch of framework-native kernels, if any was")
    if sys_ns is None:
        notes.append("no launch found its stream idle, so T_sys cannot be read from this trace: give --floor-us")
    elif measured_ns is None:
        notes.append(f"T_sys {sys_ns} ns is read from this trace's quickest launches, not measured: give --floor-us")
    return notes
