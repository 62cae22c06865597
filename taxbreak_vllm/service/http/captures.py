"""The routes of requests for steps: make one, see how far it is, take it back."""

import math
import uuid
from http import HTTPStatus
from typing import Annotated

import msgspec
from fastapi import APIRouter, Depends, Request, Response

from taxbreak_vllm.model.errors import SpoolError
from taxbreak_vllm.model.worker import CaptureRequest
from taxbreak_vllm.service.http.openapi import answer, errors
from taxbreak_vllm.service.http.problems import Problem
from taxbreak_vllm.service.http.requests import CaptureBody
from taxbreak_vllm.service.http.responses import CaptureOutcome, CapturesPage, CaptureView
from taxbreak_vllm.service.http.router import Cursor, Limit, RouteContext, json_response
from taxbreak_vllm.service.http.servers import choose, recording
from taxbreak_vllm.service.http.tops import TopPage
from taxbreak_vllm.service.results.live import live
from taxbreak_vllm.service.results.rows import CaptureRow
from taxbreak_vllm.service.results.store import Results


def add_capture_routes(router: APIRouter, context: RouteContext) -> None:
    """Add the routes at and below `captures`."""
    Store = Annotated[Results, Depends(context.results)]

    @router.post(
        "/captures",
        status_code=HTTPStatus.ACCEPTED,
        response_model=CaptureView,
        responses=answer(CaptureView, status=HTTPStatus.ACCEPTED)
        | errors(
            *(HTTPStatus.BAD_REQUEST, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT),
            HTTPStatus.TOO_MANY_REQUESTS,
        ),
    )
    def ask(results: Store, request: Request, body: CaptureBody) -> Response:
        """Ask a running server for its next steps."""
        now_ns = context.now_ns()
        target = _target(body, context)
        wish = CaptureRequest(
            capture_id=uuid.uuid4().hex,
            steps=body.steps,
            phase=body.phase,
            stacks=body.stacks,
            max_stall_ms=body.max_stall_ms,
            created_unix_ns=now_ns,
            expires_unix_ns=now_ns + int(body.timeout_s * 1e9),
        )
        _book(results, target, wish, per_minute=context.settings.captures_per_minute)
        try:
            context.spool.put_request(target, wish)
        except SpoolError:
            results.cancel_capture(wish.capture_id)
            raise
        location = f"{request.url.path.rstrip('/')}/{wish.capture_id}"
        capture = CaptureView.of(_find(results, wish.capture_id), now_ns)
        return json_response(capture, status_code=HTTPStatus.ACCEPTED, headers={"Location": location})

    @router.get("/captures", response_model=CapturesPage, responses=answer(CapturesPage))
    def captures(results: Store, limit: Limit = 100, cursor: Cursor = None) -> Response:
        """The newest requests for steps, newest first."""
        now = context.now_ns()
        rows = [CaptureView.of(row, now) for row in results.captures(limit=limit + 1, after=cursor)]
        return json_response(
            CapturesPage(captures=rows[:limit], next=rows[limit - 1].id if len(rows) > limit else None)
        )

    @router.get(
        "/captures/{capture_id}",
        response_model=CaptureOutcome,
        responses=answer(CaptureOutcome) | errors(HTTPStatus.NOT_FOUND),
    )
    def capture(results: Store, top: Annotated[TopPage, Depends()], capture_id: str) -> Response:
        """How far a request has come, and its breakdown once it has ended."""
        row = _find(results, capture_id)
        if row.is_cancelled:
            raise Problem(HTTPStatus.NOT_FOUND, "this capture was taken back")
        found = msgspec.to_builtins(CaptureView.of(row, context.now_ns()))
        if failure := results.failure(capture_id=capture_id) or _refusal(context, capture_id):
            found["failure"] = failure
        if found["status"] != "running":
            window = results.window(capture_id=capture_id, top=top.rows)
            if window.num_steps:
                found["breakdown"] = top.of_window(window)
        return json_response(found)

    @router.delete(
        "/captures/{capture_id}",
        response_model=CaptureView,
        responses=answer(CaptureView) | errors(HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT),
    )
    def cancel(results: Store, capture_id: str) -> Response:
        """Take a request back, as often as one likes; what has ended cannot be."""
        row = _find(results, capture_id)
        status = row.status(context.now_ns())
        if status not in ("running", "cancelled"):
            raise Problem(HTTPStatus.CONFLICT, f"this capture has ended: {status}")
        context.spool.cancel_request(row.server_id, capture_id)
        results.cancel_capture(capture_id)
        return json_response(CaptureView.of(_find(results, capture_id), context.now_ns()))


def _target(body: CaptureBody, context: RouteContext) -> str:
    """Return the server that is asked, if it can be and takes so many steps; raises a `Problem`."""
    states = live(context.spool.states(), now_ns=context.now_ns())
    target = choose(recording(states), body.server_id or context.server_id())
    bounds = [state.max_capture_steps for state in states if state.server.server_id == target]
    if body.steps > (bound := min((b for b in bounds if b is not None), default=body.steps)):
        detail = f"TAXBREAK_MAX_CAPTURE_STEPS={bound} of {target}: no more steps at once"
        raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, detail)
    return target


def _book(results: Results, target: str, wish: CaptureRequest, *, per_minute: int) -> None:
    """Store a request; raises a 409 while another one of the server runs, a 429 where there were too many of late."""
    refusal = results.add_capture(target, wish, per_minute=per_minute)
    if refusal is not None and refusal.running_id is not None:
        raise Problem(HTTPStatus.CONFLICT, "a capture of this server is running", capture_id=refusal.running_id)
    if refusal is not None:
        raise Problem(
            HTTPStatus.TOO_MANY_REQUESTS,
            f"TAXBREAK_CAPTURES_PER_MINUTE={per_minute} were asked for in the last minute",
            headers={"Retry-After": str(math.ceil(refusal.retry_after_ns / 1e9))},
        )


def _refusal(context: RouteContext, capture_id: str) -> str | None:
    """Say why a worker did not record the latest step that was asked for."""
    states = [state for state in context.spool.states() if state.capture_id == capture_id]
    return next((state.capture_refusal for state in states if state.capture_refusal), None)


def _find(results: Results, capture_id: str) -> CaptureRow:
    for row in results.captures(capture_id):
        return row
    raise Problem(HTTPStatus.NOT_FOUND, "no such capture")
