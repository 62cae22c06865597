"""What is known about the past: steps, counters, workers' states and requests for steps, in one SQLite file.

The analyzer writes steps, anyone reads. Steps go in with their breakdown and are pruned by age; what they add to the
counters goes into `totals` in the same transaction and stays, so counters outlive pruning and restarts. A step, a
failure or a change of a worker's counters counts once, however often it is handed in. Times are integer ns.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import msgspec

from taxbreak_vllm.baselines.database import transaction
from taxbreak_vllm.model.breakdown import Breakdown
from taxbreak_vllm.model.engine import EngineState
from taxbreak_vllm.model.errors import TaxbreakError
from taxbreak_vllm.model.frontend import FrontendState
from taxbreak_vllm.model.limits import PhaseLimit
from taxbreak_vllm.model.step import Phase, Server, StepInfo
from taxbreak_vllm.model.worker import CaptureRequest, WorkerState
from taxbreak_vllm.service.results.captures import add_capture, read_captures
from taxbreak_vllm.service.results.counts import Count, Key, engine_counts, frontend_counts, step_counts, worker_counts
from taxbreak_vllm.service.results.limits import read_limits
from taxbreak_vllm.service.results.rows import Balance, CaptureRow, Refusal, Series, StepRow, Total
from taxbreak_vllm.service.results.schema import open_results
from taxbreak_vllm.service.results.series import read_balances, read_dilations, read_servers
from taxbreak_vllm.service.results.sizes import SizedRow, read_sizes
from taxbreak_vllm.service.results.steps import NEWEST, condition, insert, insert_step, read_steps
from taxbreak_vllm.service.results.window import MAX_LISTED_STEPS, MAX_TOP, Window, read_window

N = TypeVar("N", bound=EngineState | FrontendState)
T = TypeVar("T", bound=WorkerState | EngineState | FrontendState)

_PORTIONS = 16  # of the steps one goes at a time where there are too many: few enough to commit, enough to be done soon


class Results:
    """An open results file; a process may open it as often as it likes and use each from one thread at a time."""

    def __init__(self, path: Path) -> None:
        self._db = open_results(path)
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
                "INSERT INTO attempts (step_id, num) VALUES (?, 1) ON CONFLICT (step_id) DO UPDATE SET num = num + 1",
                (step_id,),
            )
            num: int = self._one("SELECT num FROM attempts WHERE step_id = ?", step_id)[0]
        return num

    def forget_attempts(self, step_id: str) -> None:
        """Take back all attempts at a step: it was settled, its capture is gone, or we ended the analysis ourselves."""
        self._db.execute("DELETE FROM attempts WHERE step_id = ?", (step_id,))

    def add_step(self, step_id: str, info: StepInfo, breakdown: Breakdown, *, now_ns: int) -> None:
        """Store the breakdown of one step and count it; a step stored before changes nothing."""
        (step,) = breakdown.steps
        with transaction(self._db):
            self.forget_attempts(step_id)
            if self._one("SELECT 1 FROM steps WHERE step_id = ?", step_id) is not None:
                return
            insert_step(self._db, step_id, info, breakdown, now_ns=now_ns)
            self._count(info.server, info.phase, step_counts(step))
            self._db.execute(
                "UPDATE captures SET recorded = max(recorded, (SELECT count(*) FROM steps"
                " WHERE steps.capture_id = captures.capture_id AND rank = ?)) WHERE capture_id = ?",
                (info.server.rank, info.capture_id),
            )

    def add_failure(
        self, step_id: str, server: Server, *, capture_id: str | None, reason: str, detail: str, now_ns: int
    ) -> None:
        """Note that a capture was set aside and count it as a dropped sample; once."""
        row = {
            "step_id": step_id,
            "server_id": server.server_id,
            "rank": server.rank,
            "capture_id": capture_id,
            "reason": reason,
            "detail": detail,
            "failed_unix_ns": now_ns,
        }
        with transaction(self._db):
            self.forget_attempts(step_id)
            if insert(self._db, "failures", row):
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
                self._count_increase(state.server, worker_counts, state, last)
                self._db.execute(
                    "INSERT OR REPLACE INTO workers (server_id, rank, state) VALUES (?, ?, ?)",
                    (state.server.server_id, state.server.rank, msgspec.json.encode(state)),
                )
                self._db.execute(
                    "UPDATE captures SET recorded = max(recorded, ?) WHERE capture_id = ?",
                    (state.capture_recorded, state.capture_id),
                )

    def put_engine_states(self, states: Iterable[EngineState]) -> None:
        """Take over the engines' states and count what is new in them since the last time."""
        self._put_named("engines", "engine", states, engine_counts)

    def put_frontend_states(self, states: Iterable[FrontendState]) -> None:
        """Take over the API servers' states and count what is new in them since the last time; they have no engine."""
        self._put_named("frontends", "api", states, frontend_counts)

    def _put_named(self, table: str, name: str, states: Iterable[N], counts: Callable[[N], Counter[Key]]) -> None:
        fresh: list[tuple[tuple[str, str], N, N | None]] = []
        for state in states:
            key = (state.server_id, state.engine if isinstance(state, EngineState) else state.api)
            found = self._one(f"SELECT state FROM {table} WHERE server_id = ? AND {name} = ?", *key)
            last = msgspec.json.decode(found[0], type=type(state)) if found else None
            if last != state:
                fresh.append((key, state, last))
        if not fresh:
            return
        with transaction(self._db):
            for names, state, last in fresh:
                engine = state.engine if isinstance(state, EngineState) else ""
                server = Server(server_id=state.server_id, engine=engine, model_name=state.model_name)
                self._count_increase(server, counts, state, last)
                row = (*names, msgspec.json.encode(state))
                self._db.execute(f"INSERT OR REPLACE INTO {table} (server_id, {name}, state) VALUES (?, ?, ?)", row)

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
        server_id: str | None = None,
        step_id: str | None = None,
        limit: int | None = None,
        after: str | None = None,
    ) -> list[StepRow]:
        """Return the newest analyzed steps, newest first, without their breakdowns.

        With `after`, the id of a step, those that follow it in that order; none where it is unknown.
        """
        chosen = {"phase": phase, "server_id": server_id, "step_id": step_id}
        return read_steps(self._db, since_ns=since_ns, limit=_all(limit), after=after, **chosen)

    def sizes(
        self,
        *,
        since_ns: int | None = None,
        phase: Phase | None = None,
        server_id: str | None = None,
        limit: int | None = None,
    ) -> list[SizedRow]:
        """Return the newest analyzed steps, newest first, with what tells who decides at the size of their batch."""
        where, values = condition(since_ns=since_ns, phase=phase, server_id=server_id)
        return read_sizes(self._db, where, (*values, _all(limit)))

    def balances(self, *, since_ns: int) -> list[Balance]:
        """Return the balance of every series and bucket that has a step since then."""
        return read_balances(self._db, since_ns=since_ns)

    def dilations(self, *, since_ns: int) -> dict[Series, list[float]]:
        """Return for every series the dilations of its steps since then."""
        return read_dilations(self._db, since_ns=since_ns)

    def servers(self, *, since_ns: int) -> dict[tuple[str, str], int]:
        """Return the model and id of every server that has a step since then, with when its newest one started."""
        return read_servers(self._db, since_ns=since_ns)

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
        top: slice = slice(MAX_TOP),
    ) -> Window:
        """Return the newest analyzed steps as one breakdown that lists the newest `listed` of them."""
        where, values = condition(since_ns=since_ns, phase=phase, server_id=server_id, capture_id=capture_id)
        chosen = f"SELECT seq FROM steps JOIN series USING (series_id) WHERE {where} {NEWEST}"
        self._db.execute("BEGIN")  # all that is read below is of one moment
        try:
            self._db.execute(f"CREATE TEMP TABLE chosen AS {chosen}", (*values, _all(limit)))
            return read_window(self._db, listed=listed, with_ops=with_ops, top=top)
        finally:
            self._db.execute("ROLLBACK")

    def limits(
        self,
        *,
        since_ns: int | None = None,
        phase: Phase | None = None,
        server_id: str | None = None,
        limit: int | None = None,
    ) -> dict[Phase, PhaseLimit]:
        """Return the hardware limit of the newest analyzed steps, by phase."""
        where, values = condition(since_ns=since_ns, phase=phase, server_id=server_id)
        return read_limits(self._db, where, (*values, _all(limit)))

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
        return add_capture(self._db, server_id, request, per_minute=per_minute)

    def cancel_capture(self, capture_id: str) -> None:
        """Note that a request was taken back."""
        self._db.execute("UPDATE captures SET is_cancelled = 1 WHERE capture_id = ?", (capture_id,))

    def captures(
        self, capture_id: str | None = None, *, limit: int | None = None, after: str | None = None
    ) -> list[CaptureRow]:
        """Return the newest requests, newest first, or the one of this id; with `after` those that follow that one.

        The ranks of an engine that record each record the steps asked for, so the slowest tells how far a request is.
        """
        return read_captures(self._db, capture_id, limit=_all(limit), after=after)

    def _count_increase(self, server: Server, counts: Callable[[T], Counter[Key]], state: T, last: T | None) -> None:
        """Count what is new in a state; one that was started anew counts from zero again, so all of it is new."""
        is_same = last is not None and last.started_unix_ns == state.started_unix_ns
        before = counts(last) if last is not None and is_same else Counter[Key]()
        for key, value in counts(state).items():
            if key not in before or value > before[key]:
                self._count(server, key.phase, [Count(key.counter, key.label, max(0, value - before[key]))])

    def _count(self, server: Server, phase: str, counts: Iterable[Count]) -> None:
        labels = (server.model_name, server.engine, server.rank, phase)
        self._db.executemany(
            "INSERT INTO totals (model_name, engine, rank, phase, counter, label, value) VALUES (?, ?, ?, ?, ?, ?, ?)"
            " ON CONFLICT DO UPDATE SET value = value + excluded.value",
            [(*labels, *count) for count in counts],
        )

    def _one(self, query: str, *values: object) -> Any:  # noqa: ANN401 - a row
        return self._db.execute(query, values).fetchone()


def _all(limit: int | None) -> int:
    return -1 if limit is None else limit
