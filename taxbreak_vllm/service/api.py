"""The routes under /v1/taxbreak, the same on the sidecar and on vLLM's own server: JSON out of the results.

They read SQLite in the thread pool and never analyze; bodies leave as bytes that msgspec wrote, described by `bodies`.
"""

import math
import time
import uuid
from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import Annotated

import msgspec
from fastapi import APIRouter, Depends, Query, Request, Response, Security
from fastapi.security import HTTPBearer

import taxbreak_vllm
from taxbreak_vllm.model.breakdown import Breakdown
from taxbreak_vllm.model.errors import SpoolError
from taxbreak_vllm.model.step import Phase
from taxbreak_vllm.model.worker import CaptureRequest
from taxbreak_vllm.service.bodies import (
    AnalyzerUse,
    Capture,
    CaptureBody,
    CaptureOutcome,
    CapturesPage,
    ResultsUse,
    SpoolUse,
    Status,
    StepsPage,
    Worker,
    answer,
    errors,
)
from taxbreak_vllm.service.control import add_control_routes
from taxbreak_vllm.service.problems import Problem, problem_route
from taxbreak_vllm.service.results import CaptureRow, Results
from taxbreak_vllm.service.servers import choose, live, recording
from taxbreak_vllm.service.window import MAX_LISTED_STEPS, MAX_STEPS
from taxbreak_vllm.settings import YEAR_S, Settings
from taxbreak_vllm.spool.spool import Spool

PREFIX = "/v1/taxbreak"

Limit = Annotated[int, Query(ge=1, le=1000, description="how many at most")]
Cursor = Annotated[str | None, Query(max_length=200, description="`next` of the page before")]


