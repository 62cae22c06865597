"""The requests of one API server: begun at the middleware, ended there, their rows left for who counts them.

All of it runs on the thread of the event loop. A fault of ours ends it, with one warning; requests go on.
"""

import asyncio
from collections.abc import Callable
from time import monotonic_ns

from taxbreak_vllm.model.frontend import NO_ENGINE
from taxbreak_vllm.serving.drops import logger
from taxbreak_vllm.serving.engine.ring import Ring
from taxbreak_vllm.serving.frontend.arrivals import Arrivals
from taxbreak_vllm.serving.frontend.record import Record
from taxbreak_vllm.stages.rows import Column, Output

FOLLOWED_EVERY = 64
_TICK_S = 0.02


class InFlight:
    """Begins and ends requests; `requests`, `outputs` and `lags` hold what there is to count.

    A request counts once the engine's client took it. While there are any the event loop is asked to call back every
    20 ms: how late it does so is its lag, to about 1 ms, as a loop's clock may have no finer ticks.
    """

    def __init__(self, *, now: Callable[[], int] = monotonic_ns) -> None:
        self.now = now
        self.requests = Ring(num_columns=len(Column))
        self.outputs = Ring(num_columns=len(Output))
        self.lags = Ring(num_columns=1)
        self.arrivals: Arrivals | None = None
        self.is_on = False
        self.fault: str | None = None
        self.num_open = 0
        self.num_in_engine = 0
        self._num_followed = 0
        self._is_ticking = False

    def begin(self) -> Record | None:
        """Begin a request that has just arrived; None where requests are not timed."""
        try:
            record = Record(self.now())
            if self.arrivals is not None:
                record.slot = self.arrivals.begin(record.row[Column.ARRIVED])
            if not self._is_ticking:
                self._tick(asyncio.get_running_loop(), None)
        except Exception as error:
            self.fail(error)
            return None
        self.num_open += 1
        return record

    def reach_engine(self, record: Record) -> None:
        """Say that the engine's client took a request, the first time of several."""
        self.num_in_engine += 1
        record.is_followed = self._num_followed % FOLLOWED_EVERY == 0
        record.row[Column.IS_FOLLOWED] = record.is_followed
        self._num_followed += 1

    def sent(self, record: Record, engine: int) -> None:
        """Say that a request was sent to an engine; of several sendings the first counts."""
        row = record.row
        if not row[Column.SENT]:
            row[Column.SENT] = self.now()
            row[Column.ENGINE] = engine
            self._leave(record, row[Column.SENT], engine)

    def end(self, record: Record) -> None:
        """End a request, however it went."""
        self.num_open -= 1
        try:
            if record.slot is not None:
                self._leave(record, self.now(), NO_ENGINE)
            if record.has_reached_engine:
                self.num_in_engine -= 1
                self.requests.write(record.finish())
        except Exception as error:
            self.fail(error)
        finally:
            record.close()

    def fail(self, error: Exception) -> None:
        """Time no more requests."""
        self.is_on = False
        if self.fault is None:
            self.fault = repr(error)
            logger.warning("taxbreak: an API server's requests are no longer timed: %r", error)

    def _leave(self, record: Record, at_ns: int, engine: int) -> None:
        slot, record.slot = record.slot, None
        if slot is not None and self.arrivals is not None:
            self.arrivals.end(slot, record.row[Column.ARRIVED], at_ns, engine)

    def _tick(self, loop: asyncio.AbstractEventLoop, due_ns: int | None) -> None:
        try:
            now_ns = self.now()
            if due_ns is not None:
                self.lags.write([max(0, now_ns - due_ns)])
            self._is_ticking = due_ns is None or (self.num_open > 0 and self.is_on)
            if self._is_ticking:
                loop.call_later(_TICK_S, self._tick, loop, now_ns + int(_TICK_S * 1e9))
        except Exception as error:
            self._is_ticking = False
            self.fail(error)
