"""What each recorded step was and took: the lines of an engine in, columns out.

A step's time on its engine's thread is `before`, up to where its worker is called, and `after`, from where its output
is taken in; `device` is its worker's. Where the engine waits for each step, the three follow one another, and what lies
between two of them counts as `after`. Where it schedules ahead, a step's device begins when it is called or when the
step before is done, whichever is later, and is done when the engine has its output.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from taxbreak_vllm.iterations.rows import Column
from taxbreak_vllm.model.errors import WorkloadError
from taxbreak_vllm.traffic.rows import Int64, Scheduled
from taxbreak_vllm.workload.recording import Recorded

PARTS = ("before", "device", "after")


@dataclass(frozen=True, slots=True)
class Steps:
    """Steps in order: `work` (steps, 4) are prompt tokens, requests in their prompt, requests that generate, Σ context.

    `parts_ns` (steps, 3) are before, device, after; `end_ns` is when the engine was through with it.
    """

    work: Int64
    graph_mode: Sequence[str]
    parts_ns: Int64
    begin_ns: Int64
    end_ns: Int64

    def __len__(self) -> int:
        return len(self.work)

    @property
    def total_ns(self) -> Int64:
        """All that a step took (steps,)."""
        found: Int64 = self.parts_ns.sum(axis=1)
        return found

    def between(self, begin: int, end: int) -> "Steps":
        """Return those from one place to another."""
        return Steps(
            self.work[begin:end],
            self.graph_mode[begin:end],
            self.parts_ns[begin:end],
            self.begin_ns[begin:end],
            self.end_ns[begin:end],
        )


def steps_of(recorded: Recorded) -> Steps:
    """Join what was chosen with what it took; raises WorkloadError where too few steps have all stamps."""
    chosen = {row.number: row for row in recorded.rows if isinstance(row, Scheduled)}
    turns = recorded.turns
    is_ahead = recorded.setup.scheduler.startswith("Async")
    found = _ahead(turns) if is_ahead else _one_by_one(turns)
    numbers, parts_ns, begin_ns, end_ns = found
    is_known = np.array([n in chosen and chosen[n].num_prefills + chosen[n].num_decodes > 0 for n in numbers.tolist()])
    is_known = is_known.astype(bool) & (parts_ns >= 0).all(axis=1)
    numbers = numbers[is_known]
    rows = [chosen[number] for number in numbers.tolist()]
    if not rows:
        raise WorkloadError(f"{recorded.setup.source}: no step of its traffic has all its stamps")
    return Steps(
        work=np.array([[r.prompt_tokens, r.num_prefills, r.num_decodes, r.context] for r in rows], dtype=np.int64),
        graph_mode=[row.graph_mode for row in rows],
        parts_ns=parts_ns[is_known],
        begin_ns=begin_ns[is_known],
        end_ns=end_ns[is_known],
    )


def _of(rows: Int64, *columns: Column) -> list[Int64]:
    return [rows[:, column] for column in columns]


def _starts(rows: Int64) -> Int64:
    """Return when each turn began: at the end of the one before, or when a request woke the engine."""
    idle1, end = _of(rows, Column.IDLE1, Column.END)
    before = np.concatenate([rows[:1, Column.INPUT0], end[:-1]])
    start: Int64 = np.where(idle1 > 0, idle1, before)
    return start


def _worker_ns(rows: Int64) -> Int64:
    execute0, execute1, sample0, sample1 = _of(
        rows, Column.WORKER_EXECUTE0, Column.WORKER_EXECUTE1, Column.WORKER_SAMPLE0, Column.WORKER_SAMPLE1
    )
    took: Int64 = np.where(execute0 > 0, (execute1 - execute0) + (sample1 - sample0), -1)
    return took


def _one_by_one(rows: Int64) -> tuple[Int64, Int64, Int64, Int64]:
    starts = _starts(rows)
    is_step = (rows[:, Column.SCHEDULED] > 0) & (rows[:, Column.SCHEDULED] == rows[:, Column.UPDATED])
    is_step &= (rows[:, Column.EXECUTE0] > 0) & (rows[:, Column.END] > 0)
    rows, starts = rows[is_step], starts[is_step]
    execute0, end = _of(rows, Column.EXECUTE0, Column.END)
    device = _worker_ns(rows)
    parts = np.stack([execute0 - starts, device, end - execute0 - device], axis=1)
    return rows[:, Column.SCHEDULED], parts, starts, end


def _ahead(rows: Int64) -> tuple[Int64, Int64, Int64, Int64]:
    starts = _starts(rows)
    scheduled, updated = _of(rows, Column.SCHEDULED, Column.UPDATED)
    place_of = {number: place for place, number in enumerate(scheduled.tolist()) if number}
    taken = [(place_of[n], place) for place, n in enumerate(updated.tolist()) if n in place_of]
    sent, got = (np.array(each, dtype=np.int64) for each in zip(*taken, strict=True)) if taken else (scheduled[:0],) * 2
    called, done = rows[sent, Column.EXECUTE1], rows[got, Column.UPDATE0]
    done_before = np.concatenate([called[:1], done[:-1]])
    device = done - np.maximum(called, done_before)
    after = rows[got, Column.END] - rows[got, Column.UPDATE0]
    parts = np.stack([called - starts[sent], np.maximum(device, 0), after], axis=1)
    return scheduled[sent], parts, starts[sent], rows[got, Column.END]
