"""Advice as the page shows it: a card for each change, those that hang on the plain step too, and what came of changes.

In: `AdviceReport`. Out: `AdviceView`, words and what stands beside them. No figure is computed here.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from taxbreak_vllm.model.advice import Advice, AdviceReport, Held, Verdict
from taxbreak_vllm.output.text.advice import bound_words, evidence_words, if_long, phase_words, token_words

_HELD_WORDS = {
    Held.HELD: "It held",
    Held.DID_NOT_HOLD: "It did not hold",
    Held.NOT_ENOUGH_YET: "Not known yet",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """One change to try; `condition` is what must be true for it, `tried` what came of it before, if anything."""

    advice: Advice
    win: str
    tokens: str
    condition: str
    phases: tuple[str, ...]
    tried: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosedCard:
    """A change that was made: whether it held, and what was measured."""

    held: Held
    title: str
    words: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AdviceView:
    """What to change now, or if, and what came of earlier changes; `settled_by` would settle an if."""

    title: str
    cards: tuple[Card, ...]
    closed: tuple[ClosedCard, ...]
    reasons: tuple[str, ...]
    settled_by: str | None


def advice_view(report: AdviceReport) -> AdviceView:
    """Show a report."""
    return AdviceView(
        title=_title(report),
        cards=tuple(_cards(report)),
        closed=tuple(
            ClosedCard(
                held=one.held,
                title=f"{_HELD_WORDS[one.held]}: {', '.join(one.rules) or 'a change nobody advised'}",
                words=one.words,
            )
            for one in report.outcomes
        ),
        reasons=report.reasons,
        settled_by=report.settled_by,
    )


def _title(report: AdviceReport) -> str:
    num = len(report.advice) or len(report.conditional)
    changes = f"{num} change{'' if num == 1 else 's'} worth trying"
    match report.verdict:
        case Verdict.ACT:
            return changes
        case Verdict.CONDITIONAL:
            return f"{changes}, if the plain step is long enough" if num else "It hangs on how long the plain step is"
        case Verdict.NO_ACTION:
            return "No action"
        case Verdict.WITHHELD:
            return "No advice yet"


def _cards(report: AdviceReport) -> Iterator[Card]:
    for advice in (*report.advice, *report.conditional):
        tried = [outcome.held for outcome in report.outcomes if advice.rule in outcome.rules]
        yield Card(
            advice=advice,
            win=f"wins {bound_words(advice, report.serving)}{evidence_words(advice)}",
            tokens=token_words(advice, report.serving),
            condition="" if advice.if_plain_above_ns is None else if_long(advice.if_plain_above_ns),
            phases=tuple(map(phase_words, advice.phases)) if len(advice.phases) > 1 else (),
            tried=f"changed before: {_HELD_WORDS[tried[0]].lower()}" if tried else "",
        )
