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
_MIN_EXPLAINED = 2  # of these, by one law: its delay is fitted to one
_EXACTLY_NS = 1_000
_EXPLAINS = 0.05  # laws leave no more of a thread's silence than this, or they are none
_EXACT = 0.01  # what laws leave of a thread whose silence is explained without them
_KNOWN = 0.8  # a thread of whose silence so much is explained already needs no law that is not exact
_NONE = -1


@dataclass(frozen=True, slots=True)
class Wakes:
    """`waiting` follows `awaited` by at least `delay_ns`, all places in Points; `silent` are the waits explained so, of
    `threads`, less the `own_ns` that each does by itself.

    `is_doubtful` marks laws that explain one silence only, which any would. `unexplained_ns` is silence that no law
    explains, before steps of a thread that others may have woken, `unexplained` where it ends if no law holds at all.
    `possible_*` are laws that nothing contradicts, and that nothing shows to hold.
    """

    awaited: Index
    waiting: Index
    delay_ns: Int64
    is_doubtful: NDArray[np.bool_]
    silent: Index
    own_ns: Int64
    possible_awaited: Index
    possible_waiting: Index
    possible_delay_ns: Int64
    threads: frozenset[int]
    unexplained: Index
    unexplained_ns: int

    @classmethod
    def of(cls, points: Points, returns: Index, launching: set[int], explained: Index) -> "Wakes":
        """Find the laws of each thread.

        `returns` are the ends of blocking calls, `launching` the threads that launch work, `explained` waits known
        already. A law that is only possible is one of steps, after a thread that waits and launches nothing.
        """
        laws: list[tuple[Index, Index, Int64]] = []
        doubtful: list[NDArray[np.bool_]] = []
        unexplained: list[Index] = []
        possible: list[tuple[Index, Index, Int64]] = []
        silent: list[Index] = []
        own: list[Int64] = []
        threads: list[int] = []
        unexplained_ns = 0
        for thread in np.unique(points.thread).tolist():
            every = _starts(points, thread)
            is_first = points.previous[every] < 0
            candidates = list(_candidates(points, thread, every, returns))
            if _is_worker(points, thread):
                possible.extend(_possible(points, every, candidates, launching))
            elif thread not in launching and (begun := _begun(points, every[:1], candidates)) is not None:
                laws.append(begun)
                doubtful.append(np.zeros(1, dtype=bool))
            gap_ns = np.where(is_first, 0, points.at_ns[every] - points.at_ns[points.previous[every]])
            counted = (gap_ns > 0) | is_first
            starts, gap_ns = every[counted], gap_ns[counted]
            is_silent = gap_ns > _SILENT_NS
            total_ns = int(gap_ns[is_silent].sum())
            candidates = [sources[counted] for sources in candidates]
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
            few = is_silent.sum() < _MIN_SILENCES
            may_leave_ns = _EXACTLY_NS if few else max((_EXACT if is_known else _EXPLAINS) * total_ns, _SILENT_NS)
            if chosen and left_ns <= may_leave_ns and not (few and _is_worker(points, thread)):
                for sources, delay_ns, explains in chosen:
                    laws.append(_edges(points, starts, sources, delay_ns))
                    doubtful.append(np.full(len(laws[-1][0]), explains < _MIN_EXPLAINED))
                silent.append(starts[is_silent])
                own.append(np.full(int(is_silent.sum()), own_ns))
                threads.append(thread)
                if not _is_worker(points, thread):
                    possible.append(_own_work(points, starts[is_silent]))
                unexplained_ns += left_ns
            elif is_known:
                continue
            elif not _is_worker(points, thread):
                unexplained.append(starts[is_silent])
            elif few or _varies(gap_ns[is_silent]):
                unexplained.append(starts[is_silent])
                unexplained_ns += total_ns
        return cls(
            *_joined(laws),
            np.concatenate([np.empty(0, dtype=bool), *doubtful]),
            np.concatenate([*silent, _EMPTY]),
            np.concatenate([*own, np.empty(0, dtype=np.int64)]),
            *_joined(possible),
            frozenset(threads),
            np.concatenate([_EMPTY, *unexplained]),
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
    """Give what may wake a thread, as one such point before each start (-1: none).

    Another thread's return from a blocking call, end of a step, end of a burst; last, its own step before. Of others
    those that wake one start each, then the last one.
    """
    for other in np.unique(points.thread).tolist():
        if other == thread:
            continue
        for places in (returns, points.step_end, points.burst_end):
            own = places[points.thread[places] == other]
            if len(own):
                yield from _paced(points, own, starts)
                yield _last_before(points, own, starts)
    if _is_worker(points, thread) and len(np.unique(points.thread)) > 1:
        begins = np.flatnonzero((points.kind == PointKind.STEP_START) & (points.thread == thread))
        yield _last_before(points, begins, starts, side="left")


def _last_before(points: Points, places: Index, starts: Index, *, side: Literal["left", "right"] = "right") -> Index:
    """Return the last of some places before each start; at its very instant too, unless `side` is left."""
    places = places[np.argsort(points.at_ns[places], kind="stable")]
    index = np.searchsorted(points.at_ns[places], points.at_ns[starts], side=side) - 1
    return np.where(index >= 0, places[np.maximum(index, 0)], _NONE)


def _own_work(points: Points, silent: Index) -> tuple[Index, Index, Int64]:
    """Return what a thread may do before it waits: in each silence as much as the shortest leaves room for."""
    before = points.previous[silent]
    gap_ns = points.at_ns[silent] - points.at_ns[before]
    return before, silent, np.full(len(silent), int(gap_ns.min(initial=_LONG_NS)), dtype=np.int64)


def _begun(points: Points, first: Index, candidates: list[Index]) -> tuple[Index, Index, Int64] | None:
    """Return what a thread that begins after others follows: the last of what may have woken it; None without any."""
    sources = np.array([int(each[0]) for each in candidates if each[0] >= 0], dtype=np.intp)
    if not len(sources) or points.previous[first[0]] >= 0:
        return None
    last = sources[[np.argmax(points.at_ns[sources])]]
    return last, first, points.at_ns[first] - points.at_ns[last]


def _paced(points: Points, places: Index, starts: Index) -> Iterator[Index]:
    """Give for each start the place as many before it as was always there, one for one, and the one before that."""
    places = places[np.argsort(points.at_ns[places], kind="stable")]
    index = np.searchsorted(points.at_ns[places], points.at_ns[starts], side="right") - 1
    order = np.argsort(np.argsort(points.at_ns[starts], kind="stable"), kind="stable")
    back = int((index - order).min(initial=0))
    for paced in (order + back, order + back - 1):
        yield np.where(paced >= 0, places[np.clip(paced, 0, len(places) - 1)], _NONE)


def _launch(points: Points, sources: Index, launching: set[int]) -> bool:
    """Tell whether threads that launch work are among those of some points."""
    return bool(launching & set(points.thread[sources[sources >= 0]].tolist()))


def _possible(
    points: Points, starts: Index, candidates: list[Index], launching: set[int]
) -> Iterator[tuple[Index, Index, Int64]]:
    """Give laws that held no step back: each with the least delay there was after a thread that launches nothing.

    What an engine does within such a delay it does once a step at least: so late after its own step before, at most.
    """
    longest_ns = 0
    for sources in candidates:
        known = sources >= 0
        if known.any() and not _launch(points, sources, launching):
            delay_ns = int((points.at_ns[starts] - points.at_ns[sources])[known].min())
            longest_ns = max(longest_ns, delay_ns)
            yield _edges(points, starts, sources, delay_ns)
    if longest_ns:
        period_ns = np.diff(points.at_ns[starts])
        least_ns = min(longest_ns, int(period_ns.min(initial=longest_ns)))
        yield starts[:-1], starts[1:], np.full(len(starts) - 1, least_ns, dtype=np.int64)


def _fewest(
    points: Points, starts: Index, gap_ns: Int64, is_silent: NDArray[np.bool_], candidates: list[Index]
) -> tuple[list[tuple[Index, int, int]], int]:
    """Return the one or two laws that leave least of the silences, and what they leave.

    Each comes with its delay and how many silences it explains.
    """
    if is_silent.sum() < _MIN_EXPLAINED:
        return [], 0
    at_ns = points.at_ns[starts]
    chosen: list[tuple[Index, int, int]] = []
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
        late_ns = at_ns - np.where(sources >= 0, points.at_ns[sources] + delay_ns, until)
        chosen.append((sources, delay_ns, int(((late_ns <= _EXACTLY_NS) & (until < at_ns) & is_silent).sum())))
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
