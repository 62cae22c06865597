"""Measure events of the CPU backend, where ops compute where they are dispatched (methodology section 7).

In: events and what surrounds them. Out: `Measured`, and notes for the reader on what stands on an estimate.
"""

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from taxbreak_vllm.model.breakdown import Attribution, Tier
from taxbreak_vllm.taxes import equations
from taxbreak_vllm.taxes.kinds import are_library, classify, family_numbers, ops_of
from taxbreak_vllm.taxes.measured import Basis, Measured, TaxColumns
from taxbreak_vllm.taxes.surroundings import Surroundings
from taxbreak_vllm.taxes.terms import Terms
from taxbreak_vllm.taxes.tiers import ReplayedTimes, gather
from taxbreak_vllm.trace.cpu import OpCosts, free_ns, link_cpu
from taxbreak_vllm.trace.events import EventKind, Events
from taxbreak_vllm.trace.intervals import Index, Int64, median
from taxbreak_vllm.trace.kernels import KernelRules
from taxbreak_vllm.trace.parts import Part
from taxbreak_vllm.trace.signatures import sign_ops
from taxbreak_vllm.trace.timeline import DeviceTimeline, main_device, partition_host

if TYPE_CHECKING:
    from taxbreak_vllm.baselines.store import View


def measure(
    events: Events, terms: Terms, around: Surroundings, view: "View | None", op_cost_ns: int
) -> tuple[Measured, list[str]]:
    """Split ops into dispatch, front-end and compute, and apply the equations."""
    rules = terms.rules
    of_op = _look_up(events, rules, view)
    free_dispatch_ns = around.free_dispatch(lambda: median(free_ns(events, rules.is_metadata_op)))
    host, activities, dispatches, before = link_cpu(
        events,
        rules.is_metadata_op,
        OpCosts(of_op.dispatch_ns, of_op.library_ns),
        dispatch_ns=free_dispatch_ns or 0,
    )
    op = ops_of(events, activities, dispatches)
    kinds, kind = classify(events, activities, op, lambda name, _: rules.classify_op(name))
    replayed = of_op.of(np.searchsorted(events.rows(EventKind.OP), dispatches.row))
    ct_ns = before.library_end - before.library_start if np.any(of_op.library_ns >= 0) else None
    partition = partition_host(host, (before.library_start, before.library_end))
    spans = equations.cpu_spans(host, dispatches, partition, around.starts(host, dispatches), around.pauses(host))
    spans = around.completed(spans, host, dispatches)
    device = main_device(activities)
    measured = Measured(
        events=events,
        basis=Basis(around.backend, op_cost_ns=op_cost_ns),
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
            # the front-end is not in T_dispatch here: ΔCT was device time before, so ΔFT stays whole
            delta_ft_ns=equations.observed(equations.delta_ft(spans, None), spans.num_ops, op_cost_ns),
            delta_ct_ns=ct_ns,
            delta_kt_ns=np.zeros_like(spans.t_py),
        ),
        tier=replayed.tier,
        is_denied=replayed.is_denied,
    )
    notes = [
        "no device activity: analyzed as the CPU backend, where ΔKT is 0 by definition and TKLQT does not exist",
    ]
    if ct_ns is None:
        notes.append("ΔCT on the CPU backend needs replay; until then a library's front-end counts as compute")
    if view is None or not np.all(replayed.is_replayed):
        notes.append(
            f"the dispatch of an op that was not replayed, nor any like it, is taken as {before.dispatch_ns} ns, "
            "the median of the ops here that compute nothing"
        )
    if terms.attribution is Attribution.PAPER:
        notes.append("the published definitions are those of a GPU's launches: these figures are exclusive")
    return measured, notes


def sample(part: Part, terms: Terms, around: Surroundings) -> tuple[Int64, Int64, Int64]:
    """Return what `parts.estimate` wants to know of a part: how long ops took that compute nothing."""
    nothing = np.empty(0, dtype=np.int64)
    return nothing, nothing, free_ns(part.events, terms.rules.is_metadata_op)


def _look_up(events: Events, rules: KernelRules, view: "View | None") -> ReplayedTimes:
    """Look every op up among the baselines; the front-end is a library's only where the rules say it is one."""
    ops = events.rows(EventKind.OP)
    if view is None:
        return ReplayedTimes.none(len(ops), Tier.TRACE)
    distinct, index = sign_ops(events, ops)
    kinds = tuple(rules.classify_op(name) for name in events.names)
    name = events.name[ops]
    is_computing = ~np.array([rules.is_metadata_op(name) for name in events.names], dtype=bool)[name]
    alike: list[Index] = [np.where(is_computing, name, -1), np.where(is_computing, family_numbers(kinds)[name], -1)]
    found = gather(view, distinct, index, alike, rest=Tier.TRACE)
    return dataclasses.replace(found, library_ns=np.where(are_library(kinds)[name], found.library_ns, 0))
