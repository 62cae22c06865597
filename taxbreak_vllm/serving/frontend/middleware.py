"""ASGI middleware outside all other: when a request arrived, when its body was there, when its answer was sent.

What is not a POST, or of ours, goes straight through. The application is called once and its messages are handed on as
they are, at once; what sending returns or raises goes back.
"""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from taxbreak_vllm.serving.frontend.in_flight import InFlight
from taxbreak_vllm.serving.frontend.record import RECORD, Record
from taxbreak_vllm.stages.rows import Column

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

_OURS = "/v1/taxbreak"
_START, _BODY = "http.response.start", "http.response.body"


class RequestMiddleware:
    """Begins a record for each request that may go to the engine, and ends it."""

    def __init__(self, app: App, *, in_flight: InFlight) -> None:
        self._app = app
        self._in_flight = in_flight

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        in_flight = self._in_flight
        if (
            not in_flight.is_on
            or scope.get("type") != "http"
            or scope.get("method") != "POST"
            or scope.get("path", "").startswith(_OURS)
            or (record := in_flight.begin()) is None
        ):
            await self._app(scope, receive, send)
            return
        RECORD.set(record)  # in the context of this request's own task, which ends with it
        try:
            await self._app(scope, _received(record, in_flight, receive), _sent(record, in_flight, send))
        finally:
            in_flight.end(record)


def _received(record: Record, in_flight: InFlight, receive: Receive) -> Receive:
    async def received() -> Message:
        message = await receive()
        try:
            if message["type"] == "http.request" and not message.get("more_body", False):
                record.row[Column.BODY] = in_flight.now()
        except Exception as error:
            in_flight.fail(error)
        return message

    return received


def _sent(record: Record, in_flight: InFlight, send: Send) -> Send:
    row, now = record.row, in_flight.now
    last_put, last_send, first_send = int(Column.LAST_PUT), int(Column.LAST_SEND0), int(Column.FIRST_SEND0)

    def sent(message: Message) -> Awaitable[None]:
        try:
            if message.get("more_body"):  # a part of the answer, and not its last
                if row[last_put] > row[last_send]:  # the first since an output came
                    row[last_send] = now()
                    if record.awaits_sending:
                        return ending(message)
            elif message["type"] == _BODY:
                if row[last_put] > row[last_send]:
                    row[last_send] = now()
                return ending(message)
            elif message["type"] == _START:
                row[Column.STATUS] = message["status"]
                row[Column.IS_STREAMED] = _is_stream(message)
        except Exception as error:
            in_flight.fail(error)
        return send(message)

    async def ending(message: Message) -> None:
        begun_ns, is_first = row[last_send], not row[first_send]
        waiting, record.waiting = record.waiting, []
        record.awaits_sending = record.is_followed
        await send(message)
        try:
            sent_ns = now()
            if is_first:
                row[first_send], row[Column.FIRST_SEND1] = begun_ns, sent_ns
            if not message.get("more_body"):
                row[Column.END] = sent_ns
            if waiting:
                in_flight.outputs.write([*waiting, begun_ns, sent_ns])
        except Exception as error:
            in_flight.fail(error)

    return sent


def _is_stream(message: Message) -> bool:
    headers = message.get("headers", ())
    return any(name.lower() == b"content-type" and value.startswith(b"text/event-stream") for name, value in headers)
