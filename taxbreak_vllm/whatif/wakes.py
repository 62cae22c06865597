"""Threads that are woken over and over by something on another thread, as a server's are by tokens and by its engine.

In: points of the host. Out: laws, each "so long after the last such point of that thread", as pairs of points. A law's
delay is the least that was ever seen, so that it never holds a point back longer than it was.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from taxbreak_vllm.trace.intervals import Index, Int64
from taxbreak_vllm.whatif.points import PointKind, Points

_SILENT_NS = 5_000  # less is no waiting
_LONG_NS = 1_000_000  # longer is no work of a thread's own that is not seen
_MIN_SILENCES = 3
_EXPLAINS = 0.05  # laws leave no more of a thread's silence than this, or they are none
_EXACT = 0.01  # what laws leave of a thread whose silence is explained without them
_KNOWN = 0.8  # a thread of whose silence so much is explained already needs no law that is not exact
_NONE = -1


@dataclass(frozen=True, slots=True)
class Wakes:
    """`waiting` follows `awaited` by at least `delay_ns`, all places in Points; `silent` are the waits explained so, of
    `threads`, less the `own_ns` that each does by itself.

    `unexplained_ns` is silence that no law explains, before steps of a thread that others may have woken.
    `possible_*` are laws that nothing contradicts, and that nothing shows to hold.
    """

    awaited: Index
    waiting: Index
    delay_ns: Int64
    silent: Index
    own_ns: Int64
    possible_awaited: Index
    possible_waiting: Index
    possible_delay_ns: Int64
    threads: frozenset[int]
    unexplained_ns: int

    @classmethod
    def of(cls, points: Points, returns: Index, launching: set[int], explained: Index) -> "Wakes":
        """Find the laws of each thread.

        `returns` are the ends of blocking calls, `launching` the threads that launch work, `explained` waits known
        already. A law that is only possible is one of steps, after a thread that waits and launches nothing.
        """
        laws: list[tuple[Index, Index, Int64]] = []
        possible: list[tuple[Index, Index, Int64]] = []
        silent: list[Index] = []
        own: list[Int64] = []
        threads: list[int] = []
        unexplained_ns = 0
        for thread in np.unique(points.thread).tolist():
            every = _starts(points, thread)
            is_first = points.previous[every] < 0
            if _is_worker(points, thread):
                possible.extend(_possible(points, every, _candidates(points, thread, every, returns), launching))
            gap_ns = np.where(is_first, 0, points.at_ns[every] - points.at_ns[points.previous[every]])
            starts, gap_ns = every[(gap_ns > 0) | is_first], gap_ns[(gap_ns > 0) | is_first]
            is_silent = gap_ns > _SILENT_NS
            total_ns = int(gap_ns[is_silent].sum())
            candidates = list(_candidates(points, thread, starts, returns))
            if not candidates or not total_ns:
                continue
            known = np.isin(points.at_ns[starts], points.at_ns[explained[points.thread[explained] == thread]])
            is_known = bool(gap_ns[known].sum() > _KNOWN * total_ns)
            if is_known:
                candidates = [sources for sources in candidates if not _launch(points, sources, launching - {thread})]
            chosen, left_ns = _fewest(points, starts, gap_ns, is_silent, candidates)
            own_ns = 0
            if left_ns > _EXPLAINS * total_ns and not _is_worker(points, thread):
                # It may do something by itself each time before it goes on: what it took at least.
                own_ns = min(int(gap_ns[is_silent].min()), _LONG_NS)
                is_silent = gap_ns - own_ns > _SILENT_NS
                chosen, left_ns = _fewest(points, starts, np.maximum(gap_ns - own_ns, 0), is_silent, candidates)
            if chosen and left_ns <= max((_EXACT if is_known else _EXPLAINS) * total_ns, _SILENT_NS):
                laws.extend(_edges(points, starts, sources, delay_ns) for sources, delay_ns in chosen)
                silent.append(starts[is_silent])
                own.append(np.full(int(is_silent.sum()), own_ns))
                threads.append(thread)
                unexplained_ns += left_ns
            elif is_known:
                continue
            elif _is_worker(points, thread) and (is_silent.sum() < _MIN_SILENCES or _varies(gap_ns[is_silent])):
                unexplained_ns += total_ns
        return cls(
            *_joined(laws),
            np.concatenate([*silent, _EMPTY]),
            np.concatenate([*own, np.empty(0, dtype=np.int64)]),
            *_joined(possible),
            frozenset(threads),
            unexplained_ns,
        )


_EMPTY = np.empty(0, dtype=np.intp)


def _starts(points: Points, thread: int) -> Index:
    """Return where a thread's steps begin, or its bursts where it has no steps."""
    chosen = np.zeros(len(points.at_ns), dtype=bool)
    if _is_worker(points, thread):
        chosen[points.step_start] = True
        chosen[points.next_step[points.next_step >= 0]] = True
    else:
        chosen[points.burst_start] = True
    return np.flatnonzero(chosen & (points.thread == thread))


