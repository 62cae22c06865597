"""A thread of ours that takes what vLLM's threads leave behind, once a second; a fault of ours ends it."""

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from taxbreak_vllm.model.engine import EngineState
from taxbreak_vllm.model.frontend import FrontendState

State = TypeVar("State", EngineState, FrontendState)

_TURN_S = 1.0
_HEARTBEAT_NS = 5 * 10**9


class Turns:
    """Calls `turn` once a second from `start` on, and `end` with what that raises."""

    def __init__(self, name: str, turn: Callable[[], None], end: Callable[[Exception], None]) -> None:
        self._turn = turn
        self._end = end
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def _run(self) -> None:
        while True:
            time.sleep(_TURN_S)
            try:
                self._turn()
            except Exception as error:
                self._end(error)
                return


def is_news(state: State, before: State, now_ns: int) -> bool:
    """Tell a state to be published: its sums are others than before, or what was published is old."""
    return now_ns - before.updated_unix_ns >= _HEARTBEAT_NS or _sums(state) != _sums(before)


def _sums(state: State) -> State:
    return replace(state, updated_unix_ns=0, runqueue_wait_ratio=None)
