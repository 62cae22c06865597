"""Errors of the HTTP API as RFC 9457 problem JSON."""

import json
import sqlite3
from collections.abc import Mapping
from http import HTTPStatus

from fastapi import Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

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


def problem_response(error: Exception) -> Response:
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
        case HTTPException():
            status, detail, more = HTTPStatus(error.status_code), str(error.detail), {}
            headers |= error.headers or {}
        case TaxbreakError() | sqlite3.DatabaseError():
            status, detail, more = HTTPStatus.SERVICE_UNAVAILABLE, str(error), {}
        case _:
            status, detail, more = HTTPStatus.INTERNAL_SERVER_ERROR, "a fault of taxbreak's own; its log says more", {}
    if status is HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = 'Bearer realm="taxbreak"'
    body = {"type": "about:blank", "title": status.phrase, "status": int(status), "detail": detail} | more
    text = json.dumps(body)  # not msgspec: what a request says may hold a lone surrogate, which UTF-8 cannot
    return Response(text, status_code=status, media_type=MEDIA_TYPE, headers=headers)
