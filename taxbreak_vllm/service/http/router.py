"""The router under /v1/taxbreak without its routes: the keys in front of it, and every error a problem.

All of it lives in the class of our routes: on vLLM's app it must not change how vLLM answers.
"""

import sqlite3
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, HTTPException, Query, Request, Response, Security
from fastapi.dependencies.models import Dependant
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from pydantic import BaseModel
from starlette.types import Receive, Scope, Send

from taxbreak_vllm.model.energy import EngineEnergy
from taxbreak_vllm.model.errors import TaxbreakError
from taxbreak_vllm.service.http.keys import Keys
from taxbreak_vllm.service.http.openapi import errors
from taxbreak_vllm.service.http.problems import Problem, problem_response
from taxbreak_vllm.service.http.trace_reads import TraceReads
from taxbreak_vllm.service.results.store import Results
from taxbreak_vllm.settings import Settings
from taxbreak_vllm.spool.spool import Spool

PREFIX = "/v1/taxbreak"

Limit = Annotated[int, Query(ge=1, le=1000, description="how many at most")]
Cursor = Annotated[str | None, Query(max_length=200, description="`next` of the page before")]

_KEY_STATUSES = (HTTPStatus.UNAUTHORIZED, HTTPStatus.TOO_MANY_REQUESTS)
_NAMED_CHARACTERS = 80  # of a name that nobody knows


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteContext:
    """What the routes work on; `server_id` names the server that is meant where a request names none."""

    settings: Settings
    spool: Spool
    traces: TraceReads
    server_id: Callable[[], str | None] = lambda: None
    num_restarts: Callable[[], int] = lambda: 0
    energy: Callable[[], Sequence[EngineEnergy] | None] = lambda: None
    now_ns: Callable[[], int] = time.time_ns

    def results(self) -> Iterator[Results]:
        """Open the results for one request."""
        with Results(self.settings.results_path) as results:
            yield results


def new_router(keys: Keys) -> APIRouter:
    """Build a router all of whose routes may answer with these problems."""
    statuses = [HTTPStatus.UNPROCESSABLE_ENTITY, HTTPStatus.SERVICE_UNAVAILABLE]
    return APIRouter(
        prefix=PREFIX,
        tags=["taxbreak"],
        route_class=problem_route(keys),
        dependencies=[Security(HTTPBearer(auto_error=False))] if keys.are_set else [],
        responses=errors(*statuses, *(_KEY_STATUSES if keys.are_set else [])),
    )


def problem_route(keys: Keys) -> type[APIRoute]:
    """Return the class of one router's routes: the key first, then the request, and every error a problem."""
    methods_by_path: dict[str, set[str]] = {}

    class ProblemRoute(APIRoute):
        def __init__(self, path: str, *args: Any, **options: Any) -> None:  # noqa: ANN401 - FastAPI's own
            super().__init__(path, *args, **options)
            methods_by_path.setdefault(path, set()).update(self.methods)

        async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
            """Answer a wrong method here, for Starlette names the methods of one of a path's routes only."""
            if scope["method"] in self.methods:
                await super().handle(scope, receive, send)
            else:
                allowed = ", ".join(sorted(methods_by_path[self.path]))
                error = HTTPException(HTTPStatus.METHOD_NOT_ALLOWED, headers={"Allow": allowed})
                await problem_response(error)(scope, receive, send)

        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()
            known = sorted(_query_names(self.dependant))

            async def answer(request: Request) -> Response:
                try:
                    keys.check(request)
                    _check_query(request, known)
                    response = await handle(request)
                except (
                    Problem,
                    RequestValidationError,
                    HTTPException,
                    TaxbreakError,
                    sqlite3.DatabaseError,
                ) as error:
                    response = problem_response(error)
                if keys.are_set:  # a cache between here and a browser does not know that the cookie matters
                    response.headers["Cache-Control"] = "no-store"
                return response

            return answer

    return ProblemRoute


def json_response(
    value: object, *, status_code: int = HTTPStatus.OK, headers: Mapping[str, str] | None = None
) -> Response:
    """Answer with what msgspec writes."""
    data = msgspec.json.encode(value)
    return Response(data, status_code=status_code, media_type="application/json", headers=headers)


def _query_names(dependant: Dependant) -> set[str]:
    own: set[str] = set()
    for field in dependant.query_params:
        kind = field.field_info.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):  # its members are the parameters
            own |= {each.alias or name for name, each in kind.model_fields.items()}
        else:
            own.add(field.alias)
    return own.union(*map(_query_names, dependant.dependencies))


def _check_query(request: Request, known: list[str]) -> None:
    """Raise a 422 for a parameter that a route does not have: misspelt, it would else be left out in silence."""
    takes = f"this takes {', '.join(known)}" if known else "this takes none"
    wrong = [name[:_NAMED_CHARACTERS] for name in request.query_params if name not in known]
    if wrong:
        raise Problem(
            HTTPStatus.UNPROCESSABLE_ENTITY,
            f"{wrong[0] or 'a parameter without a name'}: no such query parameter; {takes}",
            errors=[{"loc": ["query", name], "msg": f"no such query parameter; {takes}"} for name in wrong],
        )
