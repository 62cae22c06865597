"""What one kind of server costs beside another, from several starts of both.

In: for each kind and each start, the figures of its rounds. Out: the change, an interval of it, and how often such an
interval holds nothing where there is nothing. Two starts of the same server differ more than two rounds of one, so a
start is the unit: the median of its rounds, as the logarithm of its ratio to the base that was started with it.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log
from statistics import median

_RESAMPLES = 2000
_TRIALS = 400


@dataclass(frozen=True, slots=True)
class Change:
    """A ratio less one: the median over starts, and its 95 % interval by bootstrap."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:+.1%} [{self.low:+.1%}, {self.high:+.1%}]"


def differences(kind: Sequence[Sequence[float]], base: Sequence[Sequence[float]]) -> list[float]:
    """Return the logarithm of the ratio of a kind to the base for each start, from the rounds of both."""
    return [log(median(own) / median(other)) for own, other in zip(kind, base, strict=True)]


def change(found: Sequence[float], *, resamples: int = _RESAMPLES, seed: int = 0) -> Change:
    """Return the median of such differences and the 95 % interval of that."""
    low, high = _interval(found, random.Random(seed), resamples)
    return Change(*(exp(value) - 1 for value in (median(found), low, high)))


def coverage(alike: Sequence[float], *, trials: int = _TRIALS, seed: int = 0) -> float:
    """Return how often the interval holds 0 for differences of alike servers, whose sign is chance.

    Each trial draws as many starts as there are, with signs of its own.
    """
    source = random.Random(seed)
    num_held = 0
    for _ in range(trials):
        drawn = [value * source.choice((-1, 1)) for value in source.choices(alike, k=len(alike))]
        low, high = _interval(drawn, source, _RESAMPLES // 10)
        num_held += low <= 0 <= high
    return num_held / trials


def _interval(values: Sequence[float], source: random.Random, resamples: int) -> tuple[float, float]:
    medians = sorted(median(source.choices(values, k=len(values))) for _ in range(resamples))
    cut = int(0.025 * resamples)
    return medians[cut], medians[-1 - cut]
