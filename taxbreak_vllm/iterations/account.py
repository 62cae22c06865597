"""Where the time of iterations went: rows of an engine's loop in, for each pair of consecutive steps its parts out.

An iteration is the time from the start of a step's first call on a worker to that of the next step. Within the calls it
is the worker's; where events on its device tell, between two calls too, as long as the device works on: it can only be
idle from somewhere in between up to the start of the next. Of the rest, an instant takes the first label that fits: the
engine had sent the call that the worker waits for (`ipc_dispatch`); what the engine's thread was doing; that it waited
for a result (`ipc_return`) or for requests (by cause: `waits`); else `loop`. The parts sum to the iteration, to the
nanosecond.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from taxbreak_vllm.iterations.rows import UNASKED, Column
from taxbreak_vllm.iterations.spans import Bool, Int64, Spans, covered, joined, without
from taxbreak_vllm.iterations.waits import NO_ARRIVALS, Arrivals, cut_waits
from taxbreak_vllm.model.engine import Between, EnginePart
from taxbreak_vllm.model.step import PHASES

Label = EnginePart | Between

_SPANS: tuple[tuple[Label, Column, Column], ...] = (
    (EnginePart.INPUT, Column.INPUT0, Column.INPUT1),  # less the wait for requests in it
    (Between.NO_WORK, Column.IDLE0, Column.IDLE1),
    (EnginePart.SCHEDULE, Column.SCHEDULE0, Column.SCHEDULE1),
    (EnginePart.DISPATCH, Column.EXECUTE0, Column.EXECUTE1),  # less a worker in this thread
    (EnginePart.GRAMMAR, Column.GRAMMAR0, Column.GRAMMAR1),
    (EnginePart.DISPATCH, Column.SAMPLE0, Column.SAMPLE1),
    (Between.IPC_RETURN, Column.WAIT0, Column.WAIT1),
    (Between.IPC_RETURN, Column.WAIT_AGAIN0, Column.WAIT_AGAIN1),
    (EnginePart.UPDATE, Column.UPDATE0, Column.UPDATE1),
    (EnginePart.POST, Column.STEP1, Column.END),
)

_APART = 1e-4  # by so much a device's clock and the machine's may differ in speed
_MAX_BEFORE_NS = 3600 * 10**9  # from a worker's last call to the engine's taking in of what it returned


@dataclass(frozen=True, slots=True)
class Iterations:
    """Consecutive steps: the number of each, its place in `PHASES`, its iteration and the parts of that, ns.

    Where `is_from_device`, the worker's part is all but the time between calls in which its device was idle. Those not
    `is_asked` lie between two bursts in which the device is asked.
    """

    step: Int64
    phase_index: Int64
    total_ns: Int64
    worker_ns: Int64
    parts_ns: Mapping[Label, Int64]
    is_from_device: Bool
    is_asked: Bool


class Turns:
    """Turns of one engine's loop, `rows` (turns, columns) in order; what its thread did in them is worked out once.

    `is_unjoined` marks those whose step had tokens and brought back no worker's times, those of another clock, or no
    phase.
    """

    def __init__(self, rows: Int64, arrivals: Arrivals = NO_ARRIVALS) -> None:
        before_ns = rows[:, Column.UPDATE0] - rows[:, Column.WORKER_SAMPLE1]
        has_times = (rows[:, Column.WORKER_EXECUTE0] > 0) & (before_ns >= 0) & (before_ns < _MAX_BEFORE_NS)
        has_times &= (rows[:, Column.WORKER_PHASE] >= 0) & (rows[:, Column.WORKER_PHASE] < len(PHASES))
        self.is_unjoined = ~has_times & (rows[:, Column.WORKER_EXECUTE0] != 0)
        self._unjoined = np.sort(rows[self.is_unjoined, Column.UPDATED])
        done = rows[has_times]
        self._done = done[np.argsort(done[:, Column.UPDATED], kind="stable")]
        scheduled = rows[rows[:, Column.SCHEDULED] > 0]
        self._scheduled = scheduled[np.argsort(scheduled[:, Column.SCHEDULED], kind="stable")]
        self._calls = joined(_in_thread(rows, self._done))
        self._spans = _labelled(rows, self._calls, arrivals)

    def iterations(self) -> Iterations:
        """Cut the iterations of all steps whose next step is here too.

        Steps whose numbers are apart count as consecutive only where the turns of those between are here and had no
        tokens: such a step has no worker's times.
        """
        done, scheduled = self._done, self._scheduled
        here, following = done[:-1], done[1:]
        place = np.searchsorted(scheduled[:, Column.SCHEDULED], done[:, Column.UPDATED])
        is_known = place < len(scheduled)
        is_known[is_known] = scheduled[place[is_known], Column.SCHEDULED] == done[is_known, Column.UPDATED]
        are_all_here = np.diff(place) == np.diff(done[:, Column.UPDATED])
        are_empty = np.diff(np.searchsorted(self._unjoined, done[:, Column.UPDATED])) == 0
        kept = is_known[:-1] & is_known[1:] & are_all_here & are_empty
        here, following = here[kept], following[kept]
        sent, sent_next = scheduled[place[:-1][kept]], scheduled[place[1:][kept]]
        start, execute_end = here[:, Column.WORKER_EXECUTE0], here[:, Column.WORKER_EXECUTE1]
        sample_start, sample_end = here[:, Column.WORKER_SAMPLE0], here[:, Column.WORKER_SAMPLE1]
        end = following[:, Column.WORKER_EXECUTE0]
        has_one_call = sample_start == execute_end
        idle_ns = np.where(has_one_call, 0, here[:, Column.DEVICE_IDLE_SAMPLE])
        idle_next_ns = following[:, Column.DEVICE_IDLE]
        is_from_device = (idle_ns >= 0) & (idle_next_ns >= 0)
        worker_ns = end - start
        parts: dict[Label, Int64] = {label: np.zeros(len(here), dtype=np.int64) for label in (*EnginePart, *Between)}
        for ended, finish, sent_ns, device_ns in (
            (execute_end, sample_start, sent[:, Column.SAMPLE_SENT], idle_ns),
            (sample_end, end, sent_next[:, Column.EXECUTE_SENT], idle_next_ns),
        ):
            begin = np.where(is_from_device & (device_ns < (1 - _APART) * (finish - ended)), finish - device_ns, ended)
            worker_ns = worker_ns - (finish - begin)
            arrives = np.where(sent_ns > 0, np.clip(sent_ns, begin, finish), finish)
            rest = arrives - begin
            for label, spans in self._spans.items():
                own = covered(spans, arrives) - covered(spans, begin)
                parts[label] += own
                rest = rest - own
            parts[EnginePart.LOOP] += rest
            parts[Between.IPC_DISPATCH] += finish - arrives
        return Iterations(
            step=here[:, Column.UPDATED],
            phase_index=here[:, Column.WORKER_PHASE],
            total_ns=end - start,
            worker_ns=worker_ns,
            parts_ns=parts,
            is_from_device=is_from_device,
            is_asked=(idle_ns != UNASKED) & (idle_next_ns != UNASKED),
        )

    def busy_ns(self, from_ns: int, to_ns: int) -> dict[EnginePart, int]:
        """Return what the engine's thread took for each part between two instants that the turns cover."""
        ends = np.array([from_ns, to_ns])
        spent = {label: int(np.diff(covered(spans, ends))[0]) for label, spans in self._spans.items()}
        calls = int(np.diff(covered(self._calls, ends))[0])
        parts = {part: spent.get(part, 0) for part in EnginePart}
        return parts | {EnginePart.LOOP: to_ns - from_ns - sum(spent.values()) - calls}


