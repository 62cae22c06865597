"""What `analyze` does once its words are read: each path opened, measured, handed to exporters, and printed.

Nothing here loads typer, as the shortest of runs is over before that is.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from taxbreak_vllm.cli.opening import opened
from taxbreak_vllm.cli.printing import print_breakdown, print_json, with_advice
from taxbreak_vllm.insight.evidence import with_plain_step
from taxbreak_vllm.insight.findings import Findings
from taxbreak_vllm.model.advice import AdviceReport
from taxbreak_vllm.model.breakdown import Breakdown
from taxbreak_vllm.model.step import Phase
from taxbreak_vllm.output.exporter import Exporter
from taxbreak_vllm.taxes.analyze import choose
from taxbreak_vllm.taxes.terms import Terms

Analyses = Sequence[tuple[Breakdown, AdviceReport]]


def analyses(
    paths: Iterable[Path],
    terms: Terms,
    *,
    phase: Phase | None = None,
    step: str | None = None,
    plain_ns: int | None = None,
    exporters: Iterable[Exporter] = (),
) -> Analyses:
    """Return breakdown and advice of each path, read once for all `exporters`; of the steps chosen alone."""
    found = []
    for path in paths:
        with opened(path, terms) as recording:
            shown = choose(recording.breakdown, phase=phase, step=step)
            findings = Findings(recording, shown if plain_ns is None else with_plain_step(shown, plain_ns))
            for exporter in exporters:
                exporter.add(findings)
            found.append((findings.breakdown, findings.advice))
    return found


def print_analyses(found: Analyses, *, json: bool, top: int = 0) -> None:
    """Print one JSON object, or a table each with `top` rows of its dearest kernels."""
    if json:
        parts = [with_advice(breakdown, advice) for breakdown, advice in found]
        print_json(parts[0] if len(parts) == 1 else b'{"breakdowns":[' + b",".join(parts) + b"]}")
        return
    for breakdown, advice in found:
        print_breakdown(breakdown, advice, top)
