"""The routes of analyzed steps: all of a window as one, the newest of them, each by itself, and its raw trace."""

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Response

from taxbreak_vllm.model.breakdown import Breakdown
from taxbreak_vllm.model.step import Phase
from taxbreak_vllm.service.http.advice import AdvisedBreakdown, read_advice
from taxbreak_vllm.service.http.openapi import answer, errors
from taxbreak_vllm.service.http.problems import Problem
from taxbreak_vllm.service.http.responses import StepsPage
from taxbreak_vllm.service.http.router import Cursor, Limit, RouteContext, json_response
from taxbreak_vllm.service.http.tops import ListedBreakdown, TopPage
from taxbreak_vllm.service.results.live import live
from taxbreak_vllm.service.results.server import window_hdbi
from taxbreak_vllm.service.results.store import Results
from taxbreak_vllm.service.results.window import MAX_LISTED_STEPS, MAX_STEPS
from taxbreak_vllm.settings import WindowS


class GzipResponse(Response):
    """A gzip file."""

    media_type = "application/gzip"


def add_step_routes(router: APIRouter, context: RouteContext) -> None:
    """Add `GET breakdown` and the routes below `steps`."""
    Store = Annotated[Results, Depends(context.results)]
    Top = Annotated[TopPage, Depends()]

    @router.get("/breakdown", response_model=AdvisedBreakdown, responses=answer(Breakdown))
    def breakdown(
        results: Store,
        top: Top,
        phase: Phase | None = None,
        window_s: Annotated[WindowS | None, Query(description="TAXBREAK_WINDOW_S by default")] = None,
        server_id: str | None = None,
        limit: Annotated[
            int, Query(ge=0, le=MAX_LISTED_STEPS, description="how many of the steps to list; the total is over all")
        ] = MAX_LISTED_STEPS,
    ) -> Response:
        """All steps recorded in the last `window_s` seconds as one breakdown."""
        now_ns = context.now_ns()
        since_ns = now_ns - (window_s or context.settings.window_s) * 10**9
        window = results.window(
            since_ns=since_ns, phase=phase, server_id=server_id, limit=MAX_STEPS, listed=limit, top=top.rows
        )
        notes = ["no step was analyzed in this window"] if not window.num_steps else []
        if window.num_steps == MAX_STEPS:
            notes.append(f"only the newest {MAX_STEPS} steps of this window are counted")
        engines = live(context.spool.engine_states(), now_ns=now_ns)
        balance = window_hdbi(window, engines, server_id=server_id, phase=phase)
        advice = read_advice(results, context.spool, now_ns=now_ns, since_ns=since_ns, phase=phase, server_id=server_id)
        told = {"hdbi_server": balance, "notes": [*notes, *window.breakdown.notes], "advice": advice}
        return json_response(top.of_window(window) | told)

    @router.get("/steps", response_model=StepsPage, responses=answer(StepsPage))
    def steps(results: Store, limit: Limit = 100, phase: Phase | None = None, cursor: Cursor = None) -> Response:
        """The newest analyzed steps, newest first."""
        rows = results.steps(phase=phase, limit=limit + 1, after=cursor)
        return json_response(StepsPage(steps=rows[:limit], next=rows[limit - 1].step_id if len(rows) > limit else None))

    @router.get(
        "/steps/{step_id}", response_model=ListedBreakdown, responses=answer(Breakdown) | errors(HTTPStatus.NOT_FOUND)
    )
    def step(results: Store, top: Top, step_id: str) -> Response:
        """The breakdown of one step."""
        data = results.breakdown(step_id)
        if data is None:
            failure = results.failure(step_id)
            raise Problem(
                HTTPStatus.NOT_FOUND, f"its capture was set aside: {failure}" if failure else "no such analyzed step"
            )
        return Response(top.of_step(data), media_type="application/json")

    @router.get(
        "/steps/{step_id}/trace",
        response_class=GzipResponse,
        responses=errors(HTTPStatus.NOT_FOUND),
    )
    def trace(step_id: str) -> Response:
        """The raw trace of one step, gzip-compressed, as Perfetto opens it."""
        capture = context.spool.find(step_id)
        try:
            data = capture.trace_path.read_bytes() if capture else None
        except FileNotFoundError:
            data = None
        if data is None:
            raise Problem(HTTPStatus.NOT_FOUND, "no such capture in the spool; the oldest are evicted")
        return GzipResponse(data, headers={"Content-Disposition": f'attachment; filename="{step_id}.json.gz"'})
