"""From a path to a Breakdown in one call, for Python users."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from taxbreak_vllm.model.breakdown import Attribution, Breakdown
from taxbreak_vllm.model.errors import TraceFormatError
from taxbreak_vllm.model.step import Phase
from taxbreak_vllm.taxes.recording import Recording
from taxbreak_vllm.taxes.terms import Terms
from taxbreak_vllm.trace.kernels import KernelRules

if TYPE_CHECKING:
    from taxbreak_vllm.baselines.store import Baselines


def analyze(
    path: str | Path,
    *,
    floor_ns: int | None = None,
    rules: KernelRules | None = None,
    attribution: Attribution = Attribution.EXCLUSIVE,
    phase: Phase | None = None,
    step: str | None = None,
    baselines: "Baselines | None" = None,
    rank: int | None = None,
) -> Breakdown:
    """Decompose a recorded trace (.json, .json.gz, .json.zst) or a capture (its folder).

    `floor_ns` is a measured T_sys in ns; without it the trace's own quickest launches stand for it. `phase` and `step`
    (a name or, from 0 on, a number) choose the steps to show; total and estimates stay those of the whole trace.
    `rank` chooses one process, from 0 on, of a file that joins several. `baselines` holds what `taxbreak replay` and
    `taxbreak floor` measured where the trace was made.
    Raises TraceFormatError for a file that is missing, damaged, not a trace or without such a step or rank, SpoolError
    for a capture without its StepInfo.
    """
    rules = rules or KernelRules.load()
    terms = Terms(rules=rules, floor_ns=floor_ns, attribution=attribution, baselines=baselines, rank=rank)
    with Recording.open(path, terms) as recording:
        return choose(recording.breakdown, phase=phase, step=step)


def choose(breakdown: Breakdown, *, phase: Phase | None = None, step: str | None = None) -> Breakdown:
    """Show only the steps of a phase, or of a name or number; raises TraceFormatError where there is none."""
    if phase is None and step is None:
        return breakdown
    steps = [
        found
        for number, found in enumerate(breakdown.steps)
        if (phase is None or found.phase == phase) and (step is None or step in (found.name, str(number)))
    ]
    if not steps:
        wanted = " ".join(str(part) for part in (phase, step) if part is not None)
        raise TraceFormatError(f"{breakdown.source.path}: no step {wanted!r} among its {len(breakdown.steps)}")
    return replace(breakdown, steps=tuple(steps))
