"""Our answers gzip-compressed for whoever takes them so, on the sidecar as a middleware and on vLLM's app by route.

Not Starlette's middleware: up to 0.52 that packs gzip once more, and all of it on the event loop.
"""

import gzip

import anyio
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MIN_BYTES = 1024

_LEVEL = 5
_PACKED = frozenset(("application/gzip",))


class Compressed:
    """An ASGI app that answers what another one answers; what is worth it is compressed."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        messages: list[Message] = []
        is_packed = False

        async def hold(message: Message) -> None:
            nonlocal is_packed
            if message["type"] == "http.response.start":
                is_packed = _media_type(Headers(raw=list(message["headers"]))) in _PACKED
            if is_packed:  # it leaves as it comes, for it may be long
                await send(message)
                return
            messages.append(message)
            if not message.get("more_body", False) and message["type"] == "http.response.body":
                await self._send(messages, send, takes_gzip=_takes_gzip(Headers(scope=scope)))

        await self._app(scope, receive, hold)

    async def _send(self, messages: list[Message], send: Send, *, takes_gzip: bool) -> None:
        start, *bodies = messages
        body = b"".join(message.get("body", b"") for message in bodies)
        headers = MutableHeaders(raw=list(start["headers"]))
        if len(body) >= MIN_BYTES and "Content-Encoding" not in headers:
            headers.add_vary_header("Accept-Encoding")
            if takes_gzip:
                body = await anyio.to_thread.run_sync(gzip.compress, body, _LEVEL)
                headers["Content-Encoding"] = "gzip"
                headers["Content-Length"] = str(len(body))
        await send({**start, "headers": headers.raw})
        await send({"type": "http.response.body", "body": body})


def _media_type(headers: Headers) -> str:
    return headers.get("Content-Type", "").partition(";")[0]


def _takes_gzip(headers: Headers) -> bool:
    for choice in ",".join(headers.getlist("Accept-Encoding")).split(","):
        coding, _, weight = choice.replace(" ", "").lower().partition(";")
        if coding == "gzip":
            return not weight.startswith("q=0") or any(digit in "123456789" for digit in weight)
    return False
