"""By how much a level changed over several hosts, and whether chance explains it.

In: one difference per host, each of its own level after and before. Out: their centre, an interval that holds it nine
times of ten, and how often hosts that did not change would differ as much. A host is the unit, however many captures
it has: captures of one host are alike, and each restart of a server gives it a level of its own.
"""

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from taxbreak_vllm.model.fleet import Shift

Float = NDArray[np.float64]

MAX_P = 1e-3  # of a change that is called one: at most one false alarm in a thousand comparisons
MIN_RATIO = 0.01  # less is no change that anyone would act on
MIN_RANKED = 11  # hosts; of fewer, all on one side are no proof by rank: 2^(1 - n) is above MAX_P
MIN_HOSTS = 3
COVERAGE = 0.9

_MAX_EXACT = 60  # hosts; of more the sum of ranks is as good as normal
_MAX_RANKED = 2000  # values, of which 2 million pairs are averaged; more are thinned, which widens the interval
_TAIL_Z = 1.6448536269514722


def shift_of(differences: Float, *, is_ratio: bool = True) -> Shift:
    """Estimate a change from one difference per host: of logarithms (`is_ratio`), else of the figures themselves.

    From `MIN_RANKED` hosts on: Wilcoxon's signed ranks, the median of pairwise averages (Hodges and Lehmann 1963) and
    its interval. One host in another mood moves neither. Of fewer hosts: Student's t, whose tails are conservative
    where those of the differences are long (Benjamini 1983).
    """
    found = differences[np.isfinite(differences)]
    if len(found) < MIN_HOSTS:
        reason = f"{len(found)} hosts have captures enough before and after; a change takes {MIN_HOSTS}"
        return Shift(num_hosts=len(found), reason=reason)
    low, centre, high, p_value = (_ranked if len(found) >= MIN_RANKED else _student)(found)
    told = math.expm1 if is_ratio else float
    return Shift(num_hosts=len(found), change=told(centre), low=told(low), high=told(high), p_value=p_value)


def is_change(shift: Shift) -> bool:
    """Whether it is more than chance explains, and worth being told."""
    return (
        shift.change is not None
        and shift.p_value is not None
        and (shift.p_value <= MAX_P and abs(shift.change) >= MIN_RATIO)
    )


def centre(values: Float) -> float:
    """Return the median of pairwise averages, each value with itself too (Hodges and Lehmann 1963)."""
    return float(np.median(_averages(values)))


def _ranked(differences: Float) -> tuple[float, float, float, float]:
    """Return the low end, the centre, the high end of the interval and the two-sided p of signed ranks."""
    ranks = _midranks(np.abs(differences))
    positive = float(ranks[differences > 0].sum() + 0.5 * ranks[differences == 0].sum())
    num, total = len(differences), len(differences) * (len(differences) + 1) / 2
    p_value = min(1.0, 2 * _upper_tail(num, math.floor(max(positive, total - positive))))
    averages = _averages(differences)
    outside = _num_outside(min(num, _MAX_RANKED))
    return float(averages[outside]), float(np.median(averages)), float(averages[-1 - outside]), p_value


def _averages(values: Float) -> Float:
    """Return the averages of all pairs, in order; of more than `_MAX_RANKED` values as many of them."""
    if len(values) > _MAX_RANKED:
        values = np.sort(values)[np.linspace(0, len(values) - 1, _MAX_RANKED).round().astype(np.intp)]
    left, right = np.triu_indices(len(values))
    averages: Float = np.sort((values[left] + values[right]) / 2)
    return averages


def _num_outside(num: int) -> int:
    """Return how many of the pairwise averages lie below the interval, and as many above."""
    if num > _MAX_EXACT:
        return max(0, math.floor(num * (num + 1) / 4 - _TAIL_Z * math.sqrt(num * (num + 1) * (2 * num + 1) / 24)))
    below = np.cumsum(_rank_sums(num))
    return max(0, int(np.searchsorted(below, (1 - COVERAGE) / 2, side="right")) - 1)


def _upper_tail(num: int, total: int) -> float:
    """Return how probable it is that the ranks of half the signs sum to so much or more."""
    if num <= _MAX_EXACT:
        return float(_rank_sums(num)[total:].sum())
    deviation = math.sqrt(num * (num + 1) * (2 * num + 1) / 24)
    return 0.5 * math.erfc((total - 0.5 - num * (num + 1) / 4) / deviation / math.sqrt(2))


@lru_cache(maxsize=_MAX_EXACT)
def _rank_sums(num: int) -> Float:
    """Return the probability of each sum of ranks of `num` signs drawn by chance."""
    probability = np.zeros(num * (num + 1) // 2 + 1)
    probability[0] = 1.0
    for rank in range(1, num + 1):
        probability[rank:] += probability[:-rank].copy()
        probability /= 2
    return probability


def _midranks(values: Float) -> Float:
    ordered, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return np.asarray(ends - (counts - 1) / 2, dtype=np.float64)[place] if len(ordered) else values


def _student(differences: Float) -> tuple[float, float, float, float]:
    num, centre = len(differences), float(differences.mean())
    error = float(differences.std(ddof=1)) / math.sqrt(num)
    reach = error * _t_within(COVERAGE, num - 1)
    p_value = 1.0 - _within_t(abs(centre) / error, num - 1) if error else float(centre == 0)
    return centre - reach, centre, centre + reach, p_value


def _within_t(t: float, freedom: int) -> float:
    """Return how probable Student's t is between -t and t (Abramowitz and Stegun 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(freedom))
    cos2, term, series = math.cos(angle) ** 2, 1.0, 0.0
    if freedom % 2:
        for place in range(1, freedom - 1, 2):
            series += term
            term *= cos2 * (place + 1) / (place + 2)
        return 2 / math.pi * (angle + math.sin(angle) * math.cos(angle) * series)
    for place in range(0, freedom - 1, 2):
        series += term
        term *= cos2 * (place + 1) / (place + 2)
    return math.sin(angle) * series


@lru_cache(maxsize=_MAX_EXACT)
def _t_within(probability: float, freedom: int) -> float:
    low, high = 0.0, 1e3
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if _within_t(middle, freedom) < probability else (low, middle)
    return high
