"""The watch over one engine's loop: rows of stamps in, sums of its iterations out, once a second into the spool.

The thread of the engine writes rows; one of ours counts them. A fault of ours ends the watch, never the engine.
"""

import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from taxbreak_vllm.iterations.account import Turns
from taxbreak_vllm.iterations.rows import Column
from taxbreak_vllm.model.engine import Between, EnginePart, EngineState
from taxbreak_vllm.model.errors import SpoolError
from taxbreak_vllm.serving.drops import logger
from taxbreak_vllm.serving.engine.hooks import LoopHooks
from taxbreak_vllm.serving.engine.ring import Ring
from taxbreak_vllm.spool.spool import Spool

_TURN_S = 1.0
_HEARTBEAT_NS = 5 * 10**9
_HELD = 4  # turns whose steps may not have come back
_KEPT = 32  # turns that what is counted next is joined with


class LoopWatch:
    """Counts the iterations of one engine from now on."""

    def __init__(
        self,
        engine: Any,  # noqa: ANN401 - an EngineCoreProc
        spool: Spool,
        state: EngineState,
        *,
        unix_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._spool = spool
        self._unix_ns = unix_ns
        self._ring = Ring()
        self._hooks = LoopHooks(engine, self._ring.write)
        self._rows = self._ring.take()
        self._counted_ns: int | None = None
        self._last_step = 0
        self.state = replace(state, pid=os.getpid(), started_unix_ns=unix_ns())
        self._thread = threading.Thread(target=self._run, name="taxbreak-engine", daemon=True)

    def start(self) -> None:
        """Put the hooks on the engine and start counting."""
        self._hooks.attach()
        self._thread.start()

    def turn(self) -> None:
        """Count what was written since the last time, and publish the sums if they changed or are old."""
        before = self.state
        self._count()
        now_ns = self._unix_ns()
        fault = "hook" if self._hooks.fault else None
        self.state = replace(
            self.state, server_id=self._hooks.server_id, num_lost=self._ring.num_lost, off_reason=fault
        )
        if replace(self.state, updated_unix_ns=0) != replace(before, updated_unix_ns=0) or (
            now_ns - before.updated_unix_ns >= _HEARTBEAT_NS
        ):
            self.state = replace(self.state, updated_unix_ns=now_ns)
            self._publish()

    def _run(self) -> None:
        while True:
            time.sleep(_TURN_S)
            try:
                self.turn()
            except Exception as error:
                logger.warning("taxbreak: an engine's iterations are no longer counted: %r", error, exc_info=error)
                self.state = replace(self.state, off_reason="hook", updated_unix_ns=self._unix_ns())
                self._publish()
                return

    def _count(self) -> None:
        new = self._ring.take()
        rows = np.concatenate((self._rows, new))
        if not len(new) and (not len(rows) or self._counted_ns == rows[-1, Column.INPUT0]):
            return
        until_ns = int(rows[-_HELD if len(new) and len(rows) > _HELD else -1, Column.INPUT0])
        from_ns = int(rows[0, Column.INPUT0]) if self._counted_ns is None else self._counted_ns
        state, turns = self.state, Turns(rows)
        if until_ns > from_ns:
            busy = Counter(state.busy_ns)
            busy.update(turns.busy_ns(from_ns, until_ns))
            state = replace(state, busy_ns=dict(busy))
            self._counted_ns = until_ns
        found = turns.iterations()
        is_new = found.step > self._last_step
        if is_new.any() and not state.works_ahead:
            exposed, between = Counter(state.exposed_ns), Counter(state.between_ns)
            for label, parts_ns in found.parts_ns.items():
                value = int(parts_ns[is_new].sum())
                if isinstance(label, EnginePart):
                    exposed[label] += value
                else:
                    between[label] += value
            state = replace(
                state,
                exposed_ns=dict(exposed),
                between_ns={Between(label): value for label, value in between.items()},
            )
        if is_new.any():
            state = replace(
                state,
                num_iterations=state.num_iterations + int(is_new.sum()),
                iterations_ns=state.iterations_ns + int(found.total_ns[is_new].sum()),
                worker_ns=state.worker_ns + int(found.worker_ns[is_new].sum()),
            )
            self._last_step = int(found.step[-1])
        num_unjoined = int(turns.is_unjoined[len(rows) - len(new) :].sum())
        self.state = replace(state, num_unjoined=state.num_unjoined + num_unjoined)
        self._rows = rows[-_KEPT:]

    def _publish(self) -> None:
        if not self.state.server_id:
            return  # no worker has answered yet
        try:
            self._spool.put_engine_state(self.state)
        except SpoolError as error:
            logger.debug("taxbreak: %s", error)  # its workers say so aloud
