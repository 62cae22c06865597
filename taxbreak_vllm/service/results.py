"""What is known about the past: steps, counters, workers' states and requests for steps, in one SQLite file.

The analyzer writes steps, anyone reads. Steps go in with their breakdown and are pruned by age; what they add to the
counters goes into `totals` in the same transaction and stays, so counters outlive pruning and restarts. A step, a
failure or a change of a worker's counters counts once, however often it is handed in. Times are integer ns.
"""

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from taxbreak_vllm.model import Breakdown, CaptureRequest, Phase, Server, StepInfo, Tier, WorkerState
from taxbreak_vllm.service.counts import Count, Key, step_counts, worker_counts
from taxbreak_vllm.service.schema import open_database, transaction

_CAPTURES = """
WITH chosen AS (
    SELECT * FROM captures WHERE ?1 IS NULL OR capture_id = ?1 ORDER BY created_unix_ns DESC LIMIT ?2
), by_rank AS (
    SELECT capture_id,
        (SELECT count(*) FROM steps s WHERE s.capture_id = chosen.capture_id AND s.rank = w.rank) AS analyzed,
        (SELECT count(*) FROM failures f WHERE f.capture_id = chosen.capture_id AND f.rank = w.rank) AS failed
    FROM chosen JOIN workers w USING (server_id)
)
SELECT capture_id, server_id, steps, phase, stacks, created_unix_ns, expires_unix_ns, recorded, is_cancelled,
    coalesce((SELECT min(analyzed) FROM by_rank b WHERE b.capture_id = chosen.capture_id), 0),
    coalesce((SELECT min(analyzed + failed) FROM by_rank b WHERE b.capture_id = chosen.capture_id), 0)
FROM chosen ORDER BY created_unix_ns DESC
"""


@dataclass(frozen=True, slots=True)
class StepRow:
    """One analyzed step without its breakdown."""

    step_id: str
    server_id: str
    model_name: str
    engine: str
    rank: int
    phase: Phase
    graph_mode: str
    started_unix_ns: int
    capture_id: str | None
    window_ns: int
    active_ns: int
    orchestration_ns: int | None
    hdbi: float | None
    dilation: float | None
    replay: dict[Tier, float]


@dataclass(frozen=True, slots=True)
class Total:
    """One counter since the results file exists; `phase` and `label` are "" where it has none."""

    model_name: str
    engine: str
    rank: int
    phase: str
    counter: str
    label: str
    value: int


@dataclass(frozen=True, slots=True)
class CaptureRow:
    """A request for steps and how far it came.

    `recorded` by the fastest rank of the server; `analyzed`, and `settled` (analyzed or set aside), by the slowest.
    """

    capture_id: str
    server_id: str
    steps: int
    phase: Phase | None
    stacks: bool
    created_unix_ns: int
    expires_unix_ns: int
    recorded: int
    is_cancelled: bool
    analyzed: int
    settled: int


