"""What is known about the past: steps, counters, workers' states and requests for steps, in one SQLite file.

The analyzer writes steps, anyone reads. Steps go in with their breakdown and are pruned by age; what they add to the
counters goes into `totals` in the same transaction and stays, so counters outlive pruning and restarts. A step, a
failure or a change of a worker's counters counts once, however often it is handed in. Times are integer ns.
"""

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self

import msgspec

from taxbreak_vllm.model.breakdown import Breakdown, Tier
from taxbreak_vllm.model.errors import TaxbreakError
from taxbreak_vllm.model.step import STEP_BUCKETS_NS, Phase, Server, StepInfo
from taxbreak_vllm.model.worker import CaptureRequest, WorkerState
from taxbreak_vllm.service.counts import Count, Key, step_counts, worker_counts
from taxbreak_vllm.service.schema import open_database, transaction
from taxbreak_vllm.service.window import (
    BALANCE_SUMS,
    MAX_LISTED_STEPS,
    TIERS,
    Window,
    read_window,
    summed_values,
)

CaptureStatus = Literal["running", "done", "expired", "cancelled"]

_ANALYSIS_GRACE_NS = 60 * 10**9
_MINUTE_NS = 60 * 10**9
_PORTIONS = 16  # of the steps one goes at a time where there are too many: few enough to commit, enough to be done soon
_CAPTURES = """
WITH chosen AS (
    SELECT * FROM captures
    WHERE (?1 IS NULL OR capture_id = ?1) AND (?2 IS NULL OR (created_unix_ns, capture_id)
        < (SELECT created_unix_ns, capture_id FROM captures WHERE capture_id = ?2))
    ORDER BY created_unix_ns DESC, capture_id DESC LIMIT ?3
), by_rank AS (
    SELECT capture_id, json_extract(CAST(state AS TEXT), '$.server.engine') AS engine,
        (SELECT count(*) FROM steps s WHERE s.capture_id = chosen.capture_id AND s.rank = w.rank) AS analyzed,
        (SELECT count(*) FROM failures f WHERE f.capture_id = chosen.capture_id AND f.rank = w.rank) AS failed
    FROM chosen JOIN workers w USING (server_id)
    WHERE json_extract(CAST(state AS TEXT), '$.records') IS NOT 0
), by_engine AS (
    SELECT capture_id, min(analyzed) AS analyzed, min(analyzed + failed) AS settled
    FROM by_rank GROUP BY capture_id, engine
)
SELECT capture_id, server_id, steps, phase, stacks, created_unix_ns, expires_unix_ns, recorded, is_cancelled,
    coalesce((SELECT max(analyzed) FROM by_engine b WHERE b.capture_id = chosen.capture_id), 0),
    coalesce((SELECT max(settled) FROM by_engine b WHERE b.capture_id = chosen.capture_id), 0)
FROM chosen ORDER BY created_unix_ns DESC, capture_id DESC
"""
_decode_replay = msgspec.json.Decoder(dict[Tier, float]).decode
_NEWEST = "ORDER BY started_unix_ns DESC, seq DESC LIMIT ?"
_SUMS = ", ".join(f"sum_{index}" for index in range(2 + len(TIERS)))
_BALANCES = f"""
WITH sums (series_id, bucket, seq, {_SUMS}) AS (
    SELECT series_id, bucket, max(seq), {BALANCE_SUMS} FROM steps WHERE started_unix_ns >= ? GROUP BY series_id, bucket
)
SELECT model_name, engine, series.rank, phase, sums.bucket, step_id, started_unix_ns, window_ns, {_SUMS}
FROM sums JOIN steps USING (seq) JOIN series ON series.series_id = sums.series_id
"""
_DILATIONS = "SELECT series_id, dilation FROM steps WHERE started_unix_ns >= ? AND dilation IS NOT NULL"
_INTERNED = {"series": ("series_id", "model_name", "engine", "rank", "phase"), "ops": ("op_id", "op", "kernel")}
_COLUMNS = {
    "rank": "series.rank",
    "active_ns": '"device.active_ns"',
    "exposed_ns": '"device.idle.host_ns"',
    **{f"{tax}_ns": f'"taxes.{tax}_ns"' for tax in ("delta_ft", "delta_ct", "delta_kt", "orchestration")},
}


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
    exposed_ns: int | None
    delta_ft_ns: int | None
    delta_ct_ns: int | None
    delta_kt_ns: int | None
    orchestration_ns: int | None
    hdbi: float | None
    dilation: float | None
    replay: dict[Tier, float]


