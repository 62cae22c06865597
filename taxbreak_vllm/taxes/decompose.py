"""Put a trace together: columns → spans → taxes → a `Breakdown` with one StepBreakdown a step, and the total.

The sums over steps are in `sums`, the equations in `equations`, what differs between devices in `gpu` and `cpu`.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from taxbreak_vllm.model.breakdown import Breakdown, Source
from taxbreak_vllm.taxes import cpu, gpu
from taxbreak_vllm.taxes.evidence import evidence_of, judged, notes_on, spoiled_by, without
from taxbreak_vllm.taxes.figures import Judged, summarize
from taxbreak_vllm.taxes.measured import Measured
from taxbreak_vllm.taxes.surroundings import Surroundings
from taxbreak_vllm.taxes.terms import Terms
from taxbreak_vllm.taxes.total import Totals
from taxbreak_vllm.trace.backend import Backend
from taxbreak_vllm.trace.events import Events
from taxbreak_vllm.trace.large.spill import SpilledEvents
from taxbreak_vllm.trace.parts import Part
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
    from taxbreak_vllm.taxes.parts import measure_parts  # what a small trace need not load

    sample = gpu.sample if backend.has_launches else cpu.sample
    return measure_parts(
        trace,
        survey,
        backend,
        lambda part, around: sample(part, terms, around),
        lambda events, around: measure(events, terms, around, op_cost_ns=op_cost_ns),
    )


def add_up(parts: Parts, head: Events, survey: TraceSurvey, source: Source) -> Breakdown:
    """Sum measured parts over their steps and over the trace as a whole."""
    totals, notes, basis = Totals(survey.whole, head.threads), [], None
    found: list[Judged] = []
    for part, measured, part_notes in parts:
        totals.add(measured, part)
        found += summarize(measured, part.windows, len(found))
        notes, basis = part_notes, measured.basis
    assert basis is not None
    steps, total = [step for step, _ in found], totals.total()
    coverage = totals.coverage(head.num_events, head.num_dropped)
    has_launches = basis.backend.has_launches
    evidence = evidence_of(totals.evidence(), head, survey, steps)
    spoiled = spoiled_by(evidence, coverage.activities, has_launches=has_launches)
    if spoiled:
        evidence = replace(evidence, withheld=spoiled)
        steps, total, notes = [without(step, evidence) for step in steps], without(total, evidence), []
    elif survey.is_live and len(found) == 1:  # the others are beside it
        evidence = replace(evidence, withheld=found[0][1].withheld)
    else:
        evidence = judged(evidence, has_launches=has_launches)
    notes = [*notes, *notes_on(evidence, total.window_ns)]
    if head.oddities.has_more:
        notes.append("the file goes on after its end: what stands there was not read")
    if head.is_truncated:
        notes.append("the file ends in the middle: read up to its last whole event")
    return Breakdown(
        source=replace(source, device_type=source.device_type or basis.backend.device_type),
        attribution=basis.attribution,
        coverage=coverage,
        evidence=evidence,
        steps=tuple(steps or [total]),
        total=replace(total, name=None, number=None),
        devices=totals.devices(),
        threads=totals.threads(),
        notes=tuple(notes),
    )
