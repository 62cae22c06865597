"""The route that tells of servers, spool and analysis at a glance."""

from typing import Annotated

from fastapi import APIRouter, Depends, Response

from taxbreak_vllm.model.version import package_version
from taxbreak_vllm.service.http.openapi import answer
from taxbreak_vllm.service.http.responses import AnalyzerUse, ResultsUse, SpoolUse, Status, Worker
from taxbreak_vllm.service.http.router import RouteContext, json_response
from taxbreak_vllm.service.results.live import live
from taxbreak_vllm.service.results.store import Results


def add_status_route(router: APIRouter, context: RouteContext) -> None:
    """Add `GET status`."""

    @router.get("/status", response_model=Status, responses=answer(Status))
    def status(results: Annotated[Results, Depends(context.results)]) -> Response:
        """Servers, spool and analysis at a glance."""
        return json_response(_status(results, context))


def _status(results: Results, context: RouteContext) -> Status:
    now_ns = context.now_ns()
    states = context.spool.states()
    alive = live(states, now_ns=now_ns)
    captures = context.spool.captures()
    return Status(
        version=package_version(),
        now_unix_ns=now_ns,
        window_s=context.settings.window_s,
        servers=[Worker.of(state, live=state in alive) for state in states],
        spool=SpoolUse(
            captures=len(captures),
            pending=sum(not capture.is_analyzed for capture in captures),
            bytes=sum(capture.size_bytes() for capture in captures),
        ),
        results=ResultsUse(steps=results.num_steps()),
        analyzer=AnalyzerUse(restarts=context.num_restarts()),
        energy=context.energy(),
    )
