"""Breakdowns as one HTML file: the page of the sidecar without its live parts. It opens offline and fetches nothing.

In: findings on recordings. Out: the document.
"""

from collections.abc import Sequence
from pathlib import Path

from taxbreak_vllm.insight.findings import Findings
from taxbreak_vllm.insight.transition import transitions
from taxbreak_vllm.limit.phases import by_phase
from taxbreak_vllm.model.breakdown import Breakdown, StepBreakdown
from taxbreak_vllm.model.transition import SizedStep
from taxbreak_vllm.output.files import replacing
from taxbreak_vllm.output.page.advice import advice_view
from taxbreak_vllm.output.page.limit import limits_view
from taxbreak_vllm.output.page.named import NamedChains, NamedTimeline
from taxbreak_vllm.output.page.render import render
from taxbreak_vllm.output.page.view import (
    Article,
    PhaseView,
    calibration_words,
    coverage_words,
    facts_of,
    lines_of,
    once,
    phase_view,
    points_of,
)
from taxbreak_vllm.output.text.breakdown import shown_step
from taxbreak_vllm.output.text.headline import step_sentence
from taxbreak_vllm.taxes.add import add_steps
from taxbreak_vllm.taxes.recording import Recording
from taxbreak_vllm.taxes.terms import Terms

MAX_TIMELINES = 4  # steps drawn instant by instant, of about 200 kB each
MAX_LINES = 200


class HtmlPage:
    """A page being made, an article for each recording."""

    def __init__(self) -> None:
        self._articles: list[Article] = []

    def add(self, findings: Findings) -> None:
        """Add what the page shows of a recording."""
        self._articles.append(article_of(findings))

    def to_html(self) -> str:
        """Return the document."""
        return render(self._articles)[0]

    def write(self, target: str | Path) -> None:
        """Write the document; raises TaxbreakError where the disk refuses."""
        document = self.to_html()
        with replacing(target) as temporary:
            temporary.write_text(document, encoding="utf-8")


def write_html(breakdowns: Sequence[Breakdown], target: str | Path) -> None:
    """Write breakdowns as one page; the instants of their steps are read from their files, without baselines.

    Raises TaxbreakError where the disk refuses or a trace is gone.
    """
    page = HtmlPage()
    for breakdown in breakdowns:
        with Recording.open(
            breakdown.source.path, Terms(attribution=breakdown.attribution), with_frames=True
        ) as recording:
            page.add(Findings(recording, breakdown))
    page.write(target)


def article_of(findings: Findings) -> Article:
    """Show a breakdown, the instants of its first steps and its chains."""
    breakdown = findings.breakdown
    is_live = any(step.limit or step.limit_reason for step in breakdown.steps)
    drawn = [step.number or 0 for step in breakdown.steps[:MAX_TIMELINES]]
    return Article(
        title=Path(breakdown.source.path).name or "breakdown",
        facts=facts_of(breakdown),
        advice=advice_view(findings.advice),
        phases=tuple(_phases(breakdown)),
        total=breakdown.total,
        steps=tuple(lines_of(breakdown.steps[:MAX_LINES])),
        num_steps=len(breakdown.steps),
        history=tuple(points_of(breakdown.steps)),
        history_is_time=False,
        transitions=transitions(map(SizedStep.of, breakdown.steps)),
        calibration=tuple(calibration_words(breakdown.calibration)),
        coverage=tuple(coverage_words(breakdown.coverage)),
        notes=once([*breakdown.notes, *(note for step in breakdown.steps for note in step.notes)]),
        timelines=tuple(map(NamedTimeline.of, findings.timelines(drawn))),
        fusion=NamedChains.of(findings.chains),
        stacks=findings.stacks.trimmed(),
        limits=limits_view(by_phase(breakdown.steps) if is_live else {}),
        verdict=step_sentence(shown_step(breakdown)) or "",
    )


def _phases(breakdown: Breakdown) -> list[PhaseView]:
    by_phase: dict[str | None, list[StepBreakdown]] = {}
    for step in breakdown.steps:
        by_phase.setdefault(step.phase, []).append(step)
    return [phase_view(steps[0].phase, len(steps), add_steps(steps)) for steps in by_phase.values()]
