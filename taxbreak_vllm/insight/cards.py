"""One card a change: what a rule found in each phase, added up over the serving time.

In: findings with the evidence they stand on, of one change, and the serving time. Out: `Advice`.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from taxbreak_vllm.insight.evidence import Evidence, Finding
from taxbreak_vllm.insight.plain import PlainTime, interval
from taxbreak_vllm.insight.wins import merged
from taxbreak_vllm.model.advice import Advice, Per, PhaseAdvice, ServedPhase, Serving, Win


class Found(NamedTuple):
    """A finding and the phase it was made in; `above_ns` is the plain step from which on it weighs, if that is open."""

    evidence: Evidence
    finding: Finding
    above_ns: int | None = None


class _Part(NamedTuple):
    """What a change can win in one phase, and that phase's part in serving (all of it where nothing else is served)."""

    found: Found
    phase: PhaseAdvice
    serving_ratio: float
    num_steps: int
    win_ns: float  # of an average step of the phase


def card(found: Sequence[Found], serving: Serving | None) -> Advice:
    """Add the findings of one change up."""
    parts = [_part(one, serving) for one in found]
    lead = max(parts, key=lambda part: (part.serving_ratio * part.phase.at_most_ratio, part.phase.at_most_ratio))
    rule, per = lead.found.finding, lead.found.finding.per
    is_whole = serving is None or len(serving.phases) == 1
    ratio = sum(part.serving_ratio * part.phase.at_most_ratio for part in parts)
    tokens_per_s = serving.tokens_per_s if serving is not None and lead.found.above_ns is None else None
    at_most_ns = lead.phase.at_most_ns if is_whole else _of_average(parts, serving, per)
    win = _win(parts, at_most_ns, ratio)
    return Advice(
        rule=rule.rule,
        component=rule.component,
        phase=parts[0].phase.phase if len(parts) == 1 else None,
        finding=rule.finding,
        change=rule.change,
        settings=_joined(part.found.finding.settings for part in parts),
        at_most_ns=at_most_ns,
        at_most_ratio=ratio,
        refuted_by=rule.refuted_by,
        per=per,
        phases=tuple(part.phase for part in parts),
        num_steps=sum(part.phase.num_steps for part in parts),
        interval=_interval(parts),
        tokens_per_s_at_most=tokens_per_s / (1 - ratio) if tokens_per_s and ratio < 1 else None,
        at_most_ns_per_token=round(ratio * 1e9 / tokens_per_s) if tokens_per_s else None,
        if_plain_above_ns=min((one.above_ns for one in found if one.above_ns is not None), default=None),
        predicted=win,
        unpredicted=None if win is not None else lead.phase.unpredicted,
    )


def _part(found: Found, serving: Serving | None) -> _Part:
    evidence, finding = found.evidence, found.finding
    plains = finding.iterations or evidence.plain
    plain, num = PlainTime.sum(plains), len(evidence.steps)
    most_ns = plain.at_most_ns(sum(finding.amounts_ns), finding.spent)
    served = _served(evidence, serving)
    ratio = plain.ratio(most_ns)
    bound_ns = most_ns // (finding.tokens or num)
    win = merged(evidence, finding, at_most_ns=bound_ns, at_most_ratio=ratio)
    phase = PhaseAdvice(
        phase=evidence.phase,
        finding=finding.finding,
        num_steps=num,
        at_most_ns=bound_ns,
        at_most_ratio=ratio,
        interval=interval(plains, finding.amounts_ns, finding.spent),
        serving_ratio=None if serving is None else served.serving_ratio if served else 0.0,
        if_plain_above_ns=found.above_ns,
        predicted=win if isinstance(win, Win) else None,
        unpredicted=win if isinstance(win, str) else None,
    )
    is_timed = served is not None and serving is not None and serving.is_timed
    win_ns = ratio * served.plain_ns if served is not None and is_timed else most_ns / num
    share = phase.serving_ratio if phase.serving_ratio is not None else 1.0
    return _Part(found, phase, share, served.num_steps if served else 0, win_ns)


def _served(evidence: Evidence, serving: Serving | None) -> ServedPhase | None:
    phases = () if serving is None else serving.phases
    return next((served for served in phases if served.phase == evidence.phase), None)


def _of_average(parts: Sequence[_Part], serving: Serving | None, per: Per) -> int:
    """Return the bound of an average step of all phases, or of an average token of those that the change is about."""
    won_ns = sum(part.num_steps * part.win_ns for part in parts)
    num_steps = 0 if serving is None else sum(served.num_steps for served in serving.phases)
    tokens = sum(part.num_steps * (part.found.finding.tokens or 0) / len(part.found.evidence.steps) for part in parts)
    num = tokens if per is Per.TOKEN else num_steps
    return int(won_ns / num) if num else 0


def _interval(parts: Sequence[_Part]) -> tuple[float, float] | None:
    """Add the intervals of the phases up; one without may win nothing or all. None where none has one."""
    if all(part.phase.interval is None for part in parts):
        return None
    ends = [(part.serving_ratio, part.phase.interval or (0.0, 1.0)) for part in parts]
    return sum(share * low for share, (low, _) in ends), sum(share * high for share, (_, high) in ends)


def _win(parts: Sequence[_Part], at_most_ns: int, at_most_ratio: float) -> Win | None:
    """Add up what the phases are predicted to win, as their bounds are; of one not known it may be nothing or all."""
    known = [win for part in parts if (win := part.phase.predicted) is not None]
    if not known or not at_most_ratio:
        return None

    def of_all(end: Callable[[Win], float], unknown: Callable[[PhaseAdvice], float]) -> float:
        wins = ((part.serving_ratio, part.phase) for part in parts)
        return sum(share * (end(one.predicted) if one.predicted else unknown(one)) for share, one in wins)

    win_ratio = of_all(lambda win: win.win_ratio, lambda _: 0.0)
    low_ratio = of_all(lambda win: win.low_ratio, lambda _: 0.0)
    high_ratio = of_all(lambda win: win.high_ratio, lambda phase: phase.at_most_ratio)
    each_ns = at_most_ns / at_most_ratio
    return Win(
        win_ns=round(win_ratio * each_ns),
        low_ns=round(low_ratio * each_ns),
        high_ns=round(high_ratio * each_ns),
        win_ratio=win_ratio,
        low_ratio=low_ratio,
        high_ratio=high_ratio,
        change=known[0].change,
        num_steps=sum(win.num_steps for win in known),
    )


def _joined(found: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    """Join settings; of those of one name the one with the largest number stands."""
    by_name: dict[str, str] = {}
    for setting in (setting for settings in found for setting in settings):
        name = setting if setting.startswith("no ") else setting.split()[0]
        by_name[name] = max(by_name.get(name, setting), setting, key=_number)
    return tuple(by_name.values())


def _number(setting: str) -> int:
    return max(map(int, re.findall(r"\d+", setting)), default=0)
