"""What of a live recording's iteration may have been otherwise, for records that are missing or cannot be true.

Idle time is what is left when all recorded work is taken away, so every lost record adds to it, and one alone can be
most of it. In: `Measured` events of a live recording and the window of its sample. Out: `Doubt`, an upper bound
in ns, and the breakdown without the figures that it is too large for.

A launch whose record was lost ran, if on the stream in use, before what was launched after it; work ends in the order
of launches on its stream, begins after its launch and has ended when the host has waited for it; and a device that
stands idle begins what it is given at once, about a floor after the launch.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from taxbreak_vllm.model.breakdown import Breakdown, StepBreakdown, hdbi
from taxbreak_vllm.model.evidence import Evidence, Figure
from taxbreak_vllm.taxes.evidence import poor_replays, without
from taxbreak_vllm.taxes.measured import Measured
from taxbreak_vllm.trace.backend import waits_for_device
from taxbreak_vllm.trace.dispatches import Activities, Bool, lost_copies
from taxbreak_vllm.trace.intervals import Busy, Index, Int64
from taxbreak_vllm.trace.steps import StepWindow

# Real traces of V100, H100, H800, B200 and B300 hold no launch on an idle device that began later after its call's
# return than their T_sys, and no gap between nodes of a graph as long; two of an A100, with kernels whose launches are
# not in them, do. Where T_sys is not known, this stands for it.
_UNMEASURED_FLOOR_NS = 100_000

MAX_DOUBTFUL_RATIO = 0.02  # of the iteration, or of HDBI: what is more in doubt is not shown


@dataclass(frozen=True, slots=True)
class Doubt:
    """How much may be otherwise: of an iteration's idle and active time, of the cause of its idle time, of own work.

    `lost_copies` left no activity; `missing_head` are the launches and copies without one before the first with one;
    `misplaced` records contradict the order of their stream, their own launch, or a wait for the device that had
    returned; `unexplained_ns` is idle time with work launched and nothing recorded that it waited for.
    """

    window_ns: int
    idle_ns: int = 0
    causes_ns: int = 0
    own_ns: int = 0
    lost_copies: int = 0
    missing_head: int = 0
    misplaced: int = 0
    unexplained_ns: int = 0


def doubt_of(m: Measured, window: StepWindow) -> Doubt:
    """Return what may be otherwise in the iteration of a step; in the step itself where the next one is not known."""
    a, d, host = m.activities, m.dispatches, m.host
    start_ns, end_ns = window.start_ns, window.end_ns if window.next_ns is None else window.next_ns
    is_misplaced = _misplaced(m)
    is_placed = ~is_misplaced[d.first]
    poor = np.isin(m.events.correlation[d.row], list(m.events.oddities.missing_nodes))
    copies_ns = lost_copies(m.events, host)
    gone_ns = np.concatenate((host.unanswered_ns, copies_ns))
    lost_ns = np.sort(np.concatenate((gone_ns, d.launch_ns[~is_placed | poor])))
    last_ns = m.events.last_ns
    lost = lost_ns, _until(a, d.launch_ns[is_placed], d.first[is_placed], lost_ns, last_ns)
    late = _unexplained(m)

    shown = (a.device == m.device) & ~is_misplaced
    busy = Busy.of(a.start_ns[shown], a.end_ns[shown])
    both = Busy.of(*(np.concatenate(parts) for parts in zip((busy.start_ns, busy.end_ns), lost, late, strict=True)))
    wrong = Busy.of(a.start_ns[is_misplaced], a.end_ns[is_misplaced])
    after = d.launch_ns >= window.end_ns
    own_end_ns = max(end_ns, int(a.start_ns[d.first[after]].min(initial=last_ns)))

    def doubtful(until_ns: int) -> int:
        return (
            _length(both, start_ns, until_ns) - _length(busy, start_ns, until_ns) + _length(wrong, start_ns, until_ns)
        )

    idle_ns = doubtful(end_ns)
    return Doubt(
        window_ns=end_ns - start_ns,
        idle_ns=idle_ns,
        causes_ns=idle_ns + _unlaunched(m, start_ns, end_ns),
        own_ns=doubtful(own_end_ns),
        lost_copies=len(copies_ns),
        missing_head=int((gone_ns < d.launch_ns.min(initial=last_ns)).sum()),
        misplaced=int(is_misplaced.sum()),
        unexplained_ns=_length(Busy.of(*late), start_ns, own_end_ns),
    )


def doubted(found: Breakdown, doubt: Doubt) -> Breakdown:
    """Withhold of the one step of a live recording what may be otherwise, and count why."""
    (step,) = found.steps
    evidence = replace(
        found.evidence,
        lost_copies=doubt.lost_copies,
        missing_head=doubt.missing_head,
        misplaced=doubt.misplaced,
        unexplained_ns=doubt.unexplained_ns,
        doubtful_ns=doubt.idle_ns,
    )
    figures = list(_doubted(step, doubt))
    own = dict.fromkeys(figures, _doubt_reason(evidence, max(doubt.idle_ns, doubt.causes_ns, doubt.own_ns), doubt))
    step = without(step, replace(evidence, withheld=own))
    evidence = replace(evidence, withheld={**own, **found.evidence.withheld})
    return replace(
        found,
        evidence=evidence,
        steps=(step,),
        notes=(*found.notes, *dict.fromkeys(own.values()), *_doubt_notes(evidence)),
    )


def _doubted(step: StepBreakdown, doubt: Doubt) -> Iterable[Figure]:
    active_ns, orchestration_ns = step.device.active_ns, step.taxes.orchestration_ns
    if step.hdbi is not None:
        range_ = [hdbi(max(0, active_ns + sign * doubt.own_ns), orchestration_ns) or 0.0 for sign in (-1, 1)]
        if max(abs(one - step.hdbi) for one in range_) > MAX_DOUBTFUL_RATIO:
            yield Figure.HDBI
    if doubt.idle_ns > MAX_DOUBTFUL_RATIO * doubt.window_ns:
        yield Figure.IDLE
    if doubt.causes_ns > MAX_DOUBTFUL_RATIO * doubt.window_ns:
        yield Figure.CAUSES


def _doubt_reason(e: Evidence, doubtful_ns: int, doubt: Doubt) -> str:
    return (
        f"{doubtful_ns / 1e6:.2f} ms of {doubt.window_ns / 1e6:.2f} ms may have been otherwise "
        f"({'; '.join(_doubts(e)) or 'activities without a launch event'}): figures that this moves by more than "
        f"{MAX_DOUBTFUL_RATIO:.0%} are null"
    )


def _doubts(e: Evidence) -> Iterable[str]:
    if e.unanswered or e.lost_copies:
        head = f", {e.missing_head} of them at its head" if e.missing_head else ""
        yield f"{e.unanswered} launches and {e.lost_copies} copies left no activity{head}"
    if e.missing_nodes:
        yield poor_replays(e)
    if e.misplaced:
        yield f"{e.misplaced} activities cannot have been when they say"
    if e.unexplained_ns:
        yield f"for {e.unexplained_ns / 1e6:.2f} ms the device stood idle, work launched and nothing recorded before it"


def _doubt_notes(e: Evidence) -> Iterable[str]:
    doubts = "; ".join(_doubts(e))
    if doubts and not e.withheld:
        yield f"at most {e.doubtful_ns / 1e6:.2f} ms of the iteration may have been otherwise: {doubts}"


def _until(a: Activities, launch_ns: Int64, first: Index, lost_ns: Int64, last_ns: int) -> Int64:
    """Return when lost work had ended at the latest: what was launched next has begun, and so has what was launched
    next on the stream of what was launched before.
    """
    order = np.argsort(launch_ns, kind="stable")
    launch_ns, first = launch_ns[order], first[order]
    stream = a.stream[first]
    place = np.searchsorted(launch_ns, lost_ns, side="right")
    until_ns = np.append(a.start_ns[first], last_ns)[place]
    before = np.append(stream, -1)[place - 1]
    for number in np.unique(before[before >= 0]).tolist():
        own = stream == number
        next_ns = np.append(a.start_ns[first[own]], last_ns)
        mine = before == number
        at = np.searchsorted(launch_ns[own], lost_ns[mine], side="right")
        until_ns[mine] = np.maximum(until_ns[mine], next_ns[at])
    return np.asarray(np.maximum(until_ns, lost_ns))


def _misplaced(m: Measured) -> Bool:
    """Mark the activities that cannot have been when they say."""
    a, d = m.activities, m.dispatches
    result = np.zeros(len(a.row), dtype=bool)
    linked = np.flatnonzero((a.dispatch >= 0) & (a.stream >= 0))
    if not len(linked):
        return result
    launch_ns = d.launch_ns[a.dispatch[linked]]
    result[linked] = a.start_ns[linked] < launch_ns
    for begin_ns, returned_ns in _device_waits(m):
        was_waited_for = (launch_ns < begin_ns) & (a.device[linked] == m.device)
        result[linked] |= was_waited_for & (a.end_ns[linked] > returned_ns)
    order = np.lexsort((a.start_ns[linked], launch_ns, a.stream[linked], a.device[linked]))
    rows = linked[order]
    start, end, of = a.start_ns[rows], a.end_ns[rows], a.dispatch[rows]
    is_pair = (a.stream[rows[1:]] == a.stream[rows[:-1]]) & (a.device[rows[1:]] == a.device[rows[:-1]])
    is_pair &= of[1:] != of[:-1]  # nodes of one graph may run beside each other
    result[rows[:-1][is_pair & (start[1:] > start[:-1]) & (end[1:] <= end[:-1])]] = True
    for at in np.flatnonzero(is_pair & (start[1:] < start[:-1])).tolist():
        fits_without = at == 0 or not is_pair[at - 1] or start[at + 1] >= start[at - 1]
        result[rows[at if fits_without else at + 1]] = True
    return result


def _device_waits(m: Measured) -> Sequence[tuple[int, int]]:
    """Return begin and return of the calls in which the host waited for all work of the device."""
    rows, names = m.host.call_row, m.events.names
    is_wait = np.array([waits_for_device(name) for name in names] or [False])[m.events.name[rows]]
    chosen = rows[is_wait]
    return list(zip(m.events.start_ns[chosen].tolist(), m.events.end_ns[chosen].tolist(), strict=True))


def _unexplained(m: Measured) -> tuple[Int64, Int64]:
    """Return the stretches in which the device stood idle though it had been given what it did next long before."""
    a, d, busy = m.activities, m.dispatches, m.timeline.busy
    floor_ns = _UNMEASURED_FLOOR_NS if m.basis.floor_ns is None else m.basis.floor_ns
    opener = m.timeline.opener
    of = a.dispatch[opener]
    known = np.flatnonzero(of >= 0)
    of, opener = of[known], opener[known]
    idle_from_ns = np.concatenate((busy.start_ns[:1], busy.end_ns[:-1]))[known]
    is_first = d.first[of] == opener
    begin_ns = np.maximum(idle_from_ns, np.where(is_first, d.return_ns[of], d.launch_ns[of]))
    start_ns = busy.start_ns[known]
    late = start_ns - begin_ns > floor_ns
    return begin_ns[late], start_ns[late]


def _unlaunched(m: Measured, start_ns: int, end_ns: int) -> int:
    """Return how much idle time an activity ended of which nobody knows when it was launched."""
    busy = m.timeline.busy
    begins, ends = busy.end_ns[:-1].clip(start_ns, end_ns), busy.start_ns[1:].clip(start_ns, end_ns)
    return int((ends - begins)[m.activities.dispatch[m.timeline.opener[1:]] < 0].sum())


def _length(busy: Busy, start_ns: int, end_ns: int) -> int:
    before, until = busy.until(np.array([start_ns, end_ns], dtype=np.int64)).tolist()
    return int(until - before)
