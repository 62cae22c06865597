"""The limits of single steps added up, phase by phase.

In: steps, each with its limit or why it has none. Out: `PhaseLimit`, whose bar sums to the nanosecond, as theirs do.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from taxbreak_vllm.limit.step import bar_of
from taxbreak_vllm.model.breakdown import StepBreakdown, sum_or_none
from taxbreak_vllm.model.limit import Bar, Bound, StepLimit
from taxbreak_vllm.model.limits import PhaseLimit, StepBar
from taxbreak_vllm.model.step import Phase

MAX_NOTES = 20


def step_bar(step: StepBreakdown) -> StepBar:
    """Return what is kept of a step: without a limit all its device time is unknown, what it waited for is not."""
    bar = bar_of(step, None) if step.limit is None else step.limit.bar
    return StepBar(bar=bar, active_ns=step.device.active_ns, limit=step.limit, reason=step.limit_reason)


def by_phase(steps: Iterable[StepBreakdown]) -> Mapping[Phase | None, PhaseLimit]:
    """Add up the steps of a breakdown by their phases, in the order of `Phase`."""
    bars: dict[Phase | None, list[StepBar]] = {phase: [] for phase in (*Phase, None)}
    for step in steps:
        bars.setdefault(step.phase, []).append(step_bar(step))
    return {phase: phase_limit(found) for phase, found in bars.items() if found}


def phase_limit(steps: Sequence[StepBar]) -> PhaseLimit:
    """Add up steps."""
    counted = [(step, step.limit) for step in steps if step.limit is not None]
    bounded = [limit for _, limit in counted if limit.bar.limit_ns]
    bound_ns: Counter[Bound] = Counter()
    for limit in bounded:
        if limit.bound is not None:
            bound_ns[limit.bound] += limit.bar.limit_ns
    active_ns = sum(step.active_ns for step, _ in counted)
    flops, num_bytes, most = (
        _whole(getattr(limit, name) for _, limit in counted) for name in ("flops", "bytes", "most_bytes")
    )
    floors = [limit.floor_ns for limit in bounded if limit.floor_ns is not None]
    return PhaseLimit(
        num_steps=len(steps),
        bar=sum_bars(step.bar for step in steps),
        num_counted=len(counted),
        num_bounded=len(bounded),
        flops=flops,
        bytes=num_bytes,
        most_bytes=most,
        compute_ns=sum_or_none(limit.compute_ns for limit in bounded),
        memory_ns=sum_or_none(limit.memory_ns for limit in bounded),
        floor_ns=(sum(low for low, _ in floors), sum(high for _, high in floors)) if floors else None,
        bound=max(bound_ns, key=lambda bound: bound_ns[bound]) if bound_ns else None,
        bound_ns=dict(bound_ns) if bound_ns else None,
        mfu=_share(bounded, "compute_ns", "mfu"),
        mbu=_share(bounded, "memory_ns", "mbu"),
        flops_per_s=flops / active_ns * 1e9 if flops is not None and active_ns else None,
        bytes_per_s=num_bytes / active_ns * 1e9 if num_bytes is not None and active_ns else None,
        ceilings=_once(limit.ceilings.words for _, limit in counted if limit.ceilings is not None),
        sources={
            key: source
            for _, limit in counted
            if limit.ceilings is not None
            for key, source in limit.ceilings.sources.items()
        },
        notes=_once(note for _, limit in counted for note in limit.notes),
        reasons=_once(step.reason for step in steps if step.limit is None),
    )


def sum_bars(bars: Iterable[Bar]) -> Bar:
    """Add bars part by part."""
    bars = list(bars)
    exposed = dict.fromkeys(part for bar in bars for part in bar.exposed_ns)
    plain = ("window_ns", "limit_ns", "above_ns", "other_idle_ns", "unknown_ns")
    return Bar(
        **{name: sum(getattr(bar, name) for bar in bars) for name in plain},
        exposed_ns={part: sum(bar.exposed_ns.get(part, 0) for bar in bars) for part in exposed},
    )


def _whole(values: Iterable[int | None]) -> int | None:
    """Add what is known of all; None where it is not of one."""
    known = list(values)
    return None if not known or None in known else sum_or_none(known)


def _share(limits: Iterable[StepLimit], time: str, share: str) -> float | None:
    """Return Σ least time over Σ wall time of the steps whose own share is known."""
    known = [limit for limit in limits if getattr(limit, share) is not None]
    window_ns = sum(limit.bar.window_ns for limit in known)
    return sum(getattr(limit, time) for limit in known) / window_ns if window_ns else None


def _once(words: Iterable[str | None]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(filter(None, words)))[:MAX_NOTES]
