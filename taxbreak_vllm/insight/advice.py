"""What to change: the findings of all phases as one card a change, with a bound on the win over the serving time, and
the win predicted where the recordings tell.

In: breakdowns, of a trace or of the captures of a window, and how long all plain steps were. Out: `AdviceReport`. A
finding counts only where it outweighs all the profiler may have added, and only in recordings with coverage and a
calibration that is not poor; "no action" is an answer. Where nobody timed a plain step, what would be advised hangs on
how long that is.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from taxbreak_vllm.insight.cards import Found, card
from taxbreak_vllm.insight.evidence import Doubt, Evidence, Finding, by_phase, distrust, most_are_poor, recorded_ns
from taxbreak_vllm.insight.plain import Spent
from taxbreak_vllm.insight.rules import RULES
from taxbreak_vllm.insight.serving_time import serving_time
from taxbreak_vllm.insight.transition import transitions
from taxbreak_vllm.machine.limits import Machine
from taxbreak_vllm.model.advice import Advice, AdviceReport, Serving, Verdict
from taxbreak_vllm.model.breakdown import Breakdown
from taxbreak_vllm.model.calibration import USABLE
from taxbreak_vllm.model.step import Phase, StepHistogram
from taxbreak_vllm.model.transition import SizedStep, Transition

if TYPE_CHECKING:
    from taxbreak_vllm.model.fusion import FusionReport

MIN_SERVING_RATIO = 0.02  # of the serving time; a card that cannot win as much is left out
_SETTLED = "time these steps without a profiler, then: taxbreak analyze … --plain-ms MS"
_SETTLES_ITSELF = "plain steps of the same kind are timed by themselves while the server is under load"


def advise(
    breakdowns: Sequence[Breakdown],
    *,
    fusion: "FusionReport | None" = None,
    machine: Machine | None = None,
    timed: Iterable[StepHistogram] = (),
    turns: Sequence[Transition] | None = None,
) -> AdviceReport:
    """Apply every rule to every phase of the breakdowns that can be trusted.

    `timed` are all plain steps of a server (`timed_steps`); without them the recorded ones tell what is served. `turns`
    are the transitions of its phases; without them these breakdowns tell.
    """
    doubts = [distrust(breakdown) for breakdown in breakdowns]
    doubts = _with_poor_phases(breakdowns, doubts)
    said = _counted(doubts)
    trusted = [breakdown for breakdown, doubt in zip(breakdowns, doubts, strict=True) if doubt is None]
    untimed = [b for b, doubt in zip(breakdowns, doubts, strict=True) if doubt is not None and doubt.is_untimed]
    if turns is None:
        turns = transitions(
            SizedStep.of(step, dilation=b.calibration.dilation) for b in trusted or untimed for step in b.steps
        )
    if trusted:
        return _advise(list(by_phase(trusted, fusion, machine, turns)), said, timed)
    if untimed:
        return _if_plain(list(by_phase(untimed, fusion, machine, turns)), untimed, said)
    return AdviceReport(verdict=Verdict.WITHHELD, reasons=said or ("nothing was recorded yet",))


def _advise(found: Sequence[Evidence], said: tuple[str, ...], timed: Iterable[StepHistogram]) -> AdviceReport:
    serving = serving_time(found, timed)
    cards, silent = _cards(
        [(e, [Found(e, one) for rule in RULES if (one := rule(e)) is not None and e.is_worth(one)]) for e in found],
        serving,
    )
    kept = [advice for advice in cards if _most(advice) >= MIN_SERVING_RATIO]
    small = [
        f"{advice.rule} is left out: it {_cannot(advice)} win more than {_most(advice):.1%} of the serving time"
        for advice in cards
        if _most(advice) < MIN_SERVING_RATIO
    ]
    is_doubtful = any(e.is_doubtful for e in silent)
    verdict = Verdict.ACT if kept else Verdict.WITHHELD if is_doubtful else Verdict.NO_ACTION
    reasons = (*map(_why_nothing, silent), *small, *said)
    return AdviceReport(verdict=verdict, advice=tuple(kept), reasons=reasons, serving=serving)


def _most(advice: Advice) -> float:
    return advice.at_most_ratio if advice.predicted is None else advice.predicted.high_ratio


def _cannot(advice: Advice) -> str:
    return "cannot" if advice.at_most_ratio < MIN_SERVING_RATIO else "is predicted not to"


def _if_plain(found: Sequence[Evidence], untimed: Sequence[Breakdown], said: tuple[str, ...]) -> AdviceReport:
    """Advise for every plain step there may be: a rule fires if it is longer than some duration."""
    mean_ns = recorded_ns([step for breakdown in untimed for step in breakdown.steps])
    serving = serving_time(found)
    cards, silent = _cards(
        [
            (e, [Found(e, one, _above_ns(e, one, mean_ns)) for rule in RULES if (one := rule(e)) and e.is_worth(one)])
            for e in found
        ],
        serving,
    )
    hangs_on_it = any(one.if_plain_above_ns for one in cards) or any(_is_open(e) for e in silent)
    verdict = Verdict.CONDITIONAL if cards or hangs_on_it else Verdict.NO_ACTION
    is_live = all(breakdown.source.server_id for breakdown in untimed)
    return AdviceReport(
        verdict=verdict,
        conditional=tuple(cards),
        reasons=(*(_why_nothing_yet(e, mean_ns) for e in silent), *said),
        settled_by=None if not hangs_on_it else _SETTLES_ITSELF if is_live else _SETTLED,
    )


def _above_ns(e: Evidence, finding: Finding, mean_ns: float) -> int:
    """Return the mean plain step from which on a finding weighs; below half of the recorded one nothing is advised."""
    if finding.spent is Spent.DEVICE:
        return 0
    return round(mean_ns * max(1 / USABLE, e.plain_total.weighs_from_ns(finding.weighed_ns)))


def _cards(
    found: Iterable[tuple[Evidence, Sequence[Found]]], serving: Serving | None
) -> tuple[list[Advice], list[Evidence]]:
    """Make one card of each change, in the order of `Advice.place`; and name the silent phases."""
    by_change: defaultdict[tuple[str, str], list[Found]] = defaultdict(list)
    silent = []
    for evidence, findings in found:
        if not findings:
            silent.append(evidence)
        for one in findings:
            by_change[one.finding.rule, one.finding.change].append(one)
    cards = [card(same, serving) for same in by_change.values()]
    return sorted(cards, key=lambda advice: advice.place), silent


def _with_poor_phases(breakdowns: Sequence[Breakdown], doubts: Sequence[Doubt | None]) -> list[Doubt | None]:
    """Leave out all of a phase where most of its recordings are poor: those that are not were picked by chance."""
    of_phase: defaultdict[Phase | None, list[int]] = defaultdict(list)
    for number, breakdown in enumerate(breakdowns):
        of_phase[breakdown.steps[0].phase if breakdown.steps else None].append(number)
    result = list(doubts)
    for phase, numbers in of_phase.items():
        own = [doubts[number] for number in numbers]
        if most_are_poor(own):
            words = f"calibration of {phase or 'these steps'} is poor: most of their recordings are not the plain step"
            worst = next(doubt for doubt in own if doubt is not None and doubt.is_poor)
            for number in numbers:
                result[number] = doubts[number] or Doubt(words, worst.words, is_poor=True)
    return result


def _counted(doubts: Sequence[Doubt | None]) -> tuple[str, ...]:
    """Say once why recordings were left out, and how many."""
    if len(doubts) == 1:
        return tuple(doubt.words for doubt in doubts if doubt is not None)
    kinds = Counter(doubt.kind for doubt in doubts if doubt is not None)
    return tuple(f"{num} of {len(doubts)} recordings left out: {kind}" for kind, num in kinds.items())


def _why_nothing(e: Evidence) -> str:
    waits = f"the device waits for the host {e.percent(e.host_ns)} of the time"
    if e.is_doubtful:
        doubt = f"{e.plain_total.ratio(e.plain_total.doubt_ns):.0%}"
        why = f"too little evidence: {waits}, but {doubt} of it may be the profiler's"
    elif e.plain_total.weighs(sum(e.host_ns)):
        why = f"no rule applies: {waits}, and none of the changes known here would lower that"
    else:
        why = f"nothing to change: {waits}, and no part of its own work stands out"
    return f"{e.phase or 'these steps'}: {why}"


def _is_open(e: Evidence) -> bool:
    host_ns, plain = sum(e.host_ns), e.plain_total
    return not plain.weighs(host_ns) and not plain.never_weighs(host_ns)


def _why_nothing_yet(e: Evidence, mean_ns: float) -> str:
    if not _is_open(e):
        always = "" if e.plain_total.weighs(sum(e.host_ns)) else ", however long a plain step is"
        return _why_nothing(e).replace("nothing to change", f"nothing to change{always}")
    least_ns = mean_ns * e.plain_total.is_small_from_ns(sum(e.host_ns))
    return f"{e.phase or 'these steps'}: nothing to change if the plain step is above {least_ns / 1e6:.2f} ms"
