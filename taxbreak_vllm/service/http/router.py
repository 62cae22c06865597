"""The router under /v1/taxbreak without its routes: the key in front of it, and every error a problem."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated

import msgspec
from fastapi import APIRouter, Query, Response, Security
from fastapi.security import HTTPBearer

from taxbreak_vllm.service.http.openapi import errors
from taxbreak_vllm.service.http.problems import problem_route
from taxbreak_vllm.service.results.store import Results
from taxbreak_vllm.settings import Settings
from taxbreak_vllm.spool.spool import Spool

PREFIX = "/v1/taxbreak"

Limit = Annotated[int, Query(ge=1, le=1000, description="how many at most")]
Cursor = Annotated[str | None, Query(max_length=200, description="`next` of the page before")]


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteContext:
    """What the routes work on; `server_id` names the server that is meant where a request names none."""

    settings: Settings
    spool: Spool
    server_id: Callable[[], str | None] = lambda: None
    num_restarts: Callable[[], int] = lambda: 0
    now_ns: Callable[[], int] = time.time_ns

    def results(self) -> Iterator[Results]:
        """Open the results for one request."""
        with Results(self.settings.results_path) as results:
            yield results


def new_router(settings: Settings, *statuses: HTTPStatus) -> APIRouter:
    """Build a router all of whose routes may answer with these problems."""
    key = settings.api_key
    return APIRouter(
        prefix=PREFIX,
        tags=["taxbreak"],
        route_class=problem_route(key),
        dependencies=[Security(HTTPBearer(auto_error=False))] if key else [],
        responses=errors(*statuses, *([HTTPStatus.UNAUTHORIZED] if key else [])),
    )


def json_response(
    value: object, *, status_code: int = HTTPStatus.OK, headers: Mapping[str, str] | None = None
) -> Response:
    """Answer with what msgspec writes."""
    data = msgspec.json.encode(value)
    return Response(data, status_code=status_code, media_type="application/json", headers=headers)