class Series(NamedTuple):
    """The labels that steps of one kind share."""

    model_name: str
    engine: str
    rank: int
    phase: str


@dataclass(frozen=True, slots=True)
class Balance:
    """The steps of one series whose recorded duration is of one bucket of `STEP_BUCKETS_NS`, within a window.

    `active_ns` and `orchestration_ns` are over the steps that have an HDBI; `tier_sums` are the orchestration time that
    rests on each `Tier`; `step_id`, `started_unix_ns` and `window_ns` are those of the step analyzed last.
    """

    series: Series
    bucket: int
    step_id: str
    started_unix_ns: int
    window_ns: int
    active_ns: int | None
    orchestration_ns: int | None
    tier_sums: tuple[int | None, ...]


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
class Refusal:
    """Why a request for steps was not taken: another one is being recorded, or there were too many of late."""

    running_id: str | None = None
    retry_after_ns: int = 0


@dataclass(frozen=True, slots=True)
class CaptureRow:
    """A request for steps and how far it came.

    `recorded` by the fastest rank of the server; `analyzed`, and `settled` (analyzed or set aside), by the slowest rank
    that records, of the engine that is furthest: another may have nothing to do.
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

    def status(self, now_ns: int) -> CaptureStatus:
        """Tell how it stands at this time."""
        if self.is_cancelled:
            return "cancelled"
        if self.settled >= self.steps:
            return "done"
        # What was recorded in time may be analyzed a little later.
        grace_ns = _ANALYSIS_GRACE_NS if self.recorded >= self.steps else 0
        return "running" if now_ns < self.expires_unix_ns + grace_ns else "expired"


class Results:
    """An open results file; a process may open it as often as it likes and use each from one thread at a time."""

    def __init__(self, path: Path) -> None:
        self._db = open_database(path)
        self._path = path
        self._inode = path.stat().st_ino

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
        breakdown = replace(breakdown, steps=(replace(step, name=step_id),))
        row = (
            *(step_id, server.server_id, server.rank, info.graph_mode, info.started_unix_ns, now_ns, info.capture_id),
            *(bisect_left(STEP_BUCKETS_NS, step.window_ns), step.hdbi, breakdown.calibration.dilation),
            *(breakdown.calibration.residual, breakdown.calibration.state, _text(breakdown.coverage.replay)),
            *(_text(replace(breakdown.source, path="")), _text(breakdown.notes), _text(step.notes)),
            *(step.unique_kernels, *summed_values(breakdown)),
        )
        with transaction(self._db):
            self.forget_attempts(step_id)
            if self._one("SELECT 1 FROM steps WHERE step_id = ?", step_id) is not None:
                return
            series_id = self._intern("series", (server.model_name, server.engine, server.rank, info.phase))
            self._insert("steps", (None, series_id, *row))
            seq: int = self._one("SELECT last_insert_rowid()")[0]
            self._insert("breakdowns", (seq, breakdown.to_json()))
            for family, share in step.families.items():
                self._insert("families", (seq, family, share.kernels, share.active_ns, share.launches))
            for position, top in enumerate(step.top):
                op_id = self._intern("ops", (top.op, top.kernel, top.family, top.i_lib))
                times_ns = (top.delta_ft_ns, top.delta_ct_ns, top.delta_kt_ns, top.active_ns)
                self._insert("top", (seq, position, op_id, top.count, *times_ns, TIERS.index(top.tier)))
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

        A worker that was started anew counts from zero again, so all of its counts are new. Raises TaxbreakError where
        the results file was deleted: what went into it from now on nobody would see.
        """
        if not self._path.exists() or self._path.stat().st_ino != self._inode:
            raise TaxbreakError(f"{self._path}: was deleted; the next analyzer makes a new one")
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

    def prune(self, *, before_ns: int, pending: Collection[str], max_bytes: int | None = None) -> None:
        """Delete what was analyzed, set aside or asked for before `before_ns`; counters stay.

        Then the oldest steps go until no more than `max_bytes` are in use: what is freed is used again, so that the
        file stays about as large. Steps whose captures are still `pending` are kept: that they are here is what tells
        that they were counted.
        """
        ids = msgspec.json.encode(list(pending)).decode()
        others = "step_id NOT IN (SELECT value FROM json_each(?))"
        with transaction(self._db):
            self._db.execute(f"DELETE FROM steps WHERE analyzed_unix_ns < ? AND {others}", (before_ns, ids))
            self._db.execute(f"DELETE FROM failures WHERE failed_unix_ns < ? AND {others}", (before_ns, ids))
            self._db.execute(f"DELETE FROM attempts WHERE {others}", (ids,))
            self._db.execute("DELETE FROM captures WHERE created_unix_ns < ?", (before_ns,))
        oldest = f"SELECT seq FROM steps WHERE {others} ORDER BY analyzed_unix_ns LIMIT ?"
        while max_bytes is not None and self.used_bytes() > max_bytes:
            portion = self.num_steps() // _PORTIONS + 1
            with transaction(self._db):
                if not self._db.execute(f"DELETE FROM steps WHERE seq IN ({oldest})", (ids, portion)).rowcount:
                    return

    def used_bytes(self) -> int:
        """Return how much of the file is in use."""
        return int(
            self._one(
                "SELECT (page_count - freelist_count) * page_size FROM "
                "pragma_page_count, pragma_freelist_count, pragma_page_size"
            )[0]
        )

    def totals(self) -> list[Total]:
        """Return all counters."""
        columns = ", ".join(Total.__dataclass_fields__)
        return [Total(*row) for row in self._db.execute(f"SELECT {columns} FROM totals")]

    def num_steps(self) -> int:
        """Return how many analyzed steps are kept."""
        num: int = self._one("SELECT count(*) FROM steps")[0]
        return num

    def steps(
        self,
        *,
        since_ns: int | None = None,
        phase: Phase | None = None,
        limit: int | None = None,
        after: str | None = None,
    ) -> list[StepRow]:
        """Return the newest analyzed steps, newest first, without their breakdowns.

        With `after`, the id of a step, those that follow it in that order; none where it is unknown.
        """
        where, values = _where(since_ns=since_ns, phase=phase)
        if after is not None:
            where += " AND (started_unix_ns, seq) < (SELECT started_unix_ns, seq FROM steps WHERE step_id = ?)"
            values.append(after)
        columns = ", ".join(_COLUMNS.get(name, name) for name in StepRow.__dataclass_fields__)
        query = f"SELECT {columns} FROM steps JOIN series USING (series_id) WHERE {where} {_NEWEST}"
        rows = self._db.execute(query, (*values, _all(limit)))
        return [_step_row(**dict(zip(StepRow.__dataclass_fields__, row, strict=True))) for row in rows]

    def balances(self, *, since_ns: int) -> list[Balance]:
        """Return the balance of every series and bucket that has a step since then."""
        rows = self._db.execute(_BALANCES, (since_ns,))
        names = [field.name for field in fields(Balance)[1:-1]]
        return [
            Balance(series=Series(*row[:4]), **dict(zip(names, row[4:10], strict=True)), tier_sums=row[10:])
            for row in rows
        ]

    def dilations(self, *, since_ns: int) -> dict[Series, list[float]]:
        """Return for every series the dilations of its steps since then."""
        found: dict[int, list[float]] = defaultdict(list)
        for series_id, dilation in self._db.execute(_DILATIONS, (since_ns,)):
            found[series_id].append(dilation)
        series = self._db.execute("SELECT series_id, model_name, engine, rank, phase FROM series")
        return {Series(*labels): found[series_id] for series_id, *labels in series if series_id in found}

    def window(
        self,
        *,
        since_ns: int | None = None,
        phase: Phase | None = None,
        server_id: str | None = None,
        capture_id: str | None = None,
        limit: int | None = None,
        listed: int = MAX_LISTED_STEPS,
        with_ops: bool = True,
    ) -> Window:
        """Return the newest analyzed steps as one breakdown that lists the newest `listed` of them."""
        where, values = _where(since_ns=since_ns, phase=phase, server_id=server_id, capture_id=capture_id)
        chosen = f"SELECT seq FROM steps JOIN series USING (series_id) WHERE {where} {_NEWEST}"
        self._db.execute("BEGIN")  # all that is read below is of one moment
        try:
            self._db.execute(f"CREATE TEMP TABLE chosen AS {chosen}", (*values, _all(limit)))
            return read_window(self._db, listed=listed, with_ops=with_ops)
        finally:
            self._db.execute("ROLLBACK")

    def breakdown(self, step_id: str) -> bytes | None:
        """Return one step's breakdown as JSON; None for an unknown or pruned id."""
        found = self._one("SELECT breakdown FROM breakdowns JOIN steps USING (seq) WHERE step_id = ?", step_id)
        return bytes(found[0]) if found else None

    def failure(self, step_id: str | None = None, *, capture_id: str | None = None) -> str | None:
        """Return why a step, or the last of those asked for at once, was set aside; None where none was."""
        query = "SELECT reason, detail FROM failures WHERE step_id = ? OR capture_id = ? ORDER BY failed_unix_ns DESC"
        found = self._one(query, step_id, capture_id)
        return f"{found[0]}: {found[1]}" if found else None

    def add_capture(self, server_id: str, request: CaptureRequest, *, per_minute: int | None = None) -> Refusal | None:
        """Store a request, unless that server is recording another one or there were `per_minute` in the last minute.

        Those taken back count too.
        """
        now_ns = request.created_unix_ns
        with transaction(self._db):
            running = self._one(
                "SELECT capture_id FROM captures WHERE server_id = ? AND NOT is_cancelled AND recorded < steps"
                " AND expires_unix_ns > ?",
                server_id,
                now_ns,
            )
            if running is not None:
                return Refusal(running_id=running[0])
            query = "SELECT created_unix_ns FROM captures ORDER BY created_unix_ns DESC LIMIT 1 OFFSET ?"
            oldest = None if per_minute is None else self._one(query, per_minute - 1)
            if oldest is not None and (retry_after_ns := oldest[0] + _MINUTE_NS - now_ns) > 0:
                return Refusal(retry_after_ns=retry_after_ns)
            asked = (request.capture_id, server_id, request.steps, request.phase, request.stacks)
            self._insert("captures", (*asked, now_ns, request.expires_unix_ns, 0, False))
        return None

    def cancel_capture(self, capture_id: str) -> None:
        """Note that a request was taken back."""
        self._db.execute("UPDATE captures SET is_cancelled = 1 WHERE capture_id = ?", (capture_id,))

    def captures(
        self, capture_id: str | None = None, *, limit: int | None = None, after: str | None = None
    ) -> list[CaptureRow]:
        """Return the newest requests, newest first, or the one of this id; with `after` those that follow that one.

        The ranks of an engine that record each record the steps asked for, so the slowest tells how far a request is.
        """
        rows = self._db.execute(_CAPTURES, (capture_id, after, _all(limit)))
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

    def _intern(self, table: str, key: tuple[object, ...]) -> int:
        """Return the id of a row of `series` or `ops`, which is inserted where it is new."""
        id_column, *columns = _INTERNED[table]
        same = " AND ".join(f"{column} = ?" for column in columns)
        query = f"SELECT {id_column} FROM {table} WHERE {same}"
        found = self._one(query, *key[: len(columns)])
        if found is None:
            self._insert(table, (None, *key))
            found = self._one(query, *key[: len(columns)])
        return int(found[0])


def _where(*, since_ns: int | None, **equal: str | None) -> tuple[str, list[object]]:
    wanted = {name: value for name, value in equal.items() if value is not None}
    return " AND ".join(["started_unix_ns >= ?", *(f"{name} = ?" for name in wanted)]), [
        since_ns or 0,
        *wanted.values(),
    ]


def _all(limit: int | None) -> int:
    return -1 if limit is None else limit


def _text(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _step_row(phase: str, replay: str, **others: Any) -> StepRow:  # noqa: ANN401 - columns
    return StepRow(phase=Phase(phase), replay=_decode_replay(replay), **others)


def _capture_row(phase: str | None, stacks: int, is_cancelled: int, **others: Any) -> CaptureRow:  # noqa: ANN401
    wanted = Phase(phase) if phase else None
    return CaptureRow(phase=wanted, stacks=bool(stacks), is_cancelled=bool(is_cancelled), **others)