def _labelled(rows: Int64, calls: Spans, arrivals: Arrivals) -> dict[Label, Spans]:
    """Return for each label the spans in which the engine's thread has it, in order, none over another."""
    parts: dict[Label, list[Spans]] = {}
    for label, first, last in _SPANS:
        has = (rows[:, first] > 0) & (rows[:, last] > rows[:, first])
        parts.setdefault(label, []).append((rows[has, first], rows[has, last]))
    labels: dict[Label, Spans] = {label: joined(spans) for label, spans in parts.items()}
    waits = labels[Between.NO_WORK]
    for cause, spans in cut_waits(waits, arrivals).items():
        labels[cause] = spans
    labels[EnginePart.INPUT] = without(labels[EnginePart.INPUT], waits)
    for holes in (labels[Between.IPC_RETURN], calls):
        labels[EnginePart.DISPATCH] = without(labels[EnginePart.DISPATCH], holes)
    return labels


def _in_thread(rows: Int64, done: Int64) -> list[Spans]:
    """Return the calls of a worker that shares the engine's thread; none where it has one of its own."""
    if not len(done):
        return [(done[:, Column.UPDATED], done[:, Column.UPDATED])]
    place = np.minimum(np.searchsorted(done[:, Column.UPDATED], rows[:, Column.SCHEDULED]), len(done) - 1)
    of_scheduled = done[place]
    has_times = of_scheduled[:, Column.UPDATED] == rows[:, Column.SCHEDULED]
    spans = []
    for call0, call1, sent, worker0, worker1 in (
        (Column.EXECUTE0, Column.EXECUTE1, Column.EXECUTE_SENT, Column.WORKER_EXECUTE0, Column.WORKER_EXECUTE1),
        (Column.SAMPLE0, Column.SAMPLE1, Column.SAMPLE_SENT, Column.WORKER_SAMPLE0, Column.WORKER_SAMPLE1),
    ):
        begin, end = of_scheduled[:, worker0], of_scheduled[:, worker1]
        is_inside = has_times & (rows[:, sent] == 0) & (rows[:, call0] > 0)
        is_inside &= (begin >= rows[:, call0]) & (end <= rows[:, call1]) & (end > begin)
        spans.append((begin[is_inside], end[is_inside]))
    return spans
