"""Which workers, engines and API servers run now: those that wrote their state into the spool a moment ago."""

from collections.abc import Sequence
from typing import TypeVar

from taxbreak_vllm.model.engine import EngineState
from taxbreak_vllm.model.frontend import FrontendState
from taxbreak_vllm.model.worker import WorkerState

FRESH_NS = 30 * 10**9  # one with nothing new to say writes every 5 s

State = TypeVar("State", WorkerState, EngineState, FrontendState)


def live(states: Sequence[State], *, now_ns: int) -> list[State]:
    """Return the states of those that are running, by `updated_unix_ns`."""
    return [state for state in states if now_ns - state.updated_unix_ns <= FRESH_NS]
