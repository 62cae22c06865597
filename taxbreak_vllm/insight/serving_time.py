"""What serving time goes to: how many steps of each phase there were, how long, and how many tokens came of them.

In: the evidence of the recorded phases, and the durations of all plain steps where a server timed them. Out: `Serving`.
Recorded steps are few, and chosen so that rare kinds are among them: they tell shares only where nothing else does.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from taxbreak_vllm.insight.evidence import Evidence
from taxbreak_vllm.insight.plain import Spent
from taxbreak_vllm.model.advice import ServedPhase, Serving
from taxbreak_vllm.model.step import Phase, StepHistogram
from taxbreak_vllm.model.worker import WorkerState


@dataclass(slots=True)
class _Sum:
    num: int = 0
    total_ns: int = 0


def timed_steps(states: Iterable[WorkerState]) -> list[StepHistogram]:
    """Return the durations that add up to the time with work: plain iterations, where there are any, or steps."""
    return [histogram for state in states for histogram in (state.iterations or state.steps)]


def serving_time(found: Sequence[Evidence], timed: Iterable[StepHistogram] = ()) -> Serving | None:
    """Share the serving time out among phases; None where there is none."""
    recorded = {evidence.phase: evidence for evidence in found}
    sums: dict[Phase | None, _Sum] = {}
    for histogram in timed:
        if histogram.phase is not Phase.IDLE and histogram.num_steps:
            one = sums.setdefault(histogram.phase, _Sum())
            one.num += histogram.num_steps
            one.total_ns += histogram.sum_ns
    is_timed = bool(sums)
    if not is_timed:
        sums = {phase: _Sum(len(e.steps), e.plain_total.step_ns) for phase, e in recorded.items()}
    whole_ns, num = sum(one.total_ns for one in sums.values()), sum(one.num for one in sums.values())
    if whole_ns <= 0:
        return None
    phases = sorted(
        (_phase(phase, one, whole_ns, recorded.get(phase)) for phase, one in sums.items()),
        key=lambda served: -served.serving_ratio,
    )
    tokens = {phase: e.per_step(e.total.batch.output_tokens) or 0.0 for phase, e in recorded.items()}
    num_tokens = sum(served.num_steps * tokens.get(served.phase, 0.0) for served in phases)
    host_ns = sum(served.num_steps * served.plain_ns * (served.host_ratio or 0.0) for served in phases)
    return Serving(
        phases=tuple(phases),
        is_timed=is_timed,
        step_ns=whole_ns // num,
        tokens_per_s=num_tokens / (whole_ns / 1e9) if num_tokens else None,
        host_ns_per_token=round(host_ns / num_tokens) if num_tokens else None,
    )


def _phase(phase: Phase | None, one: _Sum, whole_ns: int, evidence: Evidence | None) -> ServedPhase:
    host_ratio = None
    if evidence is not None:
        plain = evidence.plain_total
        host_ratio = plain.ratio(plain.at_most_ns(sum(evidence.host_ns), Spent.HOST))
    return ServedPhase(
        phase=phase,
        serving_ratio=one.total_ns / whole_ns,
        num_steps=one.num,
        plain_ns=one.total_ns // one.num,
        num_recorded=len(evidence.steps) if evidence is not None else 0,
        host_ratio=host_ratio,
    )