def create_router(
    settings: Settings,
    *,
    server_id: Callable[[], str | None] = lambda: None,
    num_restarts: Callable[[], int] = lambda: 0,
    now_ns: Callable[[], int] = time.time_ns,
) -> APIRouter:
    """Build the router; `server_id` names the server asked for steps where a request names none."""
    key = settings.api_key
    common = [HTTPStatus.UNPROCESSABLE_ENTITY, HTTPStatus.SERVICE_UNAVAILABLE]
    router = APIRouter(
        prefix=PREFIX,
        tags=["taxbreak"],
        route_class=problem_route(key),
        dependencies=[Security(HTTPBearer(auto_error=False))] if key else [],
        responses=errors(*common, *([HTTPStatus.UNAUTHORIZED] if key else [])),
    )
    spool = Spool(settings.spool, max_bytes=settings.spool_max_bytes, max_captures=settings.spool_max_captures)

    def open_results() -> Iterator[Results]:
        with Results(settings.results_path) as results:
            yield results

    Store = Annotated[Results, Depends(open_results)]

    @router.get("/status", response_model=Status, responses=answer(Status))
    def status(results: Store) -> Response:
        """Servers, spool and analysis at a glance."""
        now = now_ns()
        states = spool.states()
        alive = live(states, now_ns=now)
        captures = spool.captures()
        return _json(
            Status(
                version=taxbreak_vllm.__version__,
                now_unix_ns=now,
                window_s=settings.window_s,
                servers=[Worker.of(state, live=state in alive) for state in states],
                spool=SpoolUse(
                    captures=len(captures),
                    pending=sum(not capture.is_analyzed for capture in captures),
                    bytes=sum(capture.size_bytes() for capture in captures),
                ),
                results=ResultsUse(steps=results.num_steps()),
                analyzer=AnalyzerUse(restarts=num_restarts()),
            )
        )

    @router.get("/breakdown", response_model=Breakdown, responses=answer(Breakdown))
    def breakdown(
        results: Store,
        phase: Phase | None = None,
        window_s: Annotated[int | None, Query(ge=1, le=YEAR_S, description="TAXBREAK_WINDOW_S by default")] = None,
        server_id: str | None = None,
        limit: Annotated[
            int, Query(ge=0, le=MAX_LISTED_STEPS, description="how many of the steps to list; the total is over all")
        ] = MAX_LISTED_STEPS,
    ) -> Response:
        """All steps recorded in the last `window_s` seconds as one breakdown."""
        since_ns = now_ns() - (window_s or settings.window_s) * 10**9
        window = results.window(since_ns=since_ns, phase=phase, server_id=server_id, limit=MAX_STEPS, listed=limit)
        notes = ["no step was analyzed in this window"] if not window.num_steps else []
        if window.num_steps == MAX_STEPS:
            notes.append(f"only the newest {MAX_STEPS} steps of this window are counted")
        return _json(window.to_builtins() | {"notes": [*notes, *window.breakdown.notes]})

    @router.get("/steps", response_model=StepsPage, responses=answer(StepsPage))
    def steps(results: Store, limit: Limit = 100, phase: Phase | None = None, cursor: Cursor = None) -> Response:
        """The newest analyzed steps, newest first."""
        rows = results.steps(phase=phase, limit=limit + 1, after=cursor)
        return _json(StepsPage(steps=rows[:limit], next=rows[limit - 1].step_id if len(rows) > limit else None))

    @router.get(
        "/steps/{step_id}", response_model=Breakdown, responses=answer(Breakdown) | errors(HTTPStatus.NOT_FOUND)
    )
    def step(results: Store, step_id: str) -> Response:
        """The breakdown of one step."""
        data = results.breakdown(step_id)
        if data is None:
            failure = results.failure(step_id)
            raise Problem(
                HTTPStatus.NOT_FOUND, f"its capture was set aside: {failure}" if failure else "no such analyzed step"
            )
        return Response(data, media_type="application/json")

    @router.get(
        "/steps/{step_id}/trace",
        response_class=GzipResponse,
        responses=errors(HTTPStatus.NOT_FOUND),
    )
    def trace(step_id: str) -> Response:
        """The raw trace of one step, gzip-compressed, as Perfetto opens it."""
        capture = spool.find(step_id)
        try:
            data = capture.trace_path.read_bytes() if capture else None
        except FileNotFoundError:
            data = None
        if data is None:
            raise Problem(HTTPStatus.NOT_FOUND, "no such capture in the spool; the oldest are evicted")
        return GzipResponse(data, headers={"Content-Disposition": f'attachment; filename="{step_id}.json.gz"'})

    @router.post(
        "/captures",
        status_code=HTTPStatus.ACCEPTED,
        response_model=Capture,
        responses=answer(Capture, status=HTTPStatus.ACCEPTED)
        | errors(HTTPStatus.BAD_REQUEST, HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT, HTTPStatus.TOO_MANY_REQUESTS),
    )
    def ask(results: Store, request: Request, body: CaptureBody) -> Response:
        """Ask a running server for its next steps."""
        now = now_ns()
        states = live(spool.states(), now_ns=now)
        target = choose(recording(states), body.server_id or server_id())
        bounds = [state.max_capture_steps for state in states if state.server.server_id == target]
        if body.steps > (bound := min((b for b in bounds if b is not None), default=body.steps)):
            detail = f"TAXBREAK_MAX_CAPTURE_STEPS={bound} of {target}: no more steps at once"
            raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, detail)
        wish = CaptureRequest(
            capture_id=uuid.uuid4().hex,
            steps=body.steps,
            phase=body.phase,
            stacks=body.stacks,
            created_unix_ns=now,
            expires_unix_ns=now + int(body.timeout_s * 1e9),
        )
        refusal = results.add_capture(target, wish, per_minute=settings.captures_per_minute)
        if refusal is not None and refusal.running_id is not None:
            raise Problem(HTTPStatus.CONFLICT, "a capture of this server is running", capture_id=refusal.running_id)
        if refusal is not None:
            raise Problem(
                HTTPStatus.TOO_MANY_REQUESTS,
                f"TAXBREAK_CAPTURES_PER_MINUTE={settings.captures_per_minute} were asked for in the last minute",
                headers={"Retry-After": str(math.ceil(refusal.retry_after_ns / 1e9))},
            )
        try:
            spool.put_request(target, wish)
        except SpoolError:
            results.cancel_capture(wish.capture_id)
            raise
        location = f"{request.url.path.rstrip('/')}/{wish.capture_id}"
        capture = Capture.of(_find(results, wish.capture_id), now)
        return _json(capture, status_code=HTTPStatus.ACCEPTED, headers={"Location": location})

    @router.get("/captures", response_model=CapturesPage, responses=answer(CapturesPage))
    def captures(results: Store, limit: Limit = 100, cursor: Cursor = None) -> Response:
        """The newest requests for steps, newest first."""
        now = now_ns()
        rows = [Capture.of(row, now) for row in results.captures(limit=limit + 1, after=cursor)]
        return _json(CapturesPage(captures=rows[:limit], next=rows[limit - 1].id if len(rows) > limit else None))

    @router.get(
        "/captures/{capture_id}",
        response_model=CaptureOutcome,
        responses=answer(CaptureOutcome) | errors(HTTPStatus.NOT_FOUND),
    )
    def capture(results: Store, capture_id: str) -> Response:
        """How far a request has come, and its breakdown once it has ended."""
        row = _find(results, capture_id)
        if row.is_cancelled:
            raise Problem(HTTPStatus.NOT_FOUND, "this capture was taken back")
        found = msgspec.to_builtins(Capture.of(row, now_ns()))
        if failure := results.failure(capture_id=capture_id):
            found["failure"] = failure
        if found["status"] != "running" and (window := results.window(capture_id=capture_id)).num_steps:
            found["breakdown"] = window.to_builtins()
        return _json(found)

    @router.delete(
        "/captures/{capture_id}",
        response_model=Capture,
        responses=answer(Capture) | errors(HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT),
    )
    def cancel(results: Store, capture_id: str) -> Response:
        """Take a request back, as often as one likes; what has ended cannot be."""
        row = _find(results, capture_id)
        status = row.status(now_ns())
        if status not in ("running", "cancelled"):
            raise Problem(HTTPStatus.CONFLICT, f"this capture has ended: {status}")
        spool.cancel_request(row.server_id, capture_id)
        results.cancel_capture(capture_id)
        return _json(Capture.of(_find(results, capture_id), now_ns()))

    add_control_routes(router, spool, server_id=server_id, now_ns=now_ns)
    return router


class GzipResponse(Response):
    """A gzip file."""

    media_type = "application/gzip"


def _find(results: Results, capture_id: str) -> CaptureRow:
    for row in results.captures(capture_id):
        return row
    raise Problem(HTTPStatus.NOT_FOUND, "no such capture")


def _json(value: object, *, status_code: int = HTTPStatus.OK, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(value), status_code=status_code, media_type="application/json", headers=headers)