class Results:
    """An open results file; a process may open it as often as it likes and use each from one thread at a time."""

    def __init__(self, path: Path) -> None:
        self._db = open_database(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._db.close()

    def is_settled(self, step_id: str) -> bool:
        """Whether a step was analyzed or set aside before."""
        return self._one("SELECT 1 FROM steps WHERE step_id = ?", step_id) is not None or (
            self._one("SELECT 1 FROM failures WHERE step_id = ?", step_id) is not None
        )

    def note_attempt(self, step_id: str) -> int:
        """Note that the analysis of a step is about to begin; return how often it did, this time included."""
        with transaction(self._db):
            self._db.execute(
                "INSERT INTO attempts VALUES (?, 1) ON CONFLICT (step_id) DO UPDATE SET num = num + 1", (step_id,)
            )
            num: int = self._one("SELECT num FROM attempts WHERE step_id = ?", step_id)[0]
        return num

    def forget_attempts(self, step_id: str) -> None:
        """Take back all attempts at a step: it was settled, its capture is gone, or we ended the analysis ourselves."""
        self._db.execute("DELETE FROM attempts WHERE step_id = ?", (step_id,))

    def add_step(self, step_id: str, info: StepInfo, breakdown: Breakdown, *, now_ns: int) -> None:
        """Store the breakdown of one step and count it; a step stored before changes nothing."""
        (step,) = breakdown.steps
        server = info.server
        row = (
            *(step_id, server.server_id, server.model_name, server.engine, server.rank, info.phase, info.graph_mode),
            *(info.started_unix_ns, now_ns, info.capture_id, step.window_ns, step.device.active_ns),
            *(step.taxes.orchestration_ns, step.hdbi, breakdown.calibration.dilation),
            *(msgspec.json.encode(breakdown.coverage.replay).decode(), breakdown.to_json()),
        )
        with transaction(self._db):
            self.forget_attempts(step_id)
            if not self._insert("steps", row):
                return
            self._count(server, info.phase, step_counts(step))
            self._db.execute(
                "UPDATE captures SET recorded = max(recorded, (SELECT count(*) FROM steps"
                " WHERE steps.capture_id = captures.capture_id AND rank = ?)) WHERE capture_id = ?",
                (server.rank, info.capture_id),
            )

    def add_failure(
        self, step_id: str, server: Server, *, capture_id: str | None, reason: str, detail: str, now_ns: int
    ) -> None:
        """Note that a capture was set aside and count it as a dropped sample; once."""
        row = (step_id, server.server_id, server.rank, capture_id, reason, detail, now_ns)
        with transaction(self._db):
            self.forget_attempts(step_id)
            if self._insert("failures", row):
                self._count(server, "", [Count("dropped", reason, 1)])

    def put_states(self, states: Iterable[WorkerState]) -> None:
        """Take over the workers' states and count what is new in them since the last time.

        A worker that was started anew counts from zero again, so all of its counts are new.
        """
        fresh = [(state, last) for state in states if (last := self.worker(state.server)) != state]
        if not fresh:
            return
        with transaction(self._db):
            for state, last in fresh:
                is_same = last is not None and last.started_unix_ns == state.started_unix_ns
                before = worker_counts(last) if last is not None and is_same else Counter[Key]()
                for key, value in worker_counts(state).items():
                    increase = Count(key.counter, key.label, max(0, value - before[key]))
                    self._count(state.server, key.phase, [increase])
                self._db.execute(
                    "INSERT OR REPLACE INTO workers VALUES (?, ?, ?)",
                    (state.server.server_id, state.server.rank, msgspec.json.encode(state)),
                )
                self._db.execute(
                    "UPDATE captures SET recorded = max(recorded, ?) WHERE capture_id = ?",
                    (state.capture_recorded, state.capture_id),
                )

    def worker(self, server: Server) -> WorkerState | None:
        """Return the last state seen of the worker with this server id and rank."""
        query = "SELECT state FROM workers WHERE server_id = ? AND rank = ?"
        found = self._one(query, server.server_id, server.rank)
        return msgspec.json.decode(found[0], type=WorkerState) if found else None

    def prune(self, *, before_ns: int, pending: Collection[str]) -> None:
        """Delete what was analyzed, set aside or asked for before `before_ns`; counters stay.

        Steps whose captures are still `pending` are kept: that they are here is what tells that they were counted.
        """
        ids = msgspec.json.encode(list(pending)).decode()
        others = "step_id NOT IN (SELECT value FROM json_each(?))"
        with transaction(self._db):
            self._db.execute(f"DELETE FROM steps WHERE analyzed_unix_ns < ? AND {others}", (before_ns, ids))
            self._db.execute(f"DELETE FROM failures WHERE failed_unix_ns < ? AND {others}", (before_ns, ids))
            self._db.execute(f"DELETE FROM attempts WHERE {others}", (ids,))
            self._db.execute("DELETE FROM captures WHERE created_unix_ns < ?", (before_ns,))

    def totals(self) -> list[Total]:
        """Return all counters."""
        columns = ", ".join(Total.__dataclass_fields__)
        return [Total(*row) for row in self._db.execute(f"SELECT {columns} FROM totals")]

    def num_steps(self) -> int:
        """Return how many analyzed steps are kept."""
        num: int = self._one("SELECT count(*) FROM steps")[0]
        return num

    def steps(
        self, *, since_ns: int | None = None, phase: Phase | None = None, limit: int | None = None
    ) -> list[StepRow]:
        """Return the newest analyzed steps, newest first, without their breakdowns."""
        rows = self._select(", ".join(StepRow.__dataclass_fields__), since_ns=since_ns, phase=phase, limit=limit)
        return [_step_row(**dict(zip(StepRow.__dataclass_fields__, row, strict=True))) for row in rows]

    def breakdowns(
        self,
        *,
        since_ns: int | None = None,
        phase: Phase | None = None,
        server_id: str | None = None,
        capture_id: str | None = None,
        limit: int | None = None,
    ) -> list[tuple[str, Breakdown]]:
        """Return step id and breakdown of the newest analyzed steps, newest first."""
        rows = self._select(
            "step_id, breakdown",
            since_ns=since_ns,
            phase=phase,
            server_id=server_id,
            capture_id=capture_id,
            limit=limit,
        )
        return [(step_id, Breakdown.from_json(data)) for step_id, data in rows]

    def breakdown(self, step_id: str) -> bytes | None:
        """Return one step's breakdown as JSON; None for an unknown or pruned id."""
        found = self._one("SELECT breakdown FROM steps WHERE step_id = ?", step_id)
        return bytes(found[0]) if found else None

    def failure(self, step_id: str) -> str | None:
        """Return why a step was set aside; None where it was not."""
        found = self._one("SELECT reason, detail FROM failures WHERE step_id = ?", step_id)
        return f"{found[0]}: {found[1]}" if found else None

    def add_capture(self, server_id: str, request: CaptureRequest) -> str | None:
        """Store a request; where another one is still being recorded by that server, return its id instead."""
        with transaction(self._db):
            running = self._one(
                "SELECT capture_id FROM captures WHERE server_id = ? AND NOT is_cancelled AND recorded < steps"
                " AND expires_unix_ns > ?",
                server_id,
                request.created_unix_ns,
            )
            if running is not None:
                return str(running[0])
            asked = (request.capture_id, server_id, request.steps, request.phase, request.stacks)
            self._insert("captures", (*asked, request.created_unix_ns, request.expires_unix_ns, 0, False))
        return None

    def cancel_capture(self, capture_id: str) -> None:
        """Note that a request was taken back."""
        self._db.execute("UPDATE captures SET is_cancelled = 1 WHERE capture_id = ?", (capture_id,))

    def captures(self, capture_id: str | None = None, *, limit: int = 100) -> list[CaptureRow]:
        """Return the newest requests, newest first, or the one of this id.

        A server's ranks each record the steps asked for, so the slowest of all its ranks tells how far a request is.
        """
        rows = self._db.execute(_CAPTURES, (capture_id, limit))
        return [_capture_row(**dict(zip(CaptureRow.__dataclass_fields__, row, strict=True))) for row in rows]

    def _count(self, server: Server, phase: str, counts: Iterable[Count]) -> None:
        labels = (server.model_name, server.engine, server.rank, phase)
        self._db.executemany(
            "INSERT INTO totals VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET value = value + excluded.value",
            [(*labels, *count) for count in counts],
        )

    def _insert(self, table: str, row: tuple[object, ...]) -> bool:
        """Insert a row unless its key is there; return whether it was new."""
        query = f"INSERT INTO {table} VALUES ({', '.join('?' * len(row))}) ON CONFLICT DO NOTHING"
        return self._db.execute(query, row).rowcount == 1

    def _one(self, query: str, *values: object) -> Any:  # noqa: ANN401 - a row
        return self._db.execute(query, values).fetchone()

    def _select(
        self, columns: str, *, since_ns: int | None, limit: int | None, **equal: str | None
    ) -> list[tuple[Any, ...]]:
        wanted = {name: value for name, value in equal.items() if value is not None}
        conditions = ["started_unix_ns >= ?", *(f"{name} = ?" for name in wanted)]
        query = f"SELECT {columns} FROM steps WHERE {' AND '.join(conditions)} ORDER BY started_unix_ns DESC LIMIT ?"
        return self._db.execute(query, (since_ns or 0, *wanted.values(), -1 if limit is None else limit)).fetchall()


def _step_row(phase: str, replay: str, **others: Any) -> StepRow:  # noqa: ANN401 - columns
    return StepRow(phase=Phase(phase), replay=msgspec.json.decode(replay, type=dict[Tier, float]), **others)


def _capture_row(phase: str | None, stacks: int, is_cancelled: int, **others: Any) -> CaptureRow:  # noqa: ANN401
    wanted = Phase(phase) if phase else None
    return CaptureRow(phase=wanted, stacks=bool(stacks), is_cancelled=bool(is_cancelled), **others)