def _is_worker(points: Points, thread: int) -> bool:
    return bool((points.thread[points.step_start] == thread).any())


def _varies(gap_ns: Int64) -> bool:
    return len(gap_ns) > 1 and int(gap_ns.max() - gap_ns.min()) > max(_EXPLAINS * float(gap_ns.mean()), _SILENT_NS)


def _candidates(points: Points, thread: int, starts: Index, returns: Index) -> Iterator[Index]:
    """Give what may wake a thread, as the last such point before each start (-1: none).

    Another thread's return from a blocking call, end of a step, end of a burst; last, its own step before.
    """
    for other in np.unique(points.thread).tolist():
        if other == thread:
            continue
        for places in (returns, points.step_end, points.burst_end):
            own = places[points.thread[places] == other]
            if len(own):
                yield _last_before(points, own, starts)
    if _is_worker(points, thread) and len(np.unique(points.thread)) > 1:
        begins = np.flatnonzero((points.kind == PointKind.STEP_START) & (points.thread == thread))
        yield _last_before(points, begins, starts, side="left")


def _last_before(points: Points, places: Index, starts: Index, *, side: Literal["left", "right"] = "right") -> Index:
    """Return the last of some places before each start; at its very instant too, unless `side` is left."""
    places = places[np.argsort(points.at_ns[places], kind="stable")]
    index = np.searchsorted(points.at_ns[places], points.at_ns[starts], side=side) - 1
    return np.where(index >= 0, places[np.maximum(index, 0)], _NONE)


def _launch(points: Points, sources: Index, launching: set[int]) -> bool:
    """Tell whether threads that launch work are among those of some points."""
    return bool(launching & set(points.thread[sources[sources >= 0]].tolist()))


def _possible(
    points: Points, starts: Index, candidates: Iterator[Index], launching: set[int]
) -> Iterator[tuple[Index, Index, Int64]]:
    """Give laws that held no step back: each with the least delay there was after a thread that launches nothing."""
    for sources in candidates:
        known = sources >= 0
        if known.any() and not _launch(points, sources, launching):
            delay_ns = int((points.at_ns[starts] - points.at_ns[sources])[known].min())
            yield _edges(points, starts, sources, delay_ns)


def _fewest(
    points: Points, starts: Index, gap_ns: Int64, is_silent: NDArray[np.bool_], candidates: list[Index]
) -> tuple[list[tuple[Index, int]], int]:
    """Return the one or two laws that leave least of the silences, each with its delay, and what they leave."""
    if is_silent.sum() < _MIN_SILENCES:
        return [], 0
    at_ns, chosen = points.at_ns[starts], []
    until = at_ns - gap_ns
    left = int((at_ns - until)[is_silent].sum())
    for _ in range(2):
        best: tuple[int, Index, int] | None = None
        for sources in candidates:
            known = (sources >= 0) & is_silent
            if not known.any():
                continue
            delay_ns = int((at_ns - points.at_ns[sources])[known].min())
            held = np.where(sources >= 0, points.at_ns[sources] + delay_ns, until)
            rest = int(np.maximum(at_ns - np.maximum(until, held), 0)[is_silent].sum())
            if best is None or rest < best[0]:
                best = rest, sources, delay_ns
        if best is None or best[0] > left - max(left // 5, _SILENT_NS):
            break
        left, sources, delay_ns = best
        chosen.append((sources, delay_ns))
        until = np.maximum(until, np.where(sources >= 0, points.at_ns[sources] + delay_ns, until))
    return chosen, left


def _edges(points: Points, starts: Index, sources: Index, delay_ns: int) -> tuple[Index, Index, Int64]:
    fits = (sources >= 0) & (points.at_ns[starts] - points.at_ns[sources] >= delay_ns)
    return sources[fits], starts[fits], np.full(int(fits.sum()), delay_ns, dtype=np.int64)


def _joined(parts: list[tuple[Index, Index, Int64]]) -> tuple[Index, Index, Int64]:
    return (
        np.concatenate([_EMPTY, *(part[0] for part in parts)]),
        np.concatenate([_EMPTY, *(part[1] for part in parts)]),
        np.concatenate([np.empty(0, dtype=np.int64), *(part[2] for part in parts)]),
    )
