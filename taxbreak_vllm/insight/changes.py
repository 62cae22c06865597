"""What changed at a deploy, or at a time that no deploy explains: levels of hosts before and after.

In: the captures of one kind of step (model, GPU, phase, graph mode, batch bucket) as columns. Out: for each pair of
versions that hosts went between, and for the time at which a level changes most, the change over the hosts.

Each host has a level of its own, and each start of a server another one, so differences are taken within a host and
judged across hosts (`shifts`). Within a bucket of batches a figure grows with the batch: its slope is taken off first,
so that another load is no change.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from taxbreak_vllm.insight.shifts import MAX_P, MIN_HOSTS, Float, shift_of
from taxbreak_vllm.model.fleet import Shift

Int = NDArray[np.int64]

MIN_CAPTURES = 3  # on each side, of a host that is compared
MIN_BINS = 12  # of time, to look for a change at a time that nobody named

_MAX_BINS = 48
_LEAST_BINS = 2  # on each side of such a time
_FEW_DRAWS, _NUM_DRAWS = 500, 9_500


@dataclass(frozen=True, slots=True)
class Observations:
    """Captures of one kind of step, one entry each.

    `host` (the unit that is compared), `place` (a GPU of one, which has one version at a time) and `version` are codes
    from 0 on, `at_ns` is Unix time, `size` how large the batch was (log2, or all 0), `value` a figure: the logarithm of
    a time, or an HDBI; NaN where it is not known.
    """

    host: Int
    place: Int
    version: Int
    at_ns: Int
    size: Float
    value: Float

    def taken(self, chosen: NDArray[np.bool_]) -> "Observations":
        """Return some of them."""
        return Observations(*(getattr(self, name)[chosen] for name in self.__slots__))


@dataclass(frozen=True, slots=True)
class Move:
    """A change of level: from one version to another (codes; both None where a time alone divides), and when.

    `levels` are the medians over hosts before and after; `num_hosts` moved, those in `shift` have captures enough.
    """

    before: int | None
    after: int | None
    from_ns: int
    to_ns: int
    levels: tuple[float, float]
    shift: Shift


def moves_at_deploys(seen: Observations, *, is_ratio: bool = True) -> Iterator[Move]:
    """Yield what changed from version to version, for each pair that any place went between."""
    seen = seen.taken(np.isfinite(seen.value))
    if not len(seen.value):
        return
    order = np.lexsort((seen.at_ns, seen.place))
    place, version, at_ns = seen.place[order], seen.version[order], seen.at_ns[order]
    begins = np.ones(len(order), dtype=bool)
    begins[1:] = (place[1:] != place[:-1]) | (version[1:] != version[:-1])
    stretch = np.cumsum(begins) - 1
    starts = np.flatnonzero(begins)
    ends = np.append(starts[1:], len(order)) - 1
    value = without_slope(seen.size[order], seen.value[order], stretch)
    level, count = medians(stretch, value, len(starts))
    host = seen.host[order][starts]
    follows = np.flatnonzero(place[starts][1:] == place[starts][:-1])  # a stretch that another one of its place follows
    pairs = np.stack([version[starts][follows], version[starts][follows + 1]])
    for before, after in np.unique(pairs, axis=1).T.tolist():
        first = follows[(pairs[0] == before) & (pairs[1] == after)]
        enough = first[(count[first] >= MIN_CAPTURES) & (count[first + 1] >= MIN_CAPTURES)]
        yield Move(
            before=before,
            after=after,
            from_ns=int(at_ns[ends[first]].min()),
            to_ns=int(at_ns[starts[first + 1]].max()),
            levels=_levels(level[enough], level[enough + 1]),
            shift=shift_of(_by_host(host[enough], level[enough + 1] - level[enough]), is_ratio=is_ratio),
        )


def move_over_time(seen: Observations, *, is_ratio: bool = True, seed: int = 0) -> Move | None:
    """Return the largest change at a time that no version explains, or None where there is none beyond chance.

    What is left of each place's level under each version is put into bins of time; the bin before which its mean over
    places differs most from after is held to bins in orders drawn by chance, less what one bin tells of the next
    (a CUSUM, its spread widened for autocorrelation: Robbins et al. 2011).
    """
    seen = seen.taken(np.isfinite(seen.value))
    num_bins = min(_MAX_BINS, len(seen.value) // MIN_CAPTURES)
    if num_bins < MIN_BINS or seen.at_ns.max() == seen.at_ns.min():
        return None
    own, stretch = np.unique(seen.place * (seen.version.max() + 1) + seen.version, return_inverse=True)
    value = without_slope(seen.size, seen.value, stretch)
    level, _ = medians(stretch, value, len(own))
    edges = np.linspace(seen.at_ns.min(), seen.at_ns.max(), num_bins + 1)
    at = np.clip(np.searchsorted(edges, seen.at_ns, side="right") - 1, 0, num_bins - 1)
    bins, count = medians(at, value - level[stretch], num_bins)
    filled = np.flatnonzero(count >= MIN_CAPTURES)
    if len(filled) < MIN_BINS:
        return None
    cut, is_beyond = _cut(bins[filled], seed)
    if not is_beyond:
        return None
    cut_ns = int(edges[filled[cut]])
    is_after = seen.at_ns >= cut_ns
    before, num_before = medians(stretch[~is_after], value[~is_after], len(own))
    after, num_after = medians(stretch[is_after], value[is_after], len(own))
    both = (num_before >= MIN_CAPTURES) & (num_after >= MIN_CAPTURES)
    host = np.zeros(len(own), dtype=np.int64)
    host[stretch] = seen.host
    shift = shift_of(_by_host(host[both], (after - before)[both]), is_ratio=is_ratio)
    levels = _levels(before[both], after[both])
    return Move(None, None, int(edges[max(0, filled[cut] - 1)]), cut_ns, levels, shift)


def medians(group: NDArray[np.integer], value: Float, num_groups: int) -> tuple[Float, Int]:
    """Return the median of each group, NaN of an empty one, and how many values it has."""
    order = np.lexsort((value, group))
    count = np.bincount(group, minlength=num_groups).astype(np.int64)
    start = np.cumsum(count) - count
    found = np.full(num_groups, np.nan)
    has = count > 0
    low, high = start[has] + (count[has] - 1) // 2, start[has] + count[has] // 2
    found[has] = (value[order][low] + value[order][high]) / 2
    return found, count


def without_slope(size: Float, value: Float, group: NDArray[np.integer]) -> Float:
    """Take off what a figure grows by with the batch, as all groups together tell of it from within themselves."""
    num = int(group.max()) + 1
    count = np.bincount(group, minlength=num)
    x = size - (np.bincount(group, size, num) / count)[group]
    y = value - medians(group, value, num)[0][group]
    near = np.abs(y) <= 6 * np.median(np.abs(y)) if len(y) else np.zeros(0, dtype=bool)  # a stall tells of no batch
    spread = float((x[near] ** 2).sum())
    slope = float((x[near] * y[near]).sum()) / spread if spread > 1e-12 else 0.0
    left: Float = value - slope * (size - size.mean())
    return left


def _by_host(host: Int, difference: Float) -> Float:
    """Return one difference a host, the median over its places."""
    own, index = np.unique(host, return_inverse=True)
    return medians(index, difference, len(own))[0]


def _levels(before: Float, after: Float) -> tuple[float, float]:
    return (float(np.median(before)), float(np.median(after))) if len(before) >= MIN_HOSTS else (np.nan, np.nan)


def _cut(bins: Float, seed: int) -> tuple[int, bool]:
    """Return the bin with which another level most likely begins, and whether chance does not explain it."""
    num = len(bins)
    seen = _cusums(bins[None, :])[0]
    cut = int(seen.argmax()) + _LEAST_BINS
    left = np.concatenate([bins[:cut] - bins[:cut].mean(), bins[cut:] - bins[cut:].mean()])
    power = float((left**2).sum())
    tells = float((left[1:] * left[:-1]).sum()) / power if power else 0.0
    tells = min(0.9, max(0.0, tells + (1 + 3 * tells) / num))  # few bins understate it (Kendall 1954)
    held = seen.max() * np.sqrt((1 - tells) / (1 + tells))
    draw = np.random.default_rng(seed)
    as_far = 0
    for num_draws in (_FEW_DRAWS, _NUM_DRAWS):  # most are no change, which a few draws tell
        orders = draw.permuted(np.broadcast_to(bins, (num_draws, num)), axis=1)
        as_far += int((_cusums(orders).max(axis=1) >= held).sum())
        if as_far > MAX_P * (_FEW_DRAWS + _NUM_DRAWS):
            return cut, False
    return cut, True


def _cusums(rows: Float) -> Float:
    """Return how far the mean before each bin is from that after it, in units of its spread: (rows, cuts)."""
    num = rows.shape[1]
    place = np.arange(_LEAST_BINS, num - _LEAST_BINS + 1)
    before = np.cumsum(rows, axis=1)[:, place - 1]
    whole = rows.sum(axis=1, keepdims=True)
    apart: Float = np.abs(before / place - (whole - before) / (num - place)) / np.sqrt(1 / place + 1 / (num - place))
    return apart
