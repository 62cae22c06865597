"""Breakdowns as one HTML file: the page of the sidecar without its live parts. It opens offline and fetches nothing.

In: breakdowns of traces or captures that are still where they were read. Out: the document.
"""

from collections.abc import Sequence
from pathlib import Path

from taxbreak_vllm.insight.advice import advise
from taxbreak_vllm.insight.fusion import fusion
from taxbreak_vllm.insight.segments import step_timelines
from taxbreak_vllm.model.breakdown import Breakdown, StepBreakdown
from taxbreak_vllm.output.files import replacing
from taxbreak_vllm.output.page.render import render
from taxbreak_vllm.output.page.view import (
    Article,
    PhaseView,
    calibration_words,
    coverage_words,
    facts_of,
    lines_of,
    phase_view,
    points_of,
)
from taxbreak_vllm.taxes.add import add_steps

MAX_TIMELINES = 4  # steps drawn instant by instant, of about 200 kB each
MAX_LINES = 200


def write_html(breakdowns: Sequence[Breakdown], target: str | Path) -> None:
    """Write breakdowns as one page; raises TaxbreakError where the disk refuses or a trace is gone."""
    document = render_html([article_of(breakdown) for breakdown in breakdowns])
    with replacing(target) as temporary:
        temporary.write_text(document, encoding="utf-8")


def render_html(articles: Sequence[Article]) -> str:
    """Return the document."""
    return render(articles)[0]


def article_of(breakdown: Breakdown) -> Article:
    """Show a breakdown and, read from its trace once more, the instants of its first steps and its chains."""
    path = Path(breakdown.source.path)
    chains = fusion(path)
    return Article(
        title=path.name or "breakdown",
        facts=facts_of(breakdown),
        advice=advise([breakdown], fusion=chains),
        phases=tuple(_phases(breakdown)),
        total=breakdown.total,
        steps=tuple(lines_of(breakdown.steps[:MAX_LINES])),
        num_steps=len(breakdown.steps),
        history=tuple(points_of(breakdown.steps)),
        history_is_time=False,
        calibration=tuple(calibration_words(breakdown.calibration)),
        coverage=tuple(coverage_words(breakdown.coverage)),
        notes=tuple(dict.fromkeys([*breakdown.notes, *(note for step in breakdown.steps for note in step.notes)])),
        timelines=tuple(step_timelines(path, numbers=[s.number or 0 for s in breakdown.steps[:MAX_TIMELINES]])),
        fusion=chains,
    )


def _phases(breakdown: Breakdown) -> list[PhaseView]:
    by_phase: dict[str | None, list[StepBreakdown]] = {}
    for step in breakdown.steps:
        by_phase.setdefault(step.phase, []).append(step)
    return [phase_view(steps[0].phase, len(steps), add_steps(steps)) for steps in by_phase.values()]
