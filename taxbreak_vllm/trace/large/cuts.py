"""Cut a spilled trace into parts.

In: `SpilledEvents` and its `Survey`. Out: `Part`s in the order of time, of about equal size, each small enough for
memory. All joins go through `Bins`, so memory holds a part, never the trace.

A trace may be cut where no step, op or call is open on any thread and nothing launched later has begun on the device.
A call that only waits (a thread that sits in cudaEventSynchronize while others work) is cut in two: the time on both
sides is blocked all the same. Bounds that remain: a step is never cut, nor a stretch in which the host is never free
of an op, and a part takes along what was launched while its own work was still running.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from types import TracebackType

import numpy as np

from taxbreak_vllm.trace.backend import does_enqueue, is_blocking, is_launch, is_wait
from taxbreak_vllm.trace.dispatches import Bool, nearest_call
from taxbreak_vllm.trace.events import EventKind
from taxbreak_vllm.trace.intervals import Index, Int64
from taxbreak_vllm.trace.large.bins import Bins, Rows
from taxbreak_vllm.trace.large.spill import ROW, SpilledEvents
from taxbreak_vllm.trace.parts import Part
from taxbreak_vllm.trace.survey import TraceSurvey

_PART_ROW = np.dtype([*ROW.descr, ("row", np.int64)])
_END = np.dtype([("row", np.int64), ("id", np.int64), ("start_ns", np.int64), ("role", np.int8)])
_ACTIVITY, _CALL, _ENQUEUE = 0, 1, 2  # roles
_OWNER = np.dtype([("row", np.int64), ("owner_ns", np.int64)])
_ROWS_PER_JOIN = 2**18
_CANDIDATES_PER_PART = 3000
_MAX_CANDIDATES = 2**20


class Parts:
    """The parts of a trace; may be gone through several times while the context is open."""

    def __init__(self, trace: SpilledEvents, survey: TraceSurvey) -> None:
        self._trace = trace
        self._survey = survey
        self._stack = ExitStack()

    def __enter__(self) -> "Parts":
        with ExitStack() as stack:
            owners = _owners(self._trace)
            with owners:
                self._cuts = _find_cuts(self._trace, owners, self._survey)
                num_parts = len(self._cuts) + 1
                self._begins_ns = np.full(num_parts, np.iinfo(np.int64).max)
                self._ends_ns = np.full(num_parts, np.iinfo(np.int64).min)
                self._bins = stack.enter_context(Bins(_PART_ROW, num_parts, self._trace.rows.find_room))
                self._distribute(owners)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()

    def _distribute(self, owners: Bins) -> None:
        """Give every op, call and activity to its part."""
        names = self._trace.head.names
        only_waits = np.array([is_blocking(name) and not is_launch(name) for name in names], dtype=bool)
        for first, rows, owner_ns, is_joined in _owned_rows(self._trace, owners):
            part = np.searchsorted(self._cuts, owner_ns, side="right")
            on_device = _is_on_device(rows)
            np.minimum.at(self._begins_ns, part[on_device], rows["start_ns"][on_device])
            np.maximum.at(self._ends_ns, part[on_device], rows["end_ns"][on_device])
            kept = np.empty(len(rows), dtype=_PART_ROW)
            for name in ROW.names or ():
                kept[name] = rows[name]
            kept["row"] = first + np.arange(len(rows))
            is_cut = _is_host(rows) & ~is_joined & only_waits[rows["name"]]
            is_cut[is_cut] = np.searchsorted(self._cuts, rows["end_ns"][is_cut], side="right") > part[is_cut]
            whole = ~is_cut & (rows["kind"] != EventKind.ANNOTATION)
            pieces = [self._pieces(row) for row in kept[is_cut]]
            self._bins.add(
                np.concatenate((kept[whole], *(rows for rows, _ in pieces))),
                np.concatenate((part[whole], *(numbers for _, numbers in pieces))),
            )

    def _pieces(self, row: np.void) -> tuple[Rows, Index]:
        """Cut a call wherever the trace is cut."""
        first = int(np.searchsorted(self._cuts, row["start_ns"], side="right"))
        last = int(np.searchsorted(self._cuts, row["end_ns"], side="right"))
        pieces = np.repeat(row, last - first + 1)
        pieces["correlation"] = -1  # nothing came of it, nor shall of a piece
        pieces["start_ns"][1:] = self._cuts[first:last]
        pieces["end_ns"][:-1] = self._cuts[first:last]
        return pieces, np.arange(first, last + 1)

    def __iter__(self) -> Iterator[Part]:
        head, cuts = self._trace.head, self._cuts.tolist()
        starts = [window.start_ns for window in self._survey.windows]
        late = np.empty(0, dtype=_PART_ROW)
        for number, (start_ns, end_ns) in enumerate(
            zip([head.first_ns, *cuts], [*cuts, head.last_ns + 1], strict=True)
        ):
            own = self._bins.read(number)
            rows = np.concatenate((late, own, *self._ahead(number)))
            rows = rows[np.argsort(rows["row"], kind="stable")]
            steps = slice(*np.searchsorted(starts, [start_ns, end_ns]).tolist())
            yield Part(self._trace.events(rows), self._survey.windows[steps], start_ns, end_ns)
            del rows
            late = _late(np.concatenate((late, own)), end_ns)

    def _ahead(self, number: int) -> Iterator[Rows]:
        """Return the parts after this one, up to the last that began on the device before this one's work had ended."""
        overlapping = np.flatnonzero(self._begins_ns[number + 1 :] <= self._ends_ns[number])
        return (self._bins.read(number + 1 + i) for i in range(overlapping[-1] + 1 if len(overlapping) else 0))


