"""Which of several like hosts is apart from the others, by how much, and what else is different about it.

In: captures, and facts about the hosts. Out: a level per host, and those beyond what hosts that are alike reach once
in a thousand, with the facts in which they differ.

Two starts of one server on one host differ, so a host is told by all its starts, and the better the more it has. The
spread of hosts is that of the three quarters nearest to the median of all, so that those apart do not widen it; a
median absolute deviation rests on half of them, and finds fewer of those apart. Of fewer hosts than `MIN_LIKE` it tells
too little.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from math import ceil
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from taxbreak_vllm.insight.changes import MIN_CAPTURES, Int, medians, without_slope
from taxbreak_vllm.insight.shifts import MAX_P, Float, centre
from taxbreak_vllm.model.fleet import Difference

MIN_LIKE = 8  # hosts
MIN_APART = 0.03  # less than 3 % is nothing to look for on a host

_NEAREST = 0.75  # of the hosts: as many as are alike, at the least
_SIGMA = 1.647  # of a normal distribution, in root mean squares of the nearest three quarters
_LEAST_SPREAD = 0.003  # three thousandths: hosts that are alike are no nearer than that
_MOST_TOLD = 0.8  # of the like hosts have a value: it is the usual one
_MAX_TABLED = 64
_NUM_DRAWN = 1_000_000
_FREEDOM = 8  # of Student's t: levels of real servers have longer tails than normal ones
_STARTS = (1, 2)  # whose centre has shorter ones; captures that vary much leave that of more as long as that of two
_MIN_RANKED = 5  # starts: of fewer the median of pairwise averages has longer tails than the mean
_SPREAD_OF_MEDIAN = 1.2533 * 1.4826  # of a median of n, in median absolute deviations of one, over the root of n


class Levels(NamedTuple):
    """Of each host, (hosts,): how far it is from the middle of all and the standard error of that, both of logarithms.

    `num_starts` is how many starts of a server tell of it.
    """

    level: Float
    error: Float
    num_starts: Int


def host_levels(value: Float, size: Float, kind: Int, start: Int, host: Int, num_hosts: int) -> Levels:
    """Return how far each host is from the middle of all.

    Of each capture, (captures,): `value`, the logarithm of a time, NaN where it is not known; `size`, how large its
    batch was (log2); `kind`, which captures it is compared with; and the codes of the `start` of a server that made it
    and of its `host`. A start has the median of how far its captures of a kind are from the middle of the hosts, and of
    these the median over kinds; a host has the mean of its starts, of many the median of pairwise averages, which one
    that is odd moves little. A kind tells where `MIN_LIKE` hosts have captures enough of it. NaN for a host without.
    """
    known = np.isfinite(value)
    level, error, num_starts = np.full(num_hosts, np.nan), np.full(num_hosts, np.nan), np.zeros(num_hosts, np.int64)
    if not known.any():
        return Levels(level, error, num_starts)
    value, size, host = value[known], size[known], host[known]
    starts, start = np.unique(start[known] * num_hosts + host, return_inverse=True)
    host_of = starts % num_hosts
    pairs, pair = np.unique(kind[known] * len(starts) + start, return_inverse=True)
    value = without_slope(size, value, pair)
    middle, count = medians(pair, value, len(pairs))
    within = float(np.median(medians(pair, np.abs(value - middle[pair]), len(pairs))[0]))
    code, own = pairs // len(starts), pairs % len(starts)
    enough = count >= MIN_CAPTURES
    code, own, middle, count = code[enough], own[enough], middle[enough], count[enough]
    off = middle - _middles(code, host_of[own], middle)
    tells = np.isfinite(off)
    levels, _ = medians(own[tells], off[tells], len(starts))
    num = np.bincount(own[tells], count[tells], len(starts))
    told = np.flatnonzero(num)
    order = told[np.argsort(host_of[told], kind="stable")]
    hosts, begins = np.unique(host_of[order], return_index=True)
    of_hosts = np.split(order, begins[1:]) if len(order) else []
    level[hosts] = [_centre(levels[which]) for which in of_hosts]
    apart = _between(levels, level, of_hosts, hosts)
    variance = np.maximum(apart**2, (_SPREAD_OF_MEDIAN * within) ** 2 / np.maximum(1, num))
    error[hosts] = [float(np.sqrt(variance[which].mean() / len(which))) for which in of_hosts]
    num_starts[hosts] = [len(which) for which in of_hosts]
    return Levels(level, error, num_starts)


def _centre(levels: Float) -> float:
    return centre(levels) if len(levels) >= _MIN_RANKED else float(levels.mean())


def _middles(kind: Int, host: Int, middle: Float) -> Float:
    """Return, for each start's median of a kind, the median of the hosts; NaN where fewer than `MIN_LIKE` tell."""
    if not len(kind):
        return middle
    num_hosts = int(host.max()) + 1
    pairs, pair = np.unique(kind * num_hosts + host, return_inverse=True)
    kinds, code = np.unique(pairs // num_hosts, return_inverse=True)
    of_host, _ = medians(pair, middle, len(pairs))
    of_kind, num = medians(code, of_host, len(kinds))
    of_kind[num < MIN_LIKE] = np.nan
    found: Float = of_kind[code][pair]
    return found


def _between(levels: Float, level: Float, of_hosts: Sequence[Int], hosts: Int) -> float:
    """Return the standard deviation of starts of one host, as hosts with several tell of it; 0 where none has."""
    several = [(at, which) for at, which in zip(hosts, of_hosts, strict=True) if len(which) > 1]
    if not several:
        return 0.0
    off = [(levels[which] - level[at]) * np.sqrt(len(which) / (len(which) - 1)) for at, which in several]
    return float(_spread(np.concatenate(off)))


def scores(level: Float, error: Float | None = None) -> Float:
    """Return how far each level (a logarithm) is from the median of all, in robust standard deviations.

    `error` is the standard error of each, None where all are known alike: one that is worth less than most is believed
    less. NaN where a level is not known, or of fewer than `MIN_LIKE`.
    """
    known = np.isfinite(level)
    found = np.full(len(level), np.nan)
    if known.sum() < MIN_LIKE:
        return found
    off = level[known] - np.median(level[known])
    spread = max(_LEAST_SPREAD, float(_spread(off)))
    own = np.zeros(int(known.sum())) if error is None else error[known] ** 2
    extra = np.maximum(0.0, own - np.median(own))
    found[known] = off / np.sqrt(spread**2 + extra)
    return found


def is_apart(level: Float, error: Float | None = None, num_starts: Int | None = None) -> NDArray[np.bool_]:
    """Tell the hosts that are apart: beyond chance, and by `MIN_APART` at least.

    `num_starts` is how many starts of a server each level is the centre of, None where each is of one.
    """
    score = scores(level, error)
    known = np.isfinite(score)
    if not known.any():
        return known
    off = np.abs(np.expm1(level - np.median(level[np.isfinite(level)])))
    own = np.ones(len(level), np.int64) if num_starts is None else np.maximum(1, num_starts)
    least = np.zeros(len(level))
    for num in np.unique(own[known]).tolist():
        least[own == num] = threshold(int(known.sum()), num)
    found: NDArray[np.bool_] = known & (np.abs(np.nan_to_num(score)) > least) & (off >= MIN_APART)
    return found


@lru_cache(maxsize=_MAX_TABLED * len(_STARTS))
def _threshold(num: int, num_starts: int) -> float:
    draw = np.random.default_rng(num)
    levels = np.zeros((_NUM_DRAWN // num, num))
    for _ in range(num_starts):
        levels += draw.standard_t(_FREEDOM, levels.shape)
    off = levels - np.median(levels, axis=1, keepdims=True)
    return float(np.quantile(np.abs(off) / _spread(off)[:, None], 1 - MAX_P))


def _spread(off: Float) -> Float:
    """Return a robust standard deviation of distances from the middle, over the last axis."""
    nearest = np.sort(np.abs(off), axis=-1)[..., : ceil(_NEAREST * off.shape[-1])]
    spread: Float = _SIGMA * np.sqrt(np.mean(nearest**2, axis=-1))
    return spread


def threshold(num: int, num_starts: int = 1) -> float:
    """Return the score that one of `num` like levels exceeds once in a thousand, as drawn.

    The fewer there are, and the fewer starts of a server each is the centre of, the higher it is.
    """
    return _threshold(min(num, _MAX_TABLED), max(each for each in _STARTS if each <= num_starts))


def differences(
    facts: Mapping[str, Sequence[str | None]], numbers: Mapping[str, Sequence[float | None]], own: int
) -> Iterator[Difference]:
    """Yield what is different about one of several like hosts.

    Of `facts` (words) a value that is not the one that four of five others have; of `numbers` one that is above all
    but one in twenty of the others and twice their median, or below and half of it.
    """
    for name, values in facts.items():
        others = [value for place, value in enumerate(values) if place != own and value]
        if not others or not values[own]:
            continue
        usual, count = Counter(others).most_common(1)[0]
        if values[own] != usual and count >= _MOST_TOLD * len(others):
            yield Difference(fact=name, own=str(values[own]), others=usual, num_others=count)
    for name, column in numbers.items():
        mine = column[own]
        rest = np.array([value for place, value in enumerate(column) if place != own and value is not None])
        if mine is None or len(rest) < MIN_LIKE - 1:
            continue
        low, middle, high = np.quantile(rest, [0.05, 0.5, 0.95]).tolist()
        if (mine > high and mine > 2 * middle + 0.01) or (mine < low and mine < middle / 2 - 0.01):
            yield Difference(fact=name, own=f"{mine:.3g}", others=f"{middle:.3g}", num_others=len(rest))
