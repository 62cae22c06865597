"""Windows of an engine's turns: rows in, every half minute the next 256 of them into the spool, the oldest file first.

While one is collected the hooks stamp the CPU time of the engine's thread too.
"""

import time
from collections.abc import Callable

import numpy as np

from taxbreak_vllm.iterations.spans import Int64
from taxbreak_vllm.iterations.window import NUM_TURNS, Window
from taxbreak_vllm.model.engine import EngineState
from taxbreak_vllm.model.errors import SpoolError
from taxbreak_vllm.serving.drops import logger
from taxbreak_vllm.serving.engine.hooks import LoopHooks
from taxbreak_vllm.spool.spool import Spool

_EVERY_NS = 30 * 10**9


class Windows:
    """Collects the windows of one engine, the first from its first turn on."""

    def __init__(self, hooks: LoopHooks, spool: Spool, *, now_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._hooks = hooks
        self._spool = spool
        self._now_ns = now_ns
        self._num_put = self._put_ns = 0
        self._begin(0)

    def add(self, new: Int64, slots: Int64, state: EngineState) -> None:
        """Take the turns that follow on those taken last; `slots` are the requests on their way."""
        if not self._hooks.stamps_cpu:
            if self._now_ns() - self._put_ns >= _EVERY_NS:
                self._begin(state.num_lost)
            return
        self._parts.append(new)
        if state.num_lost != self._num_lost:  # after these
            self._begin(state.num_lost)
        elif sum(map(len, self._parts)) >= NUM_TURNS:
            self._put(slots, state)

    def _begin(self, num_lost: int) -> None:
        self._num_lost = num_lost
        self._parts: list[Int64] = []
        self._hooks.stamps_cpu = True

    def _put(self, slots: Int64, state: EngineState) -> None:
        rows = np.concatenate(self._parts)[:NUM_TURNS]
        self._begin(state.num_lost)
        if not state.server_id:
            return  # no worker has answered yet
        self._hooks.stamps_cpu = False
        self._put_ns = self._now_ns()
        window = Window(
            engine=state.engine, server_id=state.server_id, works_ahead=state.works_ahead, rows=rows, slots=slots
        )
        try:
            self._spool.put_window(state.server_id, state.engine, self._num_put, window.encode())
            self._num_put += 1
        except SpoolError as error:
            logger.debug("taxbreak: %s", error)  # its workers say so aloud
