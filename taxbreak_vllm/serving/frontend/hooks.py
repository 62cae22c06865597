"""Hooks on the objects of one `AsyncLLM`: they stamp the record of the request that they are called for.

Every hook stands on an instance, calls the original exactly once and returns its result, or lets its exception pass,
unchanged. Where one finds no record (a request that came by another way than HTTP) it stamps nothing. Read in
vllm/v1/engine/{async_llm,output_processor,core_client}.py and vllm/renderers/base.py of 0.26 to 0.33.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from taxbreak_vllm.serving.drops import logger
from taxbreak_vllm.serving.engine.queueing import HEADER
from taxbreak_vllm.serving.frontend.in_flight import InFlight
from taxbreak_vllm.serving.frontend.record import RECORD, WAITS, Record, random_number
from taxbreak_vllm.stages.rows import Column

_RENDERS = ("render_cmpl_async", "render_chat_async")


class RequestHooks:
    """The stamps of one engine's client."""

    def __init__(self, in_flight: InFlight) -> None:
        self._in_flight = in_flight
        self._now = in_flight.now
        self._takes_waits = True
        self._message = [0, 0]  # the engine's that is being taken up: sent, taken

    def attach(self, engine_client: Any) -> None:  # noqa: ANN401 - an AsyncLLM
        """Put the hooks on an `AsyncLLM`; raises AttributeError, before any is put, where it is not as it was read."""
        renderer, inputs = engine_client.renderer, engine_client.input_processor
        outputs, core = engine_client.output_processor, engine_client.engine_core
        hooks = [(renderer, name, self._rendering(getattr(renderer, name))) for name in _RENDERS]
        hooks += [
            (inputs, "process_inputs", self._submitting(inputs.process_inputs)),
            (outputs, "add_request", self._adding(outputs.add_request, outputs)),
            (outputs, "process_outputs", self._taking(outputs.process_outputs, outputs)),
            (core, "add_request_async", self._sending(core.add_request_async, core)),
        ]
        if hasattr(core, "get_core_engine_for_request"):  # of several engines
            hooks.append((core, "get_core_engine_for_request", self._choosing(core.get_core_engine_for_request)))
        for owner, name, hook in hooks:
            setattr(owner, name, hook)

    def _rendering(self, call: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def render(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as vLLM calls it
            self._stamp(Column.RENDER0, is_first=True)
            result = await call(*args, **kwargs)
            self._stamp(Column.RENDER1)
            return result

        return render

    def _submitting(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def process_inputs(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as vLLM calls it
            self._stamp(Column.SUBMIT0, is_first=True)
            return call(*args, **kwargs)

        return process_inputs

    def _stamp(self, column: Column, *, is_first: bool = False) -> None:
        """Stamp what is under way to be sent; what comes later, as a tool's next round, is of its decode."""
        record = RECORD.get()
        if record is None or record.row[Column.SENT] or (is_first and record.row[column]):
            return
        try:
            record.row[column] = self._now()
        except Exception as error:
            self._in_flight.fail(error)

    def _adding(self, call: Callable[..., Any], outputs: Any) -> Callable[..., Any]:  # noqa: ANN401
        def add_request(request: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as vLLM calls it
            result = call(request, *args, **kwargs)
            record = RECORD.get()
            if record is not None and record.is_open:
                try:
                    self._add(record, request, outputs.request_states[request.request_id])
                except Exception as error:
                    self._in_flight.fail(error)
            return result

        return add_request

    def _add(self, record: Record, request: Any, state: Any) -> None:  # noqa: ANN401 - and its RequestState
        is_first = not record.has_reached_engine
        if not record.add(state.stats):
            return
        if is_first:
            self._in_flight.reach_engine(record)
            if record.is_followed:
                record.row[Column.NUMBER] = random_number(request.request_id, request.external_req_id)
        if not state.request_index:  # its choices have the prompt in common
            record.row[Column.NUM_PROMPT_TOKENS] += state.prompt_len or 0
        collector = state.queue
        if collector is not None and all(found is not collector for found, _ in record.collectors):
            put = self._putting(record, collector.put)
            collector.put = put
            record.collectors.append((collector, put))

    def _putting(self, record: Record, call: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Stamp the first output and the last, whatever ends a request, and each one of a followed request."""
        row, message, now, is_followed = record.row, self._message, self._now, record.is_followed
        last_put, last_taken, first_put = int(Column.LAST_PUT), int(Column.LAST_TAKEN), int(Column.FIRST_PUT)

        def put(output: Any) -> Any:  # noqa: ANN401 - a RequestOutput, or an exception
            try:
                if is_followed or not row[first_put] or getattr(output, "finished", True):
                    row[last_taken] = message[1]
                    row[last_put] = now()
                    if not row[first_put]:
                        row[first_put] = row[last_put]
                        row[Column.FIRST_TAKEN] = message[1]
                    if is_followed and not record.waiting:
                        record.waiting = [*message, row[last_put]]
            except Exception as error:
                self._in_flight.fail(error)
            return call(output)

        return put

    def _taking(self, call: Callable[..., Any], outputs: Any) -> Callable[..., Any]:  # noqa: ANN401
        message, now = self._message, self._now

        def process_outputs(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as vLLM calls it
            try:
                message[1] = now()
                sent_s = args[1] if len(args) > 1 else kwargs.get("engine_core_timestamp")
                message[0] = int((sent_s or 0) * 1e9)
            except Exception as error:
                self._in_flight.fail(error)
            if self._takes_waits:
                try:
                    for output in args[0] if args else kwargs["engine_core_outputs"]:
                        headers = output.trace_headers
                        if headers is not None and HEADER in headers:
                            _take_waits(output, headers, outputs.request_states)
                except Exception as error:
                    self._takes_waits = False
                    logger.warning("taxbreak: what requests wait for in their engine's queue is not known: %r", error)
            try:
                return call(*args, **kwargs)
            finally:
                message[0] = message[1] = 0

        return process_outputs

    def _sending(self, call: Callable[..., Awaitable[Any]], core: Any) -> Callable[..., Awaitable[Any]]:  # noqa: ANN401
        async def add_request_async(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as vLLM calls it
            result = await call(*args, **kwargs)
            record = RECORD.get()
            if record is not None and record.is_open:
                try:
                    engine = record.row[Column.ENGINE]
                    self._in_flight.sent(record, engine if engine >= 0 else _number(core.core_engine))
                except Exception as error:
                    self._in_flight.fail(error)
            return result

        return add_request_async

    def _choosing(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def get_core_engine_for_request(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as vLLM calls it
            engine = call(*args, **kwargs)
            record = RECORD.get()
            if record is not None and not record.row[Column.SENT]:
                try:
                    record.row[Column.ENGINE] = _number(engine)
                except Exception as error:
                    self._in_flight.fail(error)
            return engine

        return get_core_engine_for_request


def _take_waits(output: Any, headers: Mapping[str, str], states: Mapping[str, Any]) -> None:  # noqa: ANN401
    """Take what an engine says of a request's wait off its first output, and leave it with the request's statistics."""
    own = {name: value for name, value in headers.items() if name != HEADER}
    output.trace_headers = own or None
    state = states.get(output.request_id)
    if state is not None and state.stats is not None:
        setattr(state.stats, WAITS, [int(wait_ns) for wait_ns in headers[HEADER].split(",")])


def _number(engine: bytes) -> int:
    """Return the number of an engine from what names it on the wire (core_client.py, MPClient)."""
    return int.from_bytes(engine, "little")
