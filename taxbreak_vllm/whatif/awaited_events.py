"""Which event calls wait for, where the recording does not tell: of the work launched before, what they return after.

In: the waits of one name and thread, the device's order. Out: for each of them an activity; several such answers where
the recording fits them alike.
"""

from dataclasses import dataclass

import numpy as np

from taxbreak_vllm.trace.dispatches import Activities, Bool
from taxbreak_vllm.trace.intervals import Index, Int64
from taxbreak_vllm.whatif.streams import LATE_NS, NEVER, Launched

UNSEEN_NS = 50_000  # a call that blocks for longer than what it waits for explains waits for something unseen
INSTANT_NS = 5_000  # a call that returns within this has not waited
_ALIKE_NS = 1_000  # by so much the returns may be spread more and fit as well
_FURTHER = 2  # launches that an event may lie further back


@dataclass(frozen=True, slots=True)
class Waits:
    """From `start_ns` to `end_ns` each waits for an event, if at all, which has not passed by `since_ns`."""

    start_ns: Int64
    end_ns: Int64
    since_ns: Int64
    is_poll: Bool

    @property
    def has_waited(self) -> Bool:
        """Which of them did wait: those that asked twice, and calls of some length."""
        return np.where(self.is_poll, self.since_ns >= self.start_ns, self.end_ns - self.start_ns > INSTANT_NS)

    def chosen(self, rows: Index) -> "Waits":
        """Return some of them."""
        return Waits(self.start_ns[rows], self.end_ns[rows], self.since_ns[rows], self.is_poll[rows])


@dataclass(frozen=True, slots=True)
class _Guess:
    """That an event lies on a stream, so many launches `back`; how far apart the returns after it are."""

    queue: Launched
    back: Index
    waits: Index
    spread: float
    is_copy: bool

    @property
    def rank(self) -> float:
        return self.spread / 2 if self.is_copy else self.spread  # a host mostly waits for what was copied to it


def events_waited_for(
    waits: Waits, latest: Index, queues: list[Launched], activities: Activities
) -> tuple[list[Index], Index]:
    """Return what these may wait for, the likeliest first, and what they may wait for that none waited for.

    Their events are most often of one stream: that after whose activities they return most regularly. Those that had
    to wait tell how many launches back the event lies. Where none had to, the last launch may be what they wait for.
    """
    guesses = [guess for queue in queues for guess in _guesses(waits, queue, activities)]
    none = np.full(len(waits.start_ns), -1, dtype=np.intp)
    if not guesses:
        return [none], _newest_passed(waits.start_ns, queues, activities)
    guesses.sort(key=lambda guess: guess.rank)
    most = max(len(guess.waits) for guess in guesses)
    alike = [
        guess for guess in guesses[1:] if guess.spread <= guesses[0].spread + _ALIKE_NS and len(guess.waits) == most
    ]
    return [_awaited(guess, waits, latest, activities) for guess in (guesses[0], *alike)], none


def _guesses(waits: Waits, queue: Launched, activities: Activities) -> list[_Guess]:
    if not len(queue.activity):
        return []
    start_ns, end_ns = waits.start_ns, waits.end_ns
    ends = activities.end_ns[queue.last]
    before = np.searchsorted(queue.launch_ns, start_ns, side="left") - 1
    place = np.minimum(before, np.searchsorted(ends, end_ns + LATE_NS // 2, side="right") - 1)
    rows = np.flatnonzero(_explains(place, ends, waits) & waits.has_waited)
    if not len(rows):
        return []
    # No call returns before its event: where one lies further back than the last to end, all may.
    furthest = before - int((before - place).max())
    further = (furthest - more for more in range(1 + _FURTHER))
    places = [each for each in further if _explains(each, ends, waits)[rows].all()] or [place]
    return [_guess(waits, queue, activities, before, each, rows) for each in places]


def _explains(place: Index, ends: Int64, waits: Waits) -> Bool:
    done_ns = np.where(place >= 0, ends[np.maximum(place, 0)], NEVER)
    return (done_ns > waits.start_ns) & (done_ns > waits.since_ns)


def _guess(waits: Waits, queue: Launched, activities: Activities, before: Index, place: Index, rows: Index) -> _Guess:
    awaited = queue.last[place[rows]]
    late = np.sort(np.where(waits.is_poll[rows], 0, waits.end_ns[rows] - activities.end_ns[awaited]))
    spread = float(late[(3 * len(late)) // 4] - late[0]) + UNSEEN_NS / len(rows)
    return _Guess(queue, before - place, rows, spread, not activities.is_kernel[awaited].all())


def _awaited(guess: _Guess, waits: Waits, latest: Index, activities: Activities) -> Index:
    """Return what each waits for by a guess; those that it does not explain for the latest that does."""
    queue, back = guess.queue, guess.back[guess.waits]
    usual = np.full(len(waits.start_ns), int(np.sort(back)[len(back) // 2]))
    usual[guess.waits] = back
    place = np.searchsorted(queue.launch_ns, waits.start_ns, side="left") - 1 - usual
    found = np.where(place >= 0, queue.last[np.maximum(place, 0)], -1)
    done_ns = np.where(found >= 0, activities.end_ns[found], NEVER)
    found = np.where(done_ns > waits.end_ns + LATE_NS, -1, found)
    late_ns = waits.end_ns - np.maximum(done_ns, waits.start_ns)
    unseen = (found < 0) | ((late_ns >= UNSEEN_NS) & (done_ns <= waits.since_ns) & (latest >= 0))
    return np.where(unseen, latest, found)


def _newest_passed(at_ns: Int64, queues: list[Launched], activities: Activities) -> Index:
    """Return for each instant the activity to have ended last of all before it, -1 for none."""
    newest, newest_end = np.full(len(at_ns), -1, dtype=np.intp), np.full(len(at_ns), NEVER)
    for queue in queues:
        found = queue.ended(queue.before(at_ns), at_ns, activities.end_ns)
        end_ns = np.where(found >= 0, activities.end_ns[found], NEVER)
        later = (end_ns > newest_end) & (end_ns <= at_ns)
        newest[later], newest_end[later] = found[later], end_ns[later]
    return newest
