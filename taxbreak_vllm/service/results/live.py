"""Which workers run now: those that wrote their state into the spool a moment ago."""

from collections.abc import Sequence

from taxbreak_vllm.model.worker import WorkerState

FRESH_NS = 30 * 10**9  # a worker with nothing new to say writes every 5 s


def live(states: Sequence[WorkerState], *, now_ns: int) -> list[WorkerState]:
    """Return the states of workers that are running, by `updated_unix_ns`."""
    return [state for state in states if now_ns - state.updated_unix_ns <= FRESH_NS]
