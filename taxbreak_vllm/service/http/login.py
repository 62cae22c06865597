"""The login in front of the page: a form at the page's own address, and the session that its key opens.

The form is sent to where it stands, which then leads to itself: there is no address to be told where to go on to.
"""

from http import HTTPStatus
from urllib.parse import parse_qs

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.responses import RedirectResponse
from starlette.types import Receive, Scope, Send

from taxbreak_vllm.output.page.login import render_login
from taxbreak_vllm.service.http.keys import Keys, is_same_origin
from taxbreak_vllm.service.http.sessions import Sessions, WrongKeys, address_of

_MAX_FORM_BYTES = 8192


def login_route(keys: Keys, sessions: Sessions, wrong_keys: WrongKeys) -> type[APIRoute]:
    """Return the class of the page's routes: whoever may not see one sees the form there."""

    class LoginRoute(APIRoute):
        async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
            request = Request(scope, receive)
            response: Response | None = None
            if keys.are_set and request.method == "POST":
                response = await _post(request)
            elif request.method == "GET" and keys.access_of(request) is None:
                response = _form(request)
            if response is None:
                await super().handle(scope, receive, send)
            else:
                await response(scope, receive, send)

    async def _post(request: Request) -> Response:
        """Log in or out."""
        if not is_same_origin(request):
            return _form(request, "That was sent by another page. Try again here.", HTTPStatus.FORBIDDEN)
        fields = await _read_form(request)
        if "logout" in fields:
            response = _to_itself(request)
            sessions.close(request, response)
            return response
        address = address_of(request)
        wait_s = wrong_keys.wait_s(address)
        if wait_s:
            text = f"Too many wrong keys. Try again in {wait_s} s."
            return _form(request, text, HTTPStatus.TOO_MANY_REQUESTS, retry_after_s=wait_s)
        access = keys.access_by(fields.get("key", [""])[0])
        if access is None:
            wrong_keys.add(address)
            return _form(request, "That is not the key.", HTTPStatus.FORBIDDEN)
        response = _to_itself(request)
        sessions.open(access, request, response)
        return response

    return LoginRoute


def _form(
    request: Request, wrong: str = "", status: HTTPStatus = HTTPStatus.OK, *, retry_after_s: int | None = None
) -> Response:
    # Browsers leave strict cookies out where a link elsewhere leads here: from here they send them.
    is_from_elsewhere = request.method == "GET" and request.headers.get("Sec-Fetch-Site") == "cross-site"
    document, policy = render_login(wrong, is_from_elsewhere=is_from_elsewhere)
    headers = {
        "Content-Security-Policy": f"{policy}; frame-ancestors 'none'",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "same-origin",
        "Cache-Control": "no-store",
    }
    if retry_after_s is not None:
        headers["Retry-After"] = str(retry_after_s)
    return Response(document, status_code=status, media_type="text/html", headers=headers)


def _to_itself(request: Request) -> Response:
    """Lead to the address asked for, relative to itself: it names no host, and holds behind a proxy's prefix."""
    own = request.scope["raw_path"].decode("latin-1").rpartition("/")[2]
    query = request.url.query
    headers = {"Cache-Control": "no-store"}
    return RedirectResponse(f"./{own}?{query}" if query else f"./{own}", HTTPStatus.SEE_OTHER, headers)


async def _read_form(request: Request) -> dict[str, list[str]]:
    """Read a small form; anything else is as if nothing had been filled in."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MAX_FORM_BYTES:
            return {}
    kind = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        return {}
    return parse_qs(body.decode("latin-1"), keep_blank_values=True)
