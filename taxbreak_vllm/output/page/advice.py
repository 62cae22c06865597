"""Advice as the page shows it: a card for each change, those that hang on the plain step too, and what came of changes.

In: `AdviceReport`. Out: `AdviceView`, words and what stands beside them. No figure is computed here.
"""

from dataclasses import dataclass

from taxbreak_vllm.model.advice import Advice, AdviceReport, Held, Outcome, Verdict
from taxbreak_vllm.output.text.advice import (
    evidence_words,
    if_long,
    phase_words,
    prediction_words,
    token_words,
    win_words,
)

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
    prediction: str
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
    """What to change now, what to change if, and what came of earlier changes; `settled_by` would settle an if."""

    title: str
    cards: tuple[Card, ...]
    conditional: tuple[Card, ...]
    closed: tuple[ClosedCard, ...]
    reasons: tuple[str, ...]
    settled_by: str | None

    @property
    def is_anything(self) -> bool:
        """Whether there is a change to name."""
        return bool(self.cards or self.conditional or self.closed)


def advice_view(report: AdviceReport) -> AdviceView:
    """Show a report."""
    return AdviceView(
        title=_title(report),
        cards=tuple(_card(one, report) for one in report.advice),
        conditional=tuple(_card(one, report) for one in report.conditional),
        closed=tuple(_closed(one) for one in report.outcomes),
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


def _card(advice: Advice, report: AdviceReport) -> Card:
    tried = [outcome.held for outcome in report.outcomes if advice.rule in outcome.rules]
    return Card(
        advice=advice,
        win=_sentence(f"wins {win_words(advice, report.serving)}{evidence_words(advice)}"),
        prediction=_sentence(prediction_words(advice)),
        tokens=_sentence(token_words(advice, report.serving)),
        condition="" if advice.if_plain_above_ns is None else _sentence(if_long(advice.if_plain_above_ns)),
        phases=tuple(map(phase_words, advice.phases)) if len(advice.phases) > 1 else (),
        tried=f"changed before: {_HELD_WORDS[tried[0]].lower()}" if tried else "",
    )


def _closed(outcome: Outcome) -> ClosedCard:
    asked = ", ".join(outcome.rules) or "a change nobody advised"
    return ClosedCard(held=outcome.held, title=f"{_HELD_WORDS[outcome.held]}: {asked}", words=outcome.words)


def _sentence(words: str) -> str:
    return words[:1].upper() + words[1:]
