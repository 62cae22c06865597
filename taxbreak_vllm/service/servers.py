"""Which servers are alive: those whose workers wrote their state into the spool a moment ago."""

from collections.abc import Sequence

from taxbreak_vllm.model import WorkerState

FRESH_NS = 30 * 10**9  # a worker with nothing new to say writes every 5 s


def live(states: Sequence[WorkerState], *, now_ns: int) -> list[WorkerState]:
    """Return the states of workers that are running, by `updated_unix_ns`."""
    return [state for state in states if now_ns - state.updated_unix_ns <= FRESH_NS]


def recording(states: Sequence[WorkerState]) -> list[str]:
    """Return the ids of the servers that can be asked for steps."""
    return sorted({state.server.server_id for state in states if state.enabled})
