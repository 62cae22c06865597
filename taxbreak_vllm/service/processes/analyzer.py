"""The analyzer: takes captures from the spool, decomposes each once and stores the outcome, in its own process.

`supervisor.analyzer_command` starts it, and it runs until its standard input closes, as it does with the process that
started it, however that ends. Of several on one spool one works and the others wait. It may be killed at any instant: a
capture is marked only after its result is on disk, and the results count a step once.
"""

import argparse
import logging
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from taxbreak_vllm.baselines.store import Baselines
from taxbreak_vllm.model.breakdown import Breakdown
from taxbreak_vllm.model.engine import EngineState
from taxbreak_vllm.model.errors import BaselineError, SpoolError, TaxbreakError, TraceFormatError
from taxbreak_vllm.model.frontend import FrontendState
from taxbreak_vllm.model.step import Server, StepInfo
from taxbreak_vllm.model.worker import WorkerState
from taxbreak_vllm.service.processes.claim import StopEvent, begin, claimed, run_on, spool_of, spool_parser
from taxbreak_vllm.service.results.store import Results
from taxbreak_vllm.spool.capture import Capture
from taxbreak_vllm.spool.spool import Spool

logger = logging.getLogger("taxbreak.analyzer")

Analyze = Callable[[Capture], Breakdown]
State = TypeVar("State", WorkerState, EngineState, FrontendState)

MAX_ATTEMPTS = 3
MAX_CAPTURES_PER_TURN = 8  # so that the workers' states are never much older than a turn

_POLL_S = 1.0
_AWAITED_POLL_S = 0.1
_MAX_AWAITED = 16  # the newest requests; a server has one at a time
_HOUSEKEEPING_NS = 60 * 10**9
_ABANDONED_NS = 10 * 60 * 10**9
_NICENESS = 10
_MAX_DETAIL = 500
_NOT_ITS_FAULT = (sqlite3.Error, TaxbreakError)  # of the results: no other capture or state would fare better


