"""The route of advice, and what the page and `GET breakdown` show of it.

In: the newest recorded steps of each phase, and what servers publish of themselves. Out: one `AdviceReport`. Where a
server was started again with other settings, only its newest start is advised on, and what came of the change is said.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Annotated

import msgspec
from fastapi import APIRouter, Depends, Query, Response

from taxbreak_vllm.insight.advice import advise
from taxbreak_vllm.insight.evidence import by_phase, distrust
from taxbreak_vllm.insight.held import Run, outcomes
from taxbreak_vllm.insight.joined import joined
from taxbreak_vllm.insight.server_advice import advise_server
from taxbreak_vllm.insight.server_evidence import ServerEvidence
from taxbreak_vllm.insight.serving_time import timed_steps
from taxbreak_vllm.machine.limits import read_machine
from taxbreak_vllm.model.advice import AdviceReport, Outcome
from taxbreak_vllm.model.breakdown import Breakdown
from taxbreak_vllm.model.engine import EngineState
from taxbreak_vllm.model.frontend import FrontendState
from taxbreak_vllm.model.step import Phase
from taxbreak_vllm.model.worker import WorkerState
from taxbreak_vllm.service.http.openapi import answer
from taxbreak_vllm.service.http.router import RouteContext, json_response
from taxbreak_vllm.service.http.tops import ListedBreakdown
from taxbreak_vllm.service.http.transition import read_transitions
from taxbreak_vllm.service.results.live import live
from taxbreak_vllm.service.results.rows import StepRow
from taxbreak_vllm.service.results.store import Results
from taxbreak_vllm.settings import WindowS
from taxbreak_vllm.spool.spool import Spool

MAX_ADVISED_STEPS = 20  # of each phase; decoding one takes half a millisecond
MAX_COMPARED_STEPS = 50  # of each phase, before and after a change

_MAX_ROWS = 1000  # looked through for them


@dataclass(frozen=True, slots=True, kw_only=True)
class AdvisedBreakdown(ListedBreakdown):
    """The steps of a window as one breakdown, with the advice on it."""

    advice: AdviceReport | None = None


def add_advice_route(router: APIRouter, context: RouteContext) -> None:
    """Add `GET advice`."""

    @router.get("/advice", response_model=AdviceReport, responses=answer(AdviceReport))
    def advice(
        results: Annotated[Results, Depends(context.results)],
        phase: Phase | None = None,
        window_s: Annotated[WindowS | None, Query(description="TAXBREAK_WINDOW_S by default")] = None,
        server_id: str | None = None,
        capture_id: Annotated[str | None, Query(description="only the steps of this request")] = None,
    ) -> Response:
        """What to change, the most it can win, what would refute it, and whether what was changed held."""
        now_ns = context.now_ns()
        since_ns = None if capture_id else now_ns - (window_s or context.settings.window_s) * 10**9
        report = read_advice(
            results, context.spool, since_ns=since_ns, now_ns=now_ns, phase=phase, server_id=server_id,
            capture_id=capture_id,
        )  # fmt: skip
        return json_response(report)


def read_advice(
    results: Results,
    spool: Spool,
    *,
    now_ns: int,
    since_ns: int | None,
    phase: Phase | None = None,
    server_id: str | None = None,
    capture_id: str | None = None,
) -> AdviceReport:
    """Advise on the newest steps of each phase of one model, on what is around them, and on the machine."""
    rows = results.steps(since_ns=since_ns, phase=phase, server_id=server_id, limit=_MAX_ROWS)
    rows = [row for row in rows if capture_id in (None, row.capture_id)]
    states = spool.states()
    alive = [state for state in live(states, now_ns=now_ns) if server_id in (None, state.server.server_id)]
    running = {state.server.server_id for state in alive}
    if running:  # an earlier start is not what is there to be changed
        rows = [row for row in rows if row.server_id in running]
    rows = [row for row in rows if row.model_name == rows[0].model_name]
    of_model = [state for state in alive if not rows or state.server.model_name == rows[0].model_name]
    machine = read_machine(of_model[0].server.pid) if len(of_model) == 1 else None
    turns = None
    if rows and capture_id is None:
        turns = read_transitions(results, since_ns=since_ns, phase=phase, server_id=rows[0].server_id).transitions
    report = advise(_breakdowns(results, rows), machine=machine, timed=timed_steps(of_model), turns=turns)
    if phase is None and capture_id is None:
        around = {state.server.server_id for state in of_model} if server_id is None else {server_id}
        report = _with_server(report, spool, of_model, around, now_ns=now_ns)
        report = replace(report, outcomes=_outcomes(results, spool, states, of_model))
    return report


def _with_server(
    report: AdviceReport, spool: Spool, workers: Sequence[WorkerState], ids: Collection[str], *, now_ns: int
) -> AdviceReport:
    """Add what is around the steps of these servers, or of all where none is named."""
    engines = [state for state in live(spool.engine_states(), now_ns=now_ns) if not ids or state.server_id in ids]
    frontends = [state for state in live(spool.frontend_states(), now_ns=now_ns) if not ids or state.server_id in ids]
    return joined(report, advise_server(engines, workers, frontends)) if engines or frontends else report


def _outcomes(
    results: Results, spool: Spool, states: Sequence[WorkerState], alive: Sequence[WorkerState]
) -> tuple[Outcome, ...]:
    """Compare the newest start of a server with the last before it that had other settings, and served."""
    after = max(alive, key=lambda state: state.started_unix_ns, default=None)
    if after is None or not after.settings:
        return ()
    earlier = [
        state
        for state in states
        if state.settings
        and state.started_unix_ns < after.started_unix_ns
        and state.settings != after.settings
        and (state.server.model_name, state.server.device_name) == (after.server.model_name, after.server.device_name)
        and state.server.server_id not in {running.server.server_id for running in alive}
    ]
    # a start that nothing was recorded of, as one whose flags were wrong, is no start to compare with
    recorded = [state for state in earlier if results.steps(server_id=state.server.server_id, limit=1)]
    before = max(recorded or earlier, key=lambda state: state.started_unix_ns, default=None)
    if before is None:
        return ()
    old, new = (_trusted(results, state.server.server_id) for state in (before, after))
    was, now = (_around(spool, states, state.server.server_id) for state in (before, after))
    advised = (*advise(old, timed=timed_steps([before])).advice, *advise_server(*was).advice)
    return outcomes(
        advised,
        Run.of(before.settings, by_phase(old, None, None), ServerEvidence.of_each(*was)),
        Run.of(after.settings, by_phase(new, None, None), ServerEvidence.of_each(*now)),
    )


def _around(
    spool: Spool, states: Sequence[WorkerState], server_id: str
) -> tuple[list[EngineState], list[WorkerState], list[FrontendState]]:
    """Return the states of one start of a server, whether it runs or not."""
    return (
        [state for state in spool.engine_states() if state.server_id == server_id],
        [state for state in states if state.server.server_id == server_id],
        [state for state in spool.frontend_states() if state.server_id == server_id],
    )


def _trusted(results: Results, server_id: str) -> list[Breakdown]:
    rows = results.steps(server_id=server_id, limit=_MAX_ROWS)
    found = _breakdowns(results, rows, most=MAX_COMPARED_STEPS)
    return [breakdown for breakdown in found if distrust(breakdown) is None]


def _breakdowns(results: Results, rows: Sequence[StepRow], *, most: int = MAX_ADVISED_STEPS) -> list[Breakdown]:
    """Read the newest steps of each phase."""
    chosen: dict[Phase, list[str]] = {}
    for row in rows:
        chosen.setdefault(row.phase, []).append(row.step_id)
    return list(_read(results, [step_id for ids in chosen.values() for step_id in ids[:most]]))


def _read(results: Results, step_ids: Iterable[str]) -> Iterator[Breakdown]:
    """Yield those that are kept and that this version can read: another one may have written them."""
    for step_id in step_ids:
        data = results.breakdown(step_id)
        if data is not None:
            with suppress(msgspec.ValidationError):
                yield Breakdown.from_json(data)
