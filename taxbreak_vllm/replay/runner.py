"""Runs tasks through child processes and keeps the outcome of each, whatever becomes of the child.

In: tasks. Out: entries in the store, written as they come. A task that kills its child, hangs or takes too much memory
loses itself alone: it is marked, a new child goes on with the rest. What is in the store already is not done again, so
a run that was broken off goes on where it was.
"""

import os
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from types import TracebackType
from typing import NamedTuple, Self

import msgspec

from taxbreak_vllm.baselines.store import Baselines
from taxbreak_vllm.model.baseline import Baseline, Environment, Floors, Outcome
from taxbreak_vllm.model.ceilings import MeasuredCeilings
from taxbreak_vllm.model.errors import ReplayError
from taxbreak_vllm.replay.child import Ready, Result
from taxbreak_vllm.replay.task import Options, Task
from taxbreak_vllm.trace.calls import signature

_START_TIMEOUT_S = 600.0  # torch and vLLM take 20 s to load, far longer at the lowest priority on a busy machine
_CHUNK_BYTES = 2**16


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a run may take.

    `task_s` is the longest a task may take, `total_s` the run (None: until done), `batch` how many tasks a child serves
    before a new one takes over.
    """

    task_s: float = 30.0
    total_s: float | None = None
    batch: int = 512


class Pace:
    """Keeps what children take of the processor to a share of one core, from now on; without a share, to nothing."""

    def __init__(self, max_core_ratio: float | None = None, *, now_s: Callable[[], float] = time.monotonic) -> None:
        self._max_core_ratio = max_core_ratio
        self._now_s = now_s
        self._started_s = now_s()
        self._spent_ns = 0

    def spend(self, cpu_ns: int) -> None:
        """Count the processor time of a child that is gone."""
        self._spent_ns += cpu_ns

    def due_s(self, running_ns: int = 0) -> float:
        """How long to wait until the share is kept, with what a running child has taken; 0 when it is."""
        if self._max_core_ratio is None:
            return 0.0
        elapsed_s = self._now_s() - self._started_s
        return max(0.0, (self._spent_ns + running_ns) / 1e9 / self._max_core_ratio - elapsed_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayProgress:
    """How far a run is."""

    done: int
    total: int
    op: str
    outcome: Outcome | None = None


class _LostError(Exception):
    """The child ended, or did not answer in time."""

    def __init__(self, outcome: Outcome, reason: str) -> None:
        super().__init__(reason)
        self.outcome = outcome
        self.reason = reason


class Child:
    """One child process; a context manager. Raises ReplayError where it cannot start."""

    def __init__(self, options: Options) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed in __exit__
        read_fd, write_fd = os.pipe()
        # One thread: what is measured is dispatch, and the pool of an idle backend spins on cores others need.
        env = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "taxbreak_vllm.replay.child", str(write_fd)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self._log,
            pass_fds=(write_fd,),
            env=env,
        )
        os.close(write_fd)
        self._results = read_fd
        self._pending = b""
        self.num_served = 0
        try:
            line = self._ask(msgspec.json.encode(options), _START_TIMEOUT_S)
        except _LostError as lost:
            self.close()
            raise ReplayError(f"the replay process did not start: {lost.reason}") from None
        ready = msgspec.json.decode(line, type=Ready)
        self.environment: Environment = ready.environment
        self.cpu_ns = ready.cpu_ns

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the process at once; it holds nothing that would be lost."""
        self._process.kill()
        self._process.wait()
        if self._process.stdin is not None:
            with suppress(BrokenPipeError):
                self._process.stdin.close()
        os.close(self._results)
        self._log.close()

    def serve(self, task: Task | None, timeout_s: float) -> Result:
        """Have a task done, or the floors measured where it is None; raises `_LostError`."""
        line = self._ask(msgspec.json.encode(task), timeout_s)
        self.num_served += 1
        result = msgspec.json.decode(line, type=Result)
        self.cpu_ns = result.cpu_ns
        return result

    def _ask(self, line: bytes, timeout_s: float) -> bytes:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._death() from None
        deadline_s = time.monotonic() + timeout_s
        with selectors.DefaultSelector() as selector:
            selector.register(self._results, selectors.EVENT_READ)
            while b"\n" not in self._pending:
                if not selector.select(max(0.0, deadline_s - time.monotonic())):
                    raise _LostError(Outcome.TIMED_OUT, f"no answer within {timeout_s:g} s")
                chunk = os.read(self._results, _CHUNK_BYTES)
                if not chunk:
                    raise self._death()
                self._pending += chunk
        answer, _, self._pending = self._pending.partition(b"\n")
        return answer

    def _death(self) -> _LostError:
        status = self._process.wait()
        how = f"signal {-status}" if status < 0 else f"exit status {status}"
        self._log.seek(max(0, self._log.seek(0, os.SEEK_END) - 2000))
        said = self._log.read().decode(errors="replace").strip().splitlines()
        return _LostError(Outcome.CRASHED, f"its process ended with {how}" + (f": {said[-1][:200]}" if said else ""))


