"""What an engine publishes about its own loop: `engine-E/state.json` in the spool.

An iteration is the time from one step of a worker to its next. What of it lies outside the worker's calls is cut by
what everybody else was doing (methodology section 4, "between steps").
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from taxbreak_vllm.model.step import Int64, Names, Phase


class EnginePart(Names):
    """What the thread of an engine does; `loop` is what none of the others explains."""

    INPUT = "input"
    SCHEDULE = "schedule"
    GRAMMAR = "grammar"
    DISPATCH = "dispatch"
    UPDATE = "update"
    POST = "post"
    LOOP = "loop"


class Between(Names):
    """Why a worker stood between two of its calls, where the engine's thread did nothing itself.

    `ipc_dispatch`: the engine had sent the call. `ipc_return`: it waited for a result. It had no request: one was
    between its arrival at an API server and its sending (`frontend`), or sent (`ipc_input`), or there was none
    (`no_work`; where the API servers are not followed this holds the other two).
    """

    IPC_DISPATCH = "ipc_dispatch"
    IPC_RETURN = "ipc_return"
    FRONTEND = "frontend"
    IPC_INPUT = "ipc_input"
    NO_WORK = "no_work"


class IdleFrom(Names):
    """What tells when a device was idle between two steps: the calls of its worker, or events on the device."""

    WORKER_CALLS = "worker_calls"
    DEVICE_EVENTS = "device_events"


@dataclass(frozen=True, slots=True, kw_only=True)
class IterationSums:
    """Iterations whose first step is of one phase: `worker_ns` + Σ `exposed_ns` + Σ `between_ns` = `total_ns`."""

    num: Int64 = 0
    total_ns: Int64 = 0
    worker_ns: Int64 = 0
    exposed_ns: Mapping[EnginePart, Int64] = field(default_factory=dict)
    between_ns: Mapping[Between, Int64] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineState:
    """The loop of one engine since its start, summed over its iterations; all durations in ns.

    `worker_ns` + Σ `exposed_ns` + Σ `between_ns` = `iterations_ns`, to the nanosecond. `busy_ns` is what the thread
    took for a part, whether a worker waited for it or not. `num_unjoined` counts steps of which no worker's times came
    back, `num_lost` turns of the loop that nobody had time to count. `off_reason` says why counting ended,
    `queue_off_reason` why requests do not tell what they waited for in its queue: its scheduler is not as it is known
    (`scheduler`), or a hook of ours failed (`hook`).

    `phases` hold the same sums, the busy ones aside, for each phase. `runqueue_wait_ratio` is, of late, the share
    of the time in which the engine's thread was ready to run that it waited for a CPU.

    With `works_ahead` (asynchronous scheduling) the device goes on while its worker stands between two calls. What it
    waited for is told by events on the device alone then, and where it has none (`idle_from` is None) `exposed_ns` and
    `between_ns` stay empty. Where events tell, `worker_ns` is what is left of the iterations: the device at work, and
    its worker in its calls. They are recorded in bursts: the sums are of the iterations in these, chosen by chance, and
    `num_left_out` counts the others. With `works_ahead` one of which they do not tell, though asked, is left out too.
    """

    server_id: str = ""
    engine: str
    model_name: str = ""
    pid: int = 0
    started_unix_ns: Int64 = 0
    updated_unix_ns: Int64 = 0
    num_iterations: Int64 = 0
    iterations_ns: Int64 = 0
    worker_ns: Int64 = 0
    busy_ns: Mapping[EnginePart, Int64] = field(default_factory=dict)
    exposed_ns: Mapping[EnginePart, Int64] = field(default_factory=dict)
    between_ns: Mapping[Between, Int64] = field(default_factory=dict)
    phases: Mapping[Phase, IterationSums] = field(default_factory=dict)
    idle_from: IdleFrom | None = None
    runqueue_wait_ratio: float | None = None
    num_unjoined: Int64 = 0
    num_left_out: Int64 = 0
    num_lost: Int64 = 0
    works_ahead: bool = False
    off_reason: str | None = None
    queue_off_reason: str | None = None
    traffic_off_reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Durations:
    """How long something took in each of several iterations, ns; `share` of all the time in them that had work."""

    median_ns: Int64
    p90_ns: Int64
    share: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseIterations:
    """Iterations whose first step is of one phase; medians of parts do not add up to that of the whole, shares do."""

    num: Int64
    total: Durations
    worker: Durations
    parts: Mapping[str, Durations] = field(default_factory=dict)
    unexplained_ratio: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class IterationReport:
    """What windows of one engine's turns tell; `taxbreak.iterations-report/1`.

    `thread_cpu_ratio` is the engine's thread's CPU time over the time in which it waited for nothing: it had a CPU for
    at most that share, as a wait takes some too. The rest went to other threads, by the GIL or by the kernel.
    """

    path: str = ""
    server_id: str
    engine: str
    works_ahead: bool = False
    num_windows: Int64
    num_turns: Int64
    num_unjoined: Int64 = 0
    thread_cpu_ratio: float | None = None
    phases: Mapping[Phase, PhaseIterations] = field(default_factory=dict)
    schema: str = "taxbreak.iterations-report/1"

    def to_json(self) -> bytes:
        """Encode as one JSON object."""
        return msgspec.json.encode(self)


def unexplained_ratio(state: EngineState) -> float | None:
    """Return the share of its iterations, times without work aside, that no part explains; None where unknown."""
    busy_ns = state.iterations_ns - state.between_ns.get(Between.NO_WORK, 0)
    return state.exposed_ns.get(EnginePart.LOOP, 0) / busy_ns if busy_ns > 0 and state.exposed_ns else None
