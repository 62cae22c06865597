"""Several breakdowns as one: the steps of a time window, or of a request for steps."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, TypeVar

from taxbreak_vllm.model import Attribution, Breakdown, Calibration, Coverage, Source, Tier, add_steps

MAX_LISTED_STEPS = 200

T = TypeVar("T")


def merge(parts: Sequence[tuple[str, Breakdown]], *, notes: Sequence[str] = ()) -> Breakdown:
    """Add up the breakdowns of single steps, given by step id and newest first.

    The total is over all of them, while only the first `MAX_LISTED_STEPS` are listed, named by their ids. Of the source
    only what they share is kept.
    """
    breakdowns = [breakdown for _, breakdown in parts]
    steps = [replace(breakdown.steps[0], name=step_id) for step_id, breakdown in parts]
    if len(steps) > MAX_LISTED_STEPS:
        notes = (*notes, f"{MAX_LISTED_STEPS} newest of {len(steps)} steps listed, all in total")
    attributions = {breakdown.attribution for breakdown in breakdowns}
    return Breakdown(
        source=_common(Source, [breakdown.source for breakdown in breakdowns]),
        attribution=attributions.pop() if len(attributions) == 1 else Attribution.EXCLUSIVE,
        calibration=_calibration([breakdown.calibration for breakdown in breakdowns]),
        coverage=_coverage(breakdowns),
        steps=tuple(steps[:MAX_LISTED_STEPS]),
        total=add_steps(steps),
        notes=tuple(dict.fromkeys([*notes, *(note for breakdown in breakdowns for note in breakdown.notes)])),
    )


def replay_shares(parts: Sequence[tuple[Mapping[Tier, float], int | None]]) -> dict[Tier, float]:
    """Merge the shares of each tier, each step's weighted by its orchestration time in ns."""
    known = [(shares, weight_ns) for shares, weight_ns in parts if shares and weight_ns]
    total_ns = sum(weight_ns for _, weight_ns in known)
    tiers = [tier for tier in Tier if any(tier in shares for shares, _ in known)]
    return {tier: sum(shares.get(tier, 0.0) * weight_ns for shares, weight_ns in known) / total_ns for tier in tiers}


def _common(kind: type[T], rows: Sequence[T]) -> T:
    """Keep the fields that are the same in all rows, and the default of the others."""
    values: dict[str, Any] = {field.name: {getattr(row, field.name) for row in rows} for field in fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: found.pop() for name, found in values.items() if len(found) == 1})


def _calibration(parts: Sequence[Calibration]) -> Calibration:
    states = {part.state for part in parts}
    return Calibration(
        dilation=median(part.dilation for part in parts),
        residual=median(part.residual for part in parts),
        state=states.pop() if len(states) == 1 else Calibration().state,
    )


def median(values: Iterable[float | None]) -> float | None:
    """Return the median of what is known."""
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _coverage(parts: Sequence[Breakdown]) -> Coverage:
    counts = {
        field.name: sum(getattr(part.coverage, field.name) for part in parts)
        for field in fields(Coverage)
        if field.name not in ("replay", "denied")
    }
    shares = replay_shares([(part.coverage.replay, part.steps[0].taxes.orchestration_ns) for part in parts])
    weights_ns = [part.steps[0].taxes.orchestration_ns or 0 for part in parts]
    denied_ns = sum(part.coverage.denied * weight for part, weight in zip(parts, weights_ns, strict=True))
    return Coverage(**counts, replay=shares, denied=denied_ns / sum(weights_ns) if sum(weights_ns) else 0.0)
