"""Our metrics as text: on the sidecar's `/metrics`, and after vLLM's own on the server that has our plugin.

With several API servers vLLM's page is made of files that its processes share (PROMETHEUS_MULTIPROC_DIR), where no
collector of ours can be; with one it is the global registry, where a fault of ours would cost vLLM its page. So in both
cases vLLM's answer is taken as it is and ours is put behind it, or nothing at all.
"""

import logging
from collections.abc import Callable
from typing import Any

import anyio
from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger("taxbreak.exposition")

OPENMETRICS = "application/openmetrics-text"

_PATH = "/metrics"
_END = b"# EOF\n"  # of OpenMetrics


class Exposition:
    """Writes the metrics of collectors in the format asked for."""

    def __init__(self, *collectors: Collector) -> None:
        self._registry = CollectorRegistry()
        for collector in collectors:
            self._registry.register(collector)

    def write(self, accept: str) -> tuple[bytes, str]:
        """Return the text and its media type for the value of an `Accept` header."""
        try:
            encode, content_type = choose_encoder(accept)
        except (TypeError, ValueError):  # over a version that is no number
            encode, content_type = choose_encoder("")
        return encode(self._registry), content_type


def append_metrics(app: FastAPI, exposition: Exposition, *, patience_s: float = 2.0) -> None:
    """Put our metrics behind those that an app serves at `/metrics`; where ours fail or take longer, its own go out."""
    routes: list[Any] = [route for route in app.routes if getattr(route, "path", None) == _PATH]
    for route in routes:
        route.app = _Appended(route.app, exposition.write, patience_s)


class _Appended:
    """An ASGI app that answers what another one answers, and more where that is a page of metrics."""

    def __init__(self, app: ASGIApp, write: Callable[[str], tuple[bytes, str]], patience_s: float) -> None:
        self._app = app
        self._write = write
        self._patience_s = patience_s
        self._limiter = anyio.CapacityLimiter(1)  # so that a disk that hangs takes no thread from the server's pool

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "GET":
            await self._app(scope, receive, send)
            return
        messages: list[Message] = []

        async def hold(message: Message) -> None:
            messages.append(message)

        # Compressed, it could not be added to.
        headers = [header for header in scope["headers"] if header[0].lower() != b"accept-encoding"]
        await self._app({**scope, "headers": headers}, receive, hold)
        try:
            messages = await self._extended(messages)
        except Exception as error:
            logger.warning("taxbreak: vLLM's metrics go out without ours: %r", error)
        for message in messages:
            await send(message)

    async def _extended(self, messages: list[Message]) -> list[Message]:
        start, *bodies = messages
        headers = {name.lower(): value for name, value in start["headers"]}
        content_type = headers.get(b"content-type", b"").decode("latin-1")
        if start["status"] != 200 or not content_type.startswith(("text/plain", OPENMETRICS)):
            return messages
        text = b"".join(message.get("body", b"") for message in bodies)
        with anyio.fail_after(self._patience_s):
            ours, _ = await anyio.to_thread.run_sync(
                self._write, content_type, limiter=self._limiter, abandon_on_cancel=True
            )
        body = text.removesuffix(_END) + ours
        length = (b"content-length", str(len(body)).encode())
        kept = [header for header in start["headers"] if header[0].lower() != length[0]]
        return [{**start, "headers": [*kept, length]}, {"type": "http.response.body", "body": body}]
