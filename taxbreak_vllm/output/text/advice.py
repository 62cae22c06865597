"""Advice as text for people. In: `AdviceReport`. Out: lines, each a sentence or a setting, of any length."""

import re
from collections.abc import Iterator

from taxbreak_vllm.model.advice import Advice, AdviceReport, Per, PhaseAdvice, Serving
from taxbreak_vllm.output.text.wrap import NO_BREAK
from taxbreak_vllm.output.words import duration, one

_BEFORE_QUOTE = re.compile(" (?=')")


def advice_lines(report: AdviceReport) -> Iterator[str]:
    """Say what to change, what it can win at most and what would refute it, or why nothing is advised."""
    hangs = ", on how long a step takes without a profiler" if report.settled_by is not None else ""
    yield f"advice: {report.verdict}{hangs}"
    if report.serving is not None and len(report.serving.phases) > 1:
        yield f"   {_serving(report.serving)}"
    for number, advice in enumerate((*report.advice, *report.conditional), start=1):
        yield from _card(number, advice, report.serving)
    for outcome in report.outcomes:
        yield f"   {outcome.held}: {outcome.words}"
    for reason in report.reasons:
        yield f"   {reason}"
    if report.settled_by is not None:
        yield f"   to settle it: {report.settled_by}"


def _card(number: int, advice: Advice, serving: Serving | None) -> Iterator[str]:
    where = f"{advice.component}, {advice.phase}" if advice.phase else str(advice.component)
    condition = "" if advice.if_plain_above_ns is None else f"{if_long(advice.if_plain_above_ns)}: "
    yield f"{number}. {condition}{advice.change} ({where})"
    yield f"   wins {win_words(advice, serving)}, an upper bound{evidence_words(advice)}"
    yield f"   {prediction_words(advice)}"
    if tokens := token_words(advice, serving):
        yield f"   {tokens}"
    for place, setting in enumerate(advice.settings):
        # it is to be copied: a line may break inside the quotes of JSON, where that is as good as a space
        yield f"   {'set: ' if place == 0 else '     '}{_BEFORE_QUOTE.sub(NO_BREAK, setting)}"
    yield f"   why: {advice.finding}"
    if len(advice.phases) > 1:
        yield from (f"     {phase_words(phase)}" for phase in advice.phases)
    yield f"   wrong if: {advice.refuted_by}"


def token_words(advice: Advice, serving: Serving | None) -> str:
    """Say the bound as a rate of output tokens, where that is known."""
    if advice.tokens_per_s_at_most is None or serving is None or serving.tokens_per_s is None:
        return ""
    return (
        f"tokens: at most {advice.tokens_per_s_at_most:,.0f} a second ({serving.tokens_per_s:,.0f} now),"
        f" {duration(advice.at_most_ns_per_token)} less for each"
    )


def if_long(above_ns: int) -> str:
    """Say for which plain steps conditional advice holds."""
    return f"if the plain step is above {duration(above_ns)}" if above_ns else "however long the plain step is"


def win_words(advice: Advice, serving: Serving | None) -> str:
    """Say what a change is predicted to win, with its interval, and the most that it can win."""
    whole = (
        one(advice.per) if advice.per is not Per.STEP or serving is None else f"a step of {duration(serving.step_ns)}"
    )
    win = advice.predicted
    about = "" if win is None else f"about {duration(win.win_ns)} [{duration(win.low_ns)}, {duration(win.high_ns)}], "
    return f"{about}at most {duration(advice.at_most_ns)} of {whole} ({advice.at_most_ratio:.1%})"


def prediction_words(advice: Advice) -> str:
    """Say what the prediction stands on, or why there is none."""
    win = advice.predicted
    if win is None:
        return f"no prediction: {advice.unpredicted or 'this server makes none'}"
    steps = f"{win.num_steps} recorded step{'s' if win.num_steps > 1 else ''}"
    return f"predicted: {win.win_ratio:.1%}, from {steps} replayed with {win.change}"


def evidence_words(advice: Advice) -> str:
    """Say what that stands on."""
    if advice.num_steps is None:
        return ""
    steps = f"{advice.num_steps} recorded step{'s' if advice.num_steps > 1 else ''}"
    if advice.interval is None:
        return f"; it stands on {steps}, too few for an interval"
    low, high = advice.interval
    ends = dict.fromkeys((f"{low:.1%}", f"{high:.1%}"))
    return f"; {' to '.join(ends)} with 95 %, from {steps}"


def phase_words(phase: PhaseAdvice) -> str:
    """Say what a change can win in one phase."""
    share = "" if phase.serving_ratio is None else f", which is {phase.serving_ratio:.0%} of the serving time"
    return f"{phase.phase or 'steps'}: at most {phase.at_most_ratio:.0%} of it{share}; {phase.num_steps} recorded"


def _serving(serving: Serving) -> str:
    phases = ", ".join(f"{served.phase or 'steps'} {served.serving_ratio:.0%}" for served in serving.phases)
    return f"serving time ({'all steps' if serving.is_timed else 'recorded steps'}): {phases}"
