"""Where each dispatch's baseline comes from: replayed, its family's median, the trace itself, or the floor alone.

In: the signatures of a trace and a `View` of the store. Out: columns of replayed times with the tier of each, for the
equations of `taxes` (methodology sections 6 and 7). Whatever was not replayed in this very environment does not count.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from taxbreak_vllm.model.baseline import Baseline, Outcome
from taxbreak_vllm.model.breakdown import Tier
from taxbreak_vllm.trace.intervals import Index, Int64
from taxbreak_vllm.trace.signatures import Signature

if TYPE_CHECKING:  # it opens SQLite, which most traces do without
    from taxbreak_vllm.baselines.store import View

TIERS = tuple(Tier)
_UNKNOWN = -1


@dataclass(frozen=True, slots=True)
class ReplayedTimes:
    """One value a row (a dispatch; on the CPU backend an op), ns, -1 where unknown.

    `dispatch_ns` is T_dispatch,replayed, `library_ns` a library's front-end (CPU backend), `launch_ns`
    T_launch,replayed. `tier` indexes `TIERS`, int8. `is_denied` marks rows that are never replayed.
    """

    dispatch_ns: Int64
    library_ns: Int64
    launch_ns: Int64
    tier: NDArray[np.int8]
    is_denied: NDArray[np.bool_]

    def of(self, rows: Index) -> "ReplayedTimes":
        """Return those of some of the rows."""
        return ReplayedTimes(
            self.dispatch_ns[rows], self.library_ns[rows], self.launch_ns[rows], self.tier[rows], self.is_denied[rows]
        )

    @classmethod
    def none(cls, count: int, tier: Tier) -> "ReplayedTimes":
        """Know nothing of any row."""
        unknown = np.full(count, _UNKNOWN, dtype=np.int64)
        return cls(
            unknown, unknown, unknown, np.full(count, TIERS.index(tier), dtype=np.int8), np.zeros(count, dtype=bool)
        )

    def floored(self, rows: NDArray[np.bool_]) -> "ReplayedTimes":
        """Put rows that have no dispatch to replay, a graph's or a launch's without an op, on the floor alone."""
        return replace(self, tier=np.where(rows, TIERS.index(Tier.FLOOR), self.tier).astype(np.int8))

    @property
    def is_replayed(self) -> NDArray[np.bool_]:
        """Mark the rows whose own signature was replayed."""
        return np.asarray(self.tier == TIERS.index(Tier.REPLAYED))


def gather(
    view: "View", signatures: Sequence[Signature], of_row: Index, alike: Sequence[Index], *, rest: Tier
) -> ReplayedTimes:
    """Look every row up; `of_row` indexes `signatures`, -1 for a row without one.

    `alike` are the partitions of the rows into groups, the closest first (by op, then by family): a row that was not
    replayed takes the median of those in the first partition where any was. What remains is of the tier `rest`.
    """
    keys = [signature.keys for signature in signatures]
    known = view.get(list(dict.fromkeys(key for own in keys for key in own)))
    found = [[known[key] for key in own if key in known] for own in keys]
    measured = [next((e for e in own if e.outcome is Outcome.MEASURED), None) for own in found]
    denied = np.array([bool(own) and own[-1].outcome is Outcome.DENIED for own in found] + [False])
    columns = np.array([_times(entry) for entry in measured] + [_times(None)], dtype=np.int64)[of_row]
    is_replayed = columns[:, 0] != _UNKNOWN
    tier = np.where(is_replayed, TIERS.index(Tier.REPLAYED), TIERS.index(rest)).astype(np.int8)
    for groups in alike:
        _fill(columns, is_replayed, tier, groups)
    return ReplayedTimes(columns[:, 0], columns[:, 1], columns[:, 2], tier, denied[of_row] & ~is_replayed)


def _times(entry: Baseline | None) -> tuple[int, int, int]:
    if entry is None:
        return _UNKNOWN, _UNKNOWN, _UNKNOWN
    spreads = (entry.dispatch, entry.library, entry.launch)
    dispatch, library, launch = (_UNKNOWN if spread is None else spread.median_ns for spread in spreads)
    return dispatch, library, launch


def _fill(columns: Int64, is_replayed: NDArray[np.bool_], tier: NDArray[np.int8], groups: Index) -> None:
    """Give rows without a time the median of the replayed ones of their group, column by column."""
    family = TIERS.index(Tier.FAMILY)
    open_rows = ~is_replayed & (tier != family)
    for number in np.unique(groups[open_rows & (groups >= 0)]).tolist():
        own = groups == number
        replayed = own & is_replayed
        if not replayed.any():
            continue
        for column in range(columns.shape[1]):
            values = columns[replayed, column]
            values = values[values != _UNKNOWN]
            if len(values):
                columns[own & open_rows, column] = int(np.median(values))
        tier[own & open_rows] = family


def shares(tier_ns: Int64) -> dict[Tier, float]:
    """The share of time that each tier carries, of the time of each in the order of `TIERS`; empty without any."""
    total = int(tier_ns.sum())
    return {tier: int(ns) / total for tier, ns in zip(TIERS, tier_ns.tolist(), strict=True) if ns > 0} if total else {}