def _late(rows: Rows, end_ns: int) -> Rows:
    """Choose what runs on after a part's end, and what the host did since the first of that was launched."""
    runs_on = _is_on_device(rows) & (rows["end_ns"] >= end_ns)
    ids = rows["correlation"][runs_on]
    is_launch = (rows["kind"] == EventKind.RUNTIME) & np.isin(rows["correlation"], ids[ids >= 0])
    since_ns = rows["start_ns"][is_launch].min(initial=np.iinfo(np.int64).max)
    # Only a call that was cut ends with the part, and it is no boundary of T_py there.
    context = _is_host(rows) & (rows["end_ns"] >= since_ns) & (rows["end_ns"] < end_ns)
    return np.asarray(rows[runs_on | context])


def _owners(trace: SpilledEvents) -> Bins:
    """Join activities to calls: for each linked activity the start of its call, for each such call its own; by chunk.

    The join goes through bins of correlation ids, each of which fits in memory.
    """
    enqueues = np.array([does_enqueue(name) for name in trace.head.names], dtype=bool)
    waits = np.array([is_wait(name) for name in trace.head.names], dtype=bool)
    firsts = [0]
    num_bins = 1 + trace.rows.num_rows // _ROWS_PER_JOIN
    with Bins(_END, num_bins, trace.rows.find_room) as ends:
        for rows in trace.additions():
            is_end = _is_on_device(rows) | ((rows["kind"] == EventKind.RUNTIME) & ~waits[rows["name"]])
            chosen = np.flatnonzero((rows["correlation"] >= 0) & is_end)
            added = np.empty(len(chosen), dtype=_END)
            added["row"] = firsts[-1] + chosen
            added["id"] = rows["correlation"][chosen]
            added["start_ns"] = rows["start_ns"][chosen]
            is_call = rows["kind"][chosen] == EventKind.RUNTIME
            added["role"] = np.where(is_call, np.where(enqueues[rows["name"][chosen]], _ENQUEUE, _CALL), _ACTIVITY)
            ends.add(added, (added["id"] % num_bins).astype(np.intp))
            firsts.append(firsts[-1] + len(rows))
        owners = Bins(_OWNER, len(firsts) - 1, trace.rows.find_room)
        for number in range(num_bins):
            joined = _join(ends.read(number))
            owners.add(joined, np.searchsorted(firsts, joined["row"], side="right") - 1)
    return owners