class Children:
    """The one child at work, replaced when it is lost or has served its batch; a context manager."""

    def __init__(self, options: Options, batch: int, open_child: Callable[[Options], Child]) -> None:
        self._options = options
        self._batch = batch
        self._open_child = open_child
        self._child: Child | None = None
        self._spent_ns = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._dismiss()

    @property
    def environment(self) -> Environment:
        """Where the replays take place."""
        return self._current().environment

    @property
    def cpu_ns(self) -> int:
        """Processor time that all children together have used."""
        return self._spent_ns + (self._child.cpu_ns if self._child else 0)

    def serve(self, task: Task, timeout_s: float) -> list[Baseline]:
        """Have a task done; what its child does not survive becomes its outcome."""
        child = self._current()
        try:
            result = child.serve(task, timeout_s)
        except _LostError as lost:
            self._dismiss()
            return task.entries(lost.outcome, lost.reason, now_ns=time.time_ns())
        if result.is_spent or child.num_served >= self._batch:
            self._dismiss()
        return list(result.entries)

    def _current(self) -> Child:
        if self._child is None:
            self._child = self._open_child(self._options)
        return self._child

    def _dismiss(self) -> None:
        if self._child is not None:
            self._spent_ns = self.cpu_ns
            self._child.close()
            self._child = None


def run(
    tasks: Sequence[Task],
    store: Baselines,
    options: Options,
    limits: Limits,
    *,
    pace: Pace | None = None,
    check: Callable[[Environment], None] = lambda _: None,
    may_go_on: Callable[[], bool] = lambda: True,
    report: Callable[[ReplayProgress], None] = lambda _: None,
    now_s: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    open_child: Callable[[Options], Child] = Child,
) -> int:
    """Replay what the store lacks, storing each task's entries as they come; return how many tasks are left undone.

    `check` may refuse the environment of the children by raising; `may_go_on` is asked before each task, and while it
    says no the run waits. Ends early when `total_s` is over. Raises ReplayError where no child starts, BaselineError
    from the store.
    """
    started_s = now_s()
    pace = pace or Pace()

    def is_over() -> bool:
        return limits.total_s is not None and now_s() - started_s >= limits.total_s

    namespaces = {task.call.op.partition("::")[0] for task in tasks}
    options = replace(options, namespaces=tuple(sorted(namespaces)))
    with Children(options, limits.batch, open_child) as children, _counted(children, pace):
        environment = children.environment
        check(environment)
        left = missing(tasks, store, environment)
        done = len(tasks) - len(left)
        for task in left:
            report(ReplayProgress(done=done, total=len(tasks), op=task.call.op))
            while not is_over() and ((due_s := pace.due_s(children.cpu_ns)) > 0 or not may_go_on()):
                sleep(min(due_s, 1.0) or 1.0)
            if is_over():
                break
            entries = children.serve(task, limits.task_s)
            store.put(environment, entries)
            done += 1
            report(ReplayProgress(done=done, total=len(tasks), op=task.call.op, outcome=entries[0].outcome))
        return len(tasks) - done


def missing(tasks: Sequence[Task], store: Baselines, environment: Environment) -> list[Task]:
    """The tasks of which the store lacks an entry, in their order."""
    keys = {task: [signature(task.call, kernel) for kernel in task.kernels] for task in tasks}
    known = store.get(environment, [key for own in keys.values() for key in own])
    return [task for task in tasks if any(key not in known for key in keys[task])]


class Measured(NamedTuple):
    """What was measured of a device, and where; ceilings where they were asked for."""

    environment: Environment
    floors: Floors
    ceilings: MeasuredCeilings | None = None


def measure_floors(options: Options, *, pace: Pace | None = None, timeout_s: float = 300.0) -> Measured:
    """Measure floors, and ceilings where `options` say so, in a child process; raises ReplayError where that fails."""
    with Child(options) as child:
        try:
            result = child.serve(None, timeout_s + 3 * options.ceilings_s)
        except _LostError as error:
            raise ReplayError(f"the floors could not be measured: {error.reason}") from None
        finally:
            if pace is not None:
                pace.spend(child.cpu_ns)
        assert result.floors is not None
        return Measured(child.environment, result.floors, result.ceilings)


@contextmanager
def _counted(children: Children, pace: Pace) -> Iterator[None]:
    try:
        yield
    finally:
        pace.spend(children.cpu_ns)
