"""A plugin of vLLM in which what a hook of ours does fails, one thing at a time, as the file FAULTY_HOOKS says.

A fault ends what it is in for good; here that goes on once the file names none, so that one server sees all faults.
"""

import functools
import mmap
import os
from pathlib import Path

from taxbreak_vllm.iterations.rows import NUM_COLUMNS
from taxbreak_vllm.iterations.rows import Column as Turn
from taxbreak_vllm.stages.rows import Column as Request

# What is written to a row of an engine's turn and of a request, each by a hook or two; and the clocks of other hooks.
ENGINE = ["reset", "times", *(column.name for column in Turn if not column.name.startswith(("WORKER_", "DEVICE_")))]
_PIECES = {int(Request.QUEUED): "statistics", int(Request.WAIT_KV): "waits"}  # columns from there on, in one piece
_IN_PIECES = (
    "QUEUED",
    "SCHEDULED",
    "FIRST_TOKEN",
    "LAST_TOKEN",
    "WAIT_KV",
    "WAIT_ENCODER",
    "WAIT_GRAMMAR",
    "WAIT_REMOTE_KV",
)
FRONTEND = [*_PIECES.values(), *(column.name for column in Request if column.name not in _IN_PIECES)]
TRAFFIC = ["add", "abort", "reset", "step", "update"]  # events, in the order of their kinds
FAULTS = (
    *(f"engine {name}" for name in ENGINE),
    *(f"frontend {name}" for name in FRONTEND),
    "frontend outputs",
    "frontend lags",
    "queue clock",
    *(f"traffic {name}" for name in TRAFFIC),
    "worker clock",
)
_CODES = {name: code for code, name in enumerate(FAULTS, 1)}


class Faults:
    """Which fault is on, and how often it was raised, for all processes that opened the file."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(bytes(16))
        with path.open("r+b") as file:
            self._shared = memoryview(mmap.mmap(file.fileno(), 16)).cast("q")

    def turn_on(self, name: str | None) -> None:
        """Have this fail from now on; None: nothing."""
        self._shared[1] = 0
        self._shared[0] = 0 if name is None else _CODES[name]

    @property
    def is_off(self) -> bool:
        """Whether nothing is to fail."""
        return not self._shared[0]

    @property
    def num_raised(self) -> int:
        """How often the fault that is on was raised."""
        return self._shared[1]

    def strike(self, name: str) -> None:
        """Raise if this is what is to fail."""
        if self._shared[0] == _CODES.get(name):
            self._shared[1] += 1
            raise ZeroDivisionError(f"ours: {name}")


class _Row(list):
    def __init__(self, values, faults, owner, names):
        super().__init__(values)
        self._faults, self._owner, self._names = faults, owner, names

    def __setitem__(self, place, value):
        if isinstance(place, int):
            self._faults.strike(f"{self._owner} {self._names[place]}")
        else:
            piece = _PIECES.get(place.start) if self._owner == "frontend" else "times" if place.start else "reset"
            self._faults.strike(f"{self._owner} {piece}")
        super().__setitem__(place, value)


def register() -> None:
    """Be a general plugin."""
    break_hooks(Faults(Path(os.environ["FAULTY_HOOKS"])))


def break_hooks(faults: Faults) -> None:
    """Change our classes in this process and in its forks; twice is once."""
    from taxbreak_vllm.serving import worker_times
    from taxbreak_vllm.serving.engine import hooks, queueing, traffic
    from taxbreak_vllm.serving.frontend import in_flight, middleware

    if hasattr(hooks.LoopHooks, "faults"):
        return
    hooks.LoopHooks.faults = faults
    _break_loops(hooks.LoopHooks, faults)
    _break_queues(queueing.QueueWaits, faults)
    _break_traffic(traffic.Traffic, faults)
    _break_requests(in_flight, middleware.RequestMiddleware, faults)
    _break_workers(worker_times, faults)


def _break_loops(kind, faults):
    _after(
        kind, "__init__", lambda loop: setattr(loop, "_row", _Row([0] * NUM_COLUMNS, faults, "engine", _names(Turn)))
    )
    write = kind._beginning

    def beginning(loop, call):
        begin = write(loop, call)

        def process_input_queue(*args, **kwargs):
            loop.stamps_cpu = True
            if faults.is_off:
                loop.fault = None
                if loop.waits is not None:
                    loop.waits.fault = None
                if loop.traffic is not None:
                    loop.traffic.fault = None
            return begin(*args, **kwargs)

        return process_input_queue

    kind._beginning = beginning


def _break_queues(kind, faults):
    def strike_first(waits):
        now = waits._now

        def clock():
            faults.strike("queue clock")
            return now()

        waits._now = clock

    _after(kind, "__init__", strike_first)


def _break_traffic(kind, faults):
    def strike_first(traffic):
        put = traffic._put

        def strike(event):
            faults.strike(f"traffic {TRAFFIC[event[0]]}")
            put(event)

        traffic._put = strike

    _after(kind, "__init__", strike_first)


def _break_requests(in_flight, middleware, faults):
    class Record(in_flight.Record):
        __slots__ = ()

        def __init__(self, arrived_ns):
            super().__init__(arrived_ns)
            self.row = _Row(self.row, faults, "frontend", _names(Request))
            self.row[Request.ARRIVED] = arrived_ns

    in_flight.Record = Record
    in_flight.FOLLOWED_EVERY = 1

    def strike_at_writing(flight):
        for name in ("outputs", "lags"):
            ring = getattr(flight, name)
            ring.write = functools.partial(_struck, ring.write, faults, f"frontend {name}")

    _after(in_flight.InFlight, "__init__", strike_at_writing)
    call = middleware.__call__

    async def called(self, scope, receive, send):
        if faults.is_off and self._in_flight.fault:
            self._in_flight.fault = None
            self._in_flight.is_on = True
        await call(self, scope, receive, send)

    middleware.__call__ = called


def _struck(call, faults, name, *args):
    faults.strike(name)
    return call(*args)


def _break_workers(worker_times, faults):
    worker_times.monotonic_ns = functools.partial(_struck, worker_times.monotonic_ns, faults, "worker clock")
    begin = worker_times.StepTimes.begin_execute

    def begin_execute(times, *args):
        if faults.is_off:
            times._is_broken = False
        return begin(times, *args)

    worker_times.StepTimes.begin_execute = begin_execute


def _after(kind, name, do):
    call = getattr(kind, name)

    @functools.wraps(call)
    def called(self, *args, **kwargs):
        call(self, *args, **kwargs)
        do(self)

    setattr(kind, name, called)


def _names(columns):
    return [column.name for column in columns]
