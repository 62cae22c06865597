"""The route that tells what requests went through: the waterfalls and the sums of the API servers that run."""

from collections.abc import Sequence
from enum import StrEnum
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Query, Response

from taxbreak_vllm.model.frontend import FrontendState
from taxbreak_vllm.service.http.openapi import answer, errors
from taxbreak_vllm.service.http.problems import Problem
from taxbreak_vllm.service.http.responses import Requests, RequestWaterfall
from taxbreak_vllm.service.http.router import Limit, RouteContext, json_response
from taxbreak_vllm.service.results.live import live

NOT_FOLLOWED = (
    "no API server is followed: name the plugin on the server (VLLM_PLUGINS=taxbreak); the Rust frontend and offline"
    " engines have none to follow"
)


class Order(StrEnum):
    """Which requests come first."""

    NEWEST = "newest"
    SLOWEST = "slowest"


def add_request_routes(router: APIRouter, context: RouteContext) -> None:
    """Add `GET requests`."""

    @router.get("/requests", response_model=Requests, responses=answer(Requests) | errors(HTTPStatus.NOT_FOUND))
    def requests(
        limit: Limit = 100,
        api: Annotated[str | None, Query(max_length=200, description="one API server of each server: 0, 1, …")] = None,
        server_id: Annotated[str | None, Query(max_length=200)] = None,
        sort: Order = Order.NEWEST,
    ) -> Response:
        """The newest requests of the API servers that run, stage by stage, and the sums since their start, in ns."""
        followed = live(context.spool.frontend_states(), now_ns=context.now_ns())
        chosen = [s for s in followed if api in (None, s.api) and server_id in (None, s.server_id)]
        if followed and not chosen:
            names = [f"{state.server_id}/{state.api}" for state in followed]
            raise Problem(HTTPStatus.NOT_FOUND, f"none of the API servers that run: {', '.join(names)}")
        found = [
            RequestWaterfall.of(waterfall, state)
            for state in chosen
            for waterfall in context.spool.waterfalls(state.server_id, state.api)
        ]
        found.sort(key=_time_taken if sort is Order.SLOWEST else _time_ended, reverse=True)
        return json_response(
            Requests(api_servers=chosen, waterfalls=found[:limit] or None, reason=None if found else why_none(chosen))
        )


def why_none(followed: Sequence[FrontendState]) -> str:
    """Say why these API servers have no waterfall of any request."""
    if not followed:
        return NOT_FOLLOWED
    for state in followed:
        if state.off_reason is not None:
            return f"API server {state.api} is no longer followed: {state.off_reason}"
    if any(state.total.num for state in followed):
        return f"none of the requests that are followed, one in {followed[0].followed_every}, has ended yet"
    if any(state.num_unknown for state in followed):
        return "the server keeps no times of its requests (--disable-log-stats)"
    return "no request has ended yet"


def _time_taken(waterfall: RequestWaterfall) -> int:
    return waterfall.total_ns


def _time_ended(waterfall: RequestWaterfall) -> int:
    return waterfall.started_unix_ns + waterfall.total_ns
