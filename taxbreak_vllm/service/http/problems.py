"""Errors of the HTTP API as RFC 9457 problem JSON, and the bearer token in front of it.

Both live in the route class of our own router: on vLLM's app they must not change how vLLM answers.
"""

import base64
import binascii
import hmac
import json
import sqlite3
from collections.abc import Callable, Coroutine, Mapping
from http import HTTPStatus
from typing import Any

from fastapi import HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import SecretStr
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from taxbreak_vllm.model.errors import TaxbreakError

MEDIA_TYPE = "application/problem+json"


class Problem(Exception):
    """An answer other than the one asked for; `more` are further members of the problem object."""

    def __init__(
        self, status: HTTPStatus, detail: str, *, headers: Mapping[str, str] | None = None, **more: object
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = headers or {}
        self.more = more


def problem_response(error: Exception, *, challenge: str = "Bearer") -> Response:
    """Say an error as a problem; any that is not meant for users comes out as a bare 500."""
    headers: dict[str, str] = {}
    match error:
        case Problem():
            status, detail, more = error.status, error.detail, error.more
            headers |= error.headers
        case RequestValidationError():
            status, detail = (
                HTTPStatus.UNPROCESSABLE_ENTITY,
                "the request does not have the form described in /openapi.json",
            )
            more = {"errors": [{"loc": found["loc"], "msg": found["msg"]} for found in error.errors()]}
        case StarletteHTTPException():
            status, detail, more = HTTPStatus(error.status_code), str(error.detail), {}
            headers |= error.headers or {}
        case TaxbreakError() | sqlite3.DatabaseError():
            status, detail, more = HTTPStatus.SERVICE_UNAVAILABLE, str(error), {}
        case _:
            status, detail, more = HTTPStatus.INTERNAL_SERVER_ERROR, "a fault of taxbreak's own; its log says more", {}
    if status is HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = f'{challenge} realm="taxbreak"'
    body = {"type": "about:blank", "title": status.phrase, "status": int(status), "detail": detail} | more
    text = json.dumps(body)  # not msgspec: what a request says may hold a lone surrogate, which UTF-8 cannot
    return Response(text, status_code=status, media_type=MEDIA_TYPE, headers=headers)


def check_token(request: Request, api_key: SecretStr | None, *, with_basic: bool = False) -> None:
    """Raise a 401 unless the request carries the key, where there is one, as a bearer token.

    `with_basic` also takes it as the password of HTTP Basic, which a browser knows how to ask for.
    """
    if api_key is None:
        return
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    if with_basic and scheme.lower() == "basic":
        try:
            given = base64.b64decode(given, validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            given = ""
    elif scheme.lower() != "bearer":
        given = ""
    if not hmac.compare_digest(given.strip().encode(), api_key.get_secret_value().encode()):
        raise Problem(HTTPStatus.UNAUTHORIZED, "this needs the key of TAXBREAK_API_KEY as a bearer token")


def guarded(app: ASGIApp, api_key: SecretStr | None) -> ASGIApp:
    """Put the bearer token in front of an app that is not made of our routes."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                check_token(Request(scope), api_key)
            except Problem as error:
                await problem_response(error)(scope, receive, send)
                return
        await app(scope, receive, send)

    return answer


def problem_route(api_key: SecretStr | None) -> type[APIRoute]:
    """Return the class of one router's routes: the token first, then the request, and every error a problem."""
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

            async def answer(request: Request) -> Response:
                try:
                    check_token(request, api_key)
                    return await handle(request)
                except (
                    Problem,
                    RequestValidationError,
                    HTTPException,
                    TaxbreakError,
                    sqlite3.DatabaseError,
                ) as error:
                    return problem_response(error)

            return answer

    return ProblemRoute