def _join(ends: Rows) -> Rows:
    activities, calls = ends[ends["role"] == _ACTIVITY], ends[ends["role"] != _ACTIVITY]
    call = nearest_call(
        activities["id"], activities["start_ns"], calls["id"], calls["start_ns"], calls["role"] == _ENQUEUE
    )
    own = calls[np.unique(call[call >= 0])]
    joined = np.empty(int((call >= 0).sum()) + len(own), dtype=_OWNER)
    joined["row"] = np.concatenate((activities["row"][call >= 0], own["row"]))
    joined["owner_ns"] = np.concatenate((calls["start_ns"][call[call >= 0]], own["start_ns"]))
    return joined


def _owned_rows(trace: SpilledEvents, owners: Bins) -> Iterator[tuple[int, Rows, Int64, Bool]]:
    """Return chunks: the number of the first row, the rows, when each or its launch began, which are joined."""
    first = 0
    for number, rows in enumerate(trace.additions()):
        joined = owners.read(number)
        owner_ns, is_joined = rows["start_ns"].copy(), np.zeros(len(rows), dtype=bool)
        owner_ns[joined["row"] - first] = joined["owner_ns"]
        is_joined[joined["row"] - first] = True
        yield first, rows, owner_ns, is_joined
        first += len(rows)


def _find_cuts(trace: SpilledEvents, owners: Bins, survey: TraceSurvey) -> Int64:
    """Return the instants to cut at, so that the parts between have about `trace.rows_per_part` rows."""
    names = trace.head.names
    only_waits = np.array([is_blocking(name) and not is_launch(name) for name in names], dtype=bool)
    candidates = _candidates(trace, survey)
    weight = np.zeros(len(candidates) + 1, dtype=np.int64)
    closed = np.zeros(len(candidates) + 1, dtype=np.int64)

    def close(start_ns: Int64, last_ns: Int64) -> None:
        """Take the candidates in (start, last] from the choice."""
        begin, end = (np.searchsorted(candidates, at_ns, side="right") for at_ns in (start_ns, last_ns))
        chosen = begin < end
        np.add.at(closed, begin[chosen], 1)
        np.add.at(closed, end[chosen], -1)

    for _, rows, owner_ns, is_joined in _owned_rows(trace, owners):
        on_device = _is_on_device(rows)
        holds = _is_host(rows) & (is_joined | ~only_waits[rows["name"]])
        close(rows["start_ns"][holds], rows["end_ns"][holds])
        close(rows["start_ns"][on_device], owner_ns[on_device])
        weight += np.bincount(np.searchsorted(candidates, owner_ns, side="right"), minlength=len(weight))
    windows = survey.windows
    close(
        np.array([window.start_ns for window in windows], dtype=np.int64),
        np.array([window.end_ns - 1 for window in windows], dtype=np.int64),
    )
    is_open = np.cumsum(closed)[:-1] == 0
    before = np.cumsum(weight)[:-1][is_open]
    at = 0
    cuts: list[int] = []
    while True:
        base = before[at - 1] if cuts else 0
        at = int(np.searchsorted(before, base + trace.rows_per_part, side="left"))
        if at >= len(before):
            return np.array(cuts, dtype=np.int64)
        cuts.append(int(candidates[is_open][at]))
        at += 1


def _candidates(trace: SpilledEvents, survey: TraceSurvey) -> Int64:
    """Return instants that are worth a look: where steps begin, and a sample of where ops and calls do."""
    steps = np.array([window.start_ns for window in survey.windows], dtype=np.int64)
    every, sample = 1 + trace.rows_per_part // _CANDIDATES_PER_PART, steps[:0]
    for rows in trace.additions():
        sample = np.concatenate((sample, rows["start_ns"][_is_host(rows)][::every]))
        if len(sample) > _MAX_CANDIDATES:
            every, sample = every * 2, sample[::2]
    found = np.union1d(steps, sample)
    return found[found > trace.head.first_ns]


def _is_on_device(rows: Rows) -> Bool:
    return np.isin(rows["kind"], (EventKind.KERNEL, EventKind.MEMCPY, EventKind.MEMSET))


def _is_host(rows: Rows) -> Bool:
    return np.isin(rows["kind"], (EventKind.OP, EventKind.RUNTIME))