class Analyzer:
    """Moves what happens in the spool into the results; one per spool at a time (`Spool.claim`)."""

    def __init__(
        self,
        spool: Spool,
        results: Results,
        analyze: Analyze,
        *,
        retention_ns: int,
        max_bytes: int | None = None,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._spool = spool
        self._results = results
        self._analyze = analyze
        self._retention_ns = retention_ns
        self._max_bytes = max_bytes
        self._now_ns = now_ns
        self._housekeeping_due_ns = 0
        self._postponed: set[Path] = set()
        self._refused: set[tuple[str, ...]] = set()

    def run(self, stop: StopEvent) -> None:
        """Do one turn after the other until `stop` is set, resting only when there is nothing to do."""
        while not stop.is_set():
            if self.turn() == 0:
                stop.wait(_AWAITED_POLL_S if self._is_awaited() else _POLL_S)

    def turn(self) -> int:
        """Take over what the servers say of themselves, settle the next few captures; return how many those were."""
        self._take(self._results.put_states, self._spool.states())
        self._take(self._results.put_engine_states, self._spool.engine_states())
        self._take(self._results.put_frontend_states, self._spool.frontend_states())
        captures = self._next_captures()
        for capture in captures:
            try:
                self._settle(capture)
            except _NOT_ITS_FAULT:
                raise
            except Exception as error:  # as where it may not be marked
                logger.warning("%s is left for later: %r", capture.path, error)
                self._postponed.add(capture.path)
        if not 0 < self._housekeeping_due_ns - self._now_ns() <= _HOUSEKEEPING_NS:  # due, or the clock was set back
            self._keep_house()
        return len(captures)

    def _take(self, put: Callable[[Iterable[State]], None], states: Iterable[State]) -> None:
        """Take over states; one that the results cannot hold is left out from then on."""
        states = [state for state in states if _name(state) not in self._refused]
        try:
            put(states)
        except _NOT_ITS_FAULT:
            raise
        except Exception as error:
            if len(states) > 1:
                for state in states:
                    self._take(put, [state])
            else:
                logger.warning("the state of %s is left out: %r", _name(states[0]), error)
                self._refused.add(_name(states[0]))

    def _is_awaited(self) -> bool:
        """Whether someone waits for a request for steps."""
        now_ns = self._now_ns()
        return any(row.status(now_ns) == "running" for row in self._results.captures(limit=_MAX_AWAITED))

    def _next_captures(self) -> list[Capture]:
        """Choose the oldest few; while someone waits, what was asked for goes first and the others one by one."""
        pending = [capture for capture in self._spool.pending() if capture.path not in self._postponed]
        if not pending or not self._is_awaited():
            return pending[:MAX_CAPTURES_PER_TURN]
        asked_for = [capture for capture in pending if (info := _info_or_none(capture)) and info.capture_id]
        return asked_for[:MAX_CAPTURES_PER_TURN] or pending[:1]

    def _settle(self, capture: Capture) -> None:
        """Bring one capture to its end: analyzed, set aside, or gone meanwhile."""
        if not self._results.is_settled(capture.step_id):
            if self._results.note_attempt(capture.step_id) > MAX_ATTEMPTS:
                self._set_aside(capture, "analysis_crashed", f"{MAX_ATTEMPTS} analyzers died or hung over it")
            else:
                self._decompose(capture)
        failure = self._results.failure(capture.step_id)
        with suppress(FileNotFoundError):  # evicted this very moment
            self._spool.mark(capture, f"failed: {failure}" if failure else "analyzed")

    def _decompose(self, capture: Capture) -> None:
        try:
            info = capture.read_info()
            if info.step_id != capture.step_id:
                raise SpoolError(f"{capture.path}: a copy of {info.step_id}, which counts under its own name only")
            breakdown = self._analyze(capture)
            if len(breakdown.steps) != 1:
                raise TraceFormatError(f"{capture.path}: {len(breakdown.steps)} steps in the trace of one")
            self._results.add_step(capture.step_id, info, breakdown, now_ns=self._now_ns())
        except sqlite3.Error:
            with suppress(sqlite3.Error):
                self._results.forget_attempts(capture.step_id)  # a full disk is not the capture's fault
            raise
        except Exception as error:
            if not capture.path.exists():
                self._results.forget_attempts(capture.step_id)  # evicted under our hands: its worker counts it
                return
            if not isinstance(error, TaxbreakError):
                logger.exception("a fault of taxbreak's own over %s", capture.path)
            self._set_aside(capture, "analysis_failed", f"{type(error).__name__}: {error}")
        except BaseException:
            self._results.forget_attempts(capture.step_id)  # we are asked to leave: not the capture's fault
            raise

    def _set_aside(self, capture: Capture, reason: str, detail: str) -> None:
        line = " ".join(detail.split())[:_MAX_DETAIL]
        logger.warning("%s is set aside: %s: %s", capture.path, reason, line)
        info = _info_or_none(capture)
        self._results.add_failure(
            capture.step_id,
            self._server_of(capture) if info is None else info.server,
            capture_id=None if info is None else info.capture_id,
            reason=reason,
            detail=line,
            now_ns=self._now_ns(),
        )

    def _server_of(self, capture: Capture) -> Server:
        """Tell from its place in the spool whose capture it is."""
        server = Server(server_id=capture.path.parent.parent.name, rank=int(capture.path.parent.name))
        state = self._results.worker(server)
        return server if state is None else state.server

    def _keep_house(self) -> None:
        now_ns = self._now_ns()
        self._postponed.clear()
        pending = [capture.step_id for capture in self._spool.pending()]
        before_ns = now_ns - self._retention_ns
        self._results.prune(before_ns=before_ns, pending=pending, max_bytes=self._max_bytes)
        self._spool.sweep(older_than_ns=now_ns - _ABANDONED_NS)
        self._housekeeping_due_ns = now_ns + _HOUSEKEEPING_NS


def _name(state: State) -> tuple[str, ...]:
    """Return what tells it from the other states in a spool."""
    started = str(state.started_unix_ns)
    match state:
        case WorkerState():
            return ("worker", state.server.server_id, str(state.server.rank), started)
        case EngineState():
            return ("engine", state.server_id, state.engine, started)
        case _:
            return ("api", state.server_id, state.api, started)


def _info_or_none(capture: Capture) -> StepInfo | None:
    try:
        return capture.read_info()
    except TaxbreakError:
        return None


def main(arguments: Sequence[str] | None = None, *, load: Callable[[], Analyze] | None = None) -> int:
    """Run the process; `load` imports the analysis, which only the one at work needs in memory."""
    options = _parse(arguments)
    begin(_NICENESS)
    stop = threading.Event()
    spool = spool_of(options)
    try:
        with claimed(spool, stop, role="analyzer"), Results(options.results) as results:
            analyze = _bounded((load or (lambda: load_analysis(options.baselines)))(), options.limit_s)
            bounds = {"retention_ns": options.retention_s * 10**9, "max_bytes": options.results_max_bytes}
            run_on(Analyzer(spool, results, analyze, **bounds).run, stop, role="analyzer", pause_s=_POLL_S)
    except TaxbreakError as error:
        logger.error("%s", error)
        return 1
    except sqlite3.DatabaseError as error:
        advice = "remove the file or set TAXBREAK_RESULTS to another"
        logger.error("%s: the results are damaged: %s; %s", options.results, error, advice)
        return 1
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = spool_parser("python -m taxbreak_vllm.service.processes.analyzer", __doc__)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--baselines", type=Path, required=True, help="floors and replayed baselines")
    parser.add_argument("--results-max-bytes", type=int, required=True)
    parser.add_argument("--retention-s", type=int, required=True)
    parser.add_argument("--limit-s", type=int, default=120, help="an analysis that takes longer has hung")
    return parser.parse_args(arguments)


def load_analysis(baselines: Path) -> Analyze:
    """Import the analysis, on the baselines of this file where there is one."""
    from taxbreak_vllm.insight.foreseen import foreseen
    from taxbreak_vllm.limit.live import limited
    from taxbreak_vllm.taxes.recording import Recording
    from taxbreak_vllm.taxes.terms import Terms

    def analyze_on(capture: Capture, store: Baselines | None) -> Breakdown:
        with Recording.open(capture.path, Terms(baselines=store)) as recording:
            breakdown = limited(recording)
            try:
                return foreseen(recording, breakdown)
            except Exception:  # what was measured stands without it
                logger.exception("a fault of taxbreak's own: nothing is predicted from %s", capture.path)
                return breakdown

    def analyze(capture: Capture) -> Breakdown:
        if not baselines.is_file():
            return analyze_on(capture, None)
        try:
            with Baselines(baselines) as store:  # opened anew, since the replayer may have begun it just now
                return analyze_on(capture, store)
        except BaselineError as error:
            logger.warning("%s; analyzed without baselines", error)
            return analyze_on(capture, None)

    return analyze


def _bounded(analyze: Analyze, limit_s: int) -> Analyze:
    """Let SIGALRM end the process where an analysis hangs, in C code as well; the attempt is on record."""

    def run(capture: Capture) -> Breakdown:
        signal.alarm(limit_s)
        try:
            return analyze(capture)
        finally:
            signal.alarm(0)

    return run


if __name__ == "__main__":
    sys.exit(main())
