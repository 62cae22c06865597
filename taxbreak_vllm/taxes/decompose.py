"""Put a trace together: columns → spans → taxes → a `Breakdown` with one StepBreakdown a step, and the total.

The sums over steps are in `sums`, the equations in `equations`, what differs between devices in `gpu` and `cpu`.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from taxbreak_vllm.model.breakdown import Breakdown, Coverage, Source, StepBreakdown, Taxes
from taxbreak_vllm.taxes import cpu, gpu
from taxbreak_vllm.taxes.figures import summarize
from taxbreak_vllm.taxes.measured import Measured
from taxbreak_vllm.taxes.parts import measure_parts
from taxbreak_vllm.taxes.surroundings import Surroundings
from taxbreak_vllm.taxes.terms import Terms
from taxbreak_vllm.taxes.total import Totals
from taxbreak_vllm.trace.backend import Backend
from taxbreak_vllm.trace.events import Events
from taxbreak_vllm.trace.large.spill import SpilledEvents
from taxbreak_vllm.trace.parts import Part
from taxbreak_vllm.trace.steps import StepWindow
from taxbreak_vllm.trace.survey import TraceSurvey

if TYPE_CHECKING:
    from taxbreak_vllm.baselines.store import View

Parts = Iterator[tuple[Part, Measured, list[str]]]


def measure(
    events: Events, terms: Terms, around: Surroundings, *, view: "View | None" = None, op_cost_ns: int = 0
) -> tuple[Measured, list[str]]:
    """Join, classify and apply the equations; return the columns and, for the reader, what stands on an estimate.

    `view` are the baselines of the place the trace was made in, `op_cost_ns` what the profiler added to each op.
    """
    measure_it = gpu.measure if around.backend.has_launches else cpu.measure
    return measure_it(events, terms, around, view, op_cost_ns)


def measure_large(trace: SpilledEvents, survey: TraceSurvey, terms: Terms, backend: Backend, op_cost_ns: int) -> Parts:
    """Measure a trace larger than memory, part by part."""
    sample = gpu.sample if backend.has_launches else cpu.sample
    return measure_parts(
        trace,
        survey,
        backend,
        lambda part, around: sample(part, terms, around),
        lambda events, around: measure(events, terms, around, op_cost_ns=op_cost_ns),
    )


def add_up(parts: Parts, head: Events, whole: StepWindow, source: Source) -> Breakdown:
    """Sum measured parts over their steps and over the trace as a whole."""
    totals, notes, basis = Totals(whole, head.threads), [], None
    steps: list[StepBreakdown] = []
    for part, measured, part_notes in parts:
        totals.add(measured, part)
        steps += summarize(measured, part.windows, len(steps))
        notes, basis = part_notes, measured.basis
    assert basis is not None
    total = totals.total()
    coverage = totals.coverage(head.num_events, head.num_dropped)
    if basis.backend.has_launches and not coverage.launches:
        steps, total = [_host_alone(step) for step in steps], _host_alone(total)
        notes = [_no_device_half(coverage)]
    if totals.num_lost_graphs:
        notes.append(
            f"{totals.num_lost_graphs} graph launches left no recorded node (profiler buffer overflow?): "
            "device time is incomplete, so HDBI is null there"
        )
    if head.is_truncated:
        notes.append("the file ends in the middle: read up to its last whole event")
    return Breakdown(
        source=replace(source, device_type=source.device_type or basis.backend.device_type),
        attribution=basis.attribution,
        coverage=coverage,
        steps=tuple(steps or [total]),
        total=replace(total, name=None, number=None),
        devices=totals.devices(),
        threads=totals.threads(),
        notes=tuple(notes),
    )


def _host_alone(step: StepBreakdown) -> StepBreakdown:
    """Leave of a step what needs no device: a launch of which nothing is known has no tax."""
    return replace(step, taxes=Taxes(), hdbi=None, tklqt_ns=None, tklqt_per_kernel_ns=None)


def _no_device_half(coverage: Coverage) -> str:
    if coverage.activities:
        what = f"none of {coverage.activities} device activities could be joined to a launch"
    else:
        what = f"the device's half is missing: {coverage.launches_without_activity} launches left no activity"
    return f"{what}, so taxes, TKLQT and HDBI are null"
