"""How many times as long a worker's steps take under a change: what `whatif` says of captured steps in, factors out."""

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median

import numpy as np

from taxbreak_vllm.workload.steps import Steps
from taxbreak_vllm.workload.task import DECODE, PREFILL, Change, WorkerStep


@dataclass(frozen=True, slots=True)
class Times:
    """A factor, and between what it lies in nine of ten cases."""

    low: float
    middle: float
    high: float


def worker_times(steps: Steps, change: Change) -> dict[str, Times | None]:
    """Return what a worker's steps of each kind take times; None where that is not known. Empty without a change.

    Of an iteration the engine's loop is a part, which `--host` scales by itself: that is taken off both.
    """
    if change.host == 1.0 and change.graph is None:
        return {}
    is_prefill = steps.work[:, 1] > 0
    loop_ns = steps.parts_ns[:, 0] + steps.parts_ns[:, 2]
    found: dict[str, Times | None] = {}
    for kind, of in ((DECODE, ~is_prefill), (PREFILL, is_prefill)):
        usual_ns = float(np.median(loop_ns[of])) if of.any() else 0.0
        each = [*_times(kind, usual_ns, change)]
        low, middle, high = ([getattr(times, name) for times in each] for name in ("low", "middle", "high"))
        found[kind] = Times(min(low), median(middle), max(high)) if each else None
    return found


def _times(kind: str, loop_ns: float, change: Change) -> Iterator[Times]:
    for step in change.worker.steps:
        if step.kind == kind:
            ends_ns = (step.low_ns, step.predicted_ns, step.high_ns)
            yield Times(*(_ratio(step, ns, loop_ns, change.host) for ns in ends_ns))


def _ratio(step: WorkerStep, ns: int, loop_ns: float, host: float) -> float:
    before, after = float(step.plain_ns), float(ns)
    if step.is_iteration and loop_ns < before:
        before, after = before - loop_ns, after - loop_ns * host
    return max(0.0, after / before)


def drawn(times: Times | None, seed: int, num: int) -> float:
    """Return the factor of one of `num` draws: evenly over where it lies, its middle in the middle."""
    if times is None:
        return 1.0
    place = 2 * ((seed + 0.5) / num - 0.5)
    end = times.high if place > 0 else times.low
    return times.middle + abs(place) * (end - times.middle)
