"""The watch over one engine's loop: rows of stamps in, sums of its iterations out, once a second into the spool.

The thread of the engine writes rows; one of ours counts them. A fault of ours ends the watch, never the engine.
"""

import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from taxbreak_vllm.iterations.count import LoopCount
from taxbreak_vllm.iterations.spans import Int64
from taxbreak_vllm.iterations.waits import Arrivals
from taxbreak_vllm.machine.run_queue import RunQueueWait
from taxbreak_vllm.model.engine import EngineState
from taxbreak_vllm.model.errors import SpoolError
from taxbreak_vllm.serving.drops import logger
from taxbreak_vllm.serving.engine.arrivals import read_arrivals
from taxbreak_vllm.serving.engine.hooks import LoopHooks
from taxbreak_vllm.serving.engine.kept import KeptTraffic
from taxbreak_vllm.serving.engine.ring import Ring
from taxbreak_vllm.serving.engine.windows import Windows
from taxbreak_vllm.serving.turns import Turns, is_news
from taxbreak_vllm.settings import Settings
from taxbreak_vllm.spool.spool import Spool


class LoopWatch:
    """Counts the iterations of one engine from now on; made on the engine's thread."""

    def __init__(
        self,
        engine: Any,  # noqa: ANN401 - an EngineCoreProc
        spool: Spool,
        state: EngineState,
        settings: Settings,
        *,
        unix_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._spool = spool
        self._unix_ns = unix_ns
        self._ring = Ring()
        self._hooks = LoopHooks(engine, self._ring.write, keeps_traffic=settings.traffic_max_bytes > 0)
        self._traffic = KeptTraffic(self._hooks, engine, state.engine, spool, settings)
        self._run_queue = RunQueueWait(threading.get_native_id())
        self._windows = Windows(self._hooks, spool)
        self._sums = LoopCount(works_ahead=state.works_ahead)
        self.state = replace(state, pid=os.getpid(), started_unix_ns=unix_ns())
        self._turns = Turns("taxbreak-engine", self.turn, self._end)
        self._had_rows = False

    def start(self) -> None:
        """Put the hooks on the engine and start counting."""
        self._hooks.attach()
        self._turns.start()

    def turn(self) -> None:
        """Count what was written since the last time, and publish the sums if they changed or are old."""
        before = self.state
        rows = self._ring.take()
        is_idle = not len(rows) and not self._had_rows  # the first turn without rows counts those that were held back
        self._had_rows = len(rows) > 0
        if not is_idle:
            slots = self._slots()
            self._sums.add(rows, Arrivals.of(slots, int(self.state.engine)))
        self._traffic.add(rows)
        now_ns = self._unix_ns()
        self.state = replace(
            self._sums.told(self.state),
            server_id=self._hooks.server_id,
            num_lost=self._ring.num_lost,
            runqueue_wait_ratio=self._run_queue.ratio(),
            off_reason="hook" if self._hooks.fault else None,
            queue_off_reason=self._hooks.queue_off_reason,
            traffic_off_reason=self._traffic.off_reason,
        )
        if not is_idle:
            self._windows.add(rows, slots, self.state)
        if is_news(self.state, before, now_ns):
            self.state = replace(self.state, updated_unix_ns=now_ns)
            self._publish()

    def _end(self, error: Exception) -> None:
        logger.warning("taxbreak: an engine's iterations are no longer counted: %r", error, exc_info=error)
        self.state = replace(self.state, off_reason="hook", updated_unix_ns=self._unix_ns())
        self._publish()

    def _slots(self) -> Int64:
        server_id = self._hooks.server_id
        if not server_id:
            return np.zeros((0, 4), dtype=np.int64)  # no worker has answered yet
        return read_arrivals(self._spool.engine_dir(server_id, self.state.engine).parent)

    def _publish(self) -> None:
        if not self.state.server_id:
            return
        try:
            self._spool.put_engine_state(self.state)
        except SpoolError as error:
            logger.debug("taxbreak: %s", error)  # its workers say so aloud
