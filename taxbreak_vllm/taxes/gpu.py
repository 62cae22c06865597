"""Measure events of a device that work is launched to: joins, spans, the three taxes of each dispatch.

In: events and what surrounds them. Out: `Measured`, and notes for the reader on what stands on an estimate.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from taxbreak_vllm.model.baseline import FloorKind, Floors
from taxbreak_vllm.model.breakdown import Attribution, Tier
from taxbreak_vllm.taxes import equations
from taxbreak_vllm.taxes.equations import Spans
from taxbreak_vllm.taxes.evidence import is_floor
from taxbreak_vllm.taxes.kinds import are_library, classify, family_numbers, ops_of
from taxbreak_vllm.taxes.measured import Basis, Measured, TaxColumns
from taxbreak_vllm.taxes.surroundings import Surroundings
from taxbreak_vllm.taxes.terms import Terms
from taxbreak_vllm.taxes.tiers import ReplayedTimes, gather
from taxbreak_vllm.trace.dispatches import Activities, Bool, Dispatches, Host, link
from taxbreak_vllm.trace.events import Events
from taxbreak_vllm.trace.intervals import Index, Int64
from taxbreak_vllm.trace.kernels import KernelClass
from taxbreak_vllm.trace.parts import Part
from taxbreak_vllm.trace.signatures import sign
from taxbreak_vllm.trace.timeline import DeviceTimeline, partition_host

if TYPE_CHECKING:
    from taxbreak_vllm.baselines.store import View


def measure(
    events: Events, terms: Terms, around: Surroundings, view: "View | None", op_cost_ns: int
) -> tuple[Measured, list[str]]:
    """Join, classify and apply the equations; `view` are the baselines of the place the trace was made in."""
    host, activities, dispatches = link(events)
    op = ops_of(events, activities, dispatches)
    kinds, kind = classify(events, activities, op, terms.rules.classify)
    i_lib = are_library(kinds)[kind[dispatches.first]] & ~dispatches.is_graph
    is_kernel_launch = dispatches.num_kernels > 0

    partition = partition_host(host)
    spans = equations.spans(host, dispatches, partition, around.starts(host, dispatches), around.pauses(host))
    spans = around.completed(spans, host, dispatches)
    replayed = _look_up(events, host, activities, dispatches, kinds, kind, terms, view)
    base_ns = around.t_base(lambda: _t_base(dispatches, spans, i_lib, replayed))
    ct_ns = None if base_ns is None else equations.delta_ct(spans.t_dispatch, i_lib, base_ns, replayed.dispatch_ns)
    if ct_ns is not None:
        library = equations.library_spans(partition, dispatches, ct_ns)
        del partition  # two at once would be the peak of memory
        partition = partition_host(host, library)
    floors = view.floors if view else None
    measured_ns = terms.floor_ns
    if measured_ns is None and floors:
        measured_ns = floors.median_ns(FloorKind.KERNEL, 1)
    sys_ns = quickest_ns = measured_ns
    if sys_ns is None:
        quickest_ns = around.t_sys(lambda: equations.t_sys(activities, dispatches))
        sys_ns = quickest_ns if is_floor(quickest_ns) else None
    device = around.device(activities)
    measured = Measured(
        events=events,
        basis=Basis(around.backend, floor_ns=sys_ns, op_cost_ns=op_cost_ns),
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
        taxes=TaxColumns(
            delta_ft_ns=equations.observed(equations.delta_ft(spans, ct_ns), spans.num_ops, op_cost_ns),
            delta_ct_ns=ct_ns,
            delta_kt_ns=None
            if sys_ns is None
            else equations.delta_kt(is_kernel_launch, _floor(dispatches, sys_ns, floors)),
            delta_kt_excess_ns=None if sys_ns is None else equations.delta_kt_excess(replayed.launch_ns, sys_ns),
        ),
        tier=replayed.tier,
        is_denied=replayed.is_denied,
    )
    notes = list(_notes(base_ns, sys_ns, quickest_ns, measured_ns, has_view=view is not None, is_live=around.is_live))
    if terms.attribution is Attribution.PAPER:
        from taxbreak_vllm.taxes import published

        measured = published.attribute(measured, sys_ns)
        notes.append(
            "attribution as published: each kernel from its op's start, device time a sum, nvjet framework-native"
        )
    return measured, notes


def sample(part: Part, terms: Terms, around: Surroundings) -> tuple[Int64, Int64, Int64]:
    """Return what `parts.estimate` wants to know of a part: T_dispatch of native launches, latencies, nothing."""
    host, activities, dispatches = link(part.events)
    op = ops_of(part.events, activities, dispatches)
    kinds, kind = classify(part.events, activities, op, terms.rules.classify)
    i_lib = are_library(kinds)[kind[dispatches.first]]
    spans = equations.spans(host, dispatches, partition_host(host), around.starts(host, dispatches))
    _, is_own = part.owned(activities, dispatches)
    is_native = _has_kernels_of_an_op(dispatches) & ~i_lib
    latencies = equations.idle_latencies(activities, dispatches)[is_own]
    return spans.t_dispatch[is_own & is_native], latencies, np.empty(0, dtype=np.int64)


def _look_up(
    events: Events,
    host: Host,
    activities: Activities,
    dispatches: Dispatches,
    kinds: tuple[KernelClass, ...],
    kind: Index,
    terms: Terms,
    view: "View | None",
) -> ReplayedTimes:
    """Look the dispatches up among the baselines; those of a family stand in for one another."""
    if view is None:
        known = ReplayedTimes.none(len(dispatches), Tier.TRACE if terms.floor_ns is None else Tier.FLOOR)
        return known.floored(dispatches.is_graph | (dispatches.leaf_name < 0))
    signed = sign(events, host, activities, dispatches)
    family = family_numbers(kinds)[kind[dispatches.first]]
    is_signed = signed.of_dispatch >= 0
    alike: list[Index] = [np.where(is_signed, dispatches.leaf_name, -1), np.where(is_signed, family, -1)]
    found = gather(view, signed.distinct, signed.of_dispatch.astype(np.intp), alike, rest=Tier.TRACE)
    return found.floored(~is_signed)


def _floor(dispatches: Dispatches, sys_ns: int, floors: Floors | None) -> Int64:
    """T_sys of each dispatch; of a graph launch T_sys_graph(n) where graphs were measured."""
    floor_ns = np.full(len(dispatches), sys_ns, dtype=np.int64)
    points = floors.graph_points() if floors else ()
    if len(points) > 1:
        floor_ns[dispatches.is_graph] = equations.t_sys_graph(dispatches.num_activities[dispatches.is_graph], points)
    return floor_ns


def _t_base(dispatches: Dispatches, spans: Spans, i_lib: Bool, replayed: ReplayedTimes) -> int | None:
    """T_base over what was replayed, where any framework-native dispatch was, else over the trace."""
    chosen = _has_kernels_of_an_op(dispatches)
    base_ns = equations.t_base(replayed.dispatch_ns, i_lib, chosen & replayed.is_replayed)
    return base_ns if base_ns is not None else equations.t_base(spans.t_dispatch, i_lib, chosen)


def _has_kernels_of_an_op(dispatches: Dispatches) -> Bool:
    return np.asarray((dispatches.num_kernels > 0) & ~dispatches.is_graph & (dispatches.root >= 0))


def _notes(
    base_ns: int | None,
    sys_ns: int | None,
    quickest_ns: int | None,
    measured_ns: int | None,
    *,
    has_view: bool,
    is_live: bool,
) -> Iterable[str]:
    if base_ns is None:
        yield "no framework-native kernel under an op, so T_base and ΔCT cannot be read from this trace"
    elif has_view:
        yield f"T_base {base_ns} ns is the median replayed dispatch of framework-native kernels, if any was"
    else:
        yield f"T_base {base_ns} ns is the median dispatch of this trace's framework-native kernels, not replayed"
    if sys_ns is None and is_live:
        yield (
            "launches of a live server queue behind others, so T_sys is not read from them: without a measured floor"
            " (taxbreak floor, --floor-us) ΔKT and HDBI are null"
        )
    elif sys_ns is None and quickest_ns is not None:
        yield (
            f"this trace's quickest launches took {quickest_ns / 1000:.0f} µs, which is no floor of a launch, "
            "so T_sys, ΔKT and HDBI are null: give --floor-us"
        )
    elif sys_ns is None:
        yield "no launch found its stream idle, so T_sys cannot be read from this trace: give --floor-us"
    elif measured_ns is None:
        yield f"T_sys {sys_ns} ns is read from this trace's quickest launches, not measured: give --floor-us"
