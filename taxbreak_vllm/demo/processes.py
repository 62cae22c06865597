"""Child processes that never outlive the one who started them.

A command goes in; it runs in a session of its own under a guard (this module, run as a program) that ends the whole
session, grandchildren included, once the command has ended or its own standard input has closed. The write end of that
pipe is held by the starter alone, so however the starter goes, by `stop`, Ctrl-C or SIGKILL, so does what it started.
A guard knows no other session than its own, so nothing else can be hit.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from taxbreak_vllm.machine.parent import adopt_orphans, is_gone
from taxbreak_vllm.model.errors import TaxbreakError

GRACE_S = 10.0
_POLL_S = 0.05


class ProcessError(TaxbreakError):
    """A process ended or failed where it was needed; the message says `what`, and its last words after that."""

    def __init__(self, what: str, process: "Process") -> None:
        super().__init__(f"{what}:\n{process.tail()}")
        self.what = what
        self.log = process.log


class TooLongError(ProcessError):
    """What a process was waited for did not come in time."""


class Process:
    """One guarded command, whose output goes to a log file."""

    def __init__(
        self, name: str, command: Sequence[str], *, env: Mapping[str, str], log: Path, grace_s: float = GRACE_S
    ) -> None:
        self.name = name
        self.log = log
        guard = [sys.executable, "-m", __spec__.name, str(grace_s), *command]
        with open(log, "wb") as output:
            self._guard = subprocess.Popen(
                guard, stdin=subprocess.PIPE, stdout=output, stderr=output, env=dict(env), start_new_session=True
            )

    @property
    def is_alive(self) -> bool:
        """Whether the command runs, or its session is still being ended."""
        return self._guard.poll() is None

    def tail(self, num_lines: int = 25) -> str:
        """Return the last lines of the log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-num_lines:])

    def wait_until(self, condition: Callable[[], bool], what: str, *, timeout_s: float) -> None:
        """Poll `condition` until it holds.

        Raises ProcessError where the process ends first, TooLongError where the time is over.
        """
        deadline_s = time.monotonic() + timeout_s
        while not condition():
            if not self.is_alive:
                raise ProcessError(f"{self.name} ended with {self._guard.returncode} before {what}", self)
            if time.monotonic() > deadline_s:
                raise TooLongError(f"{self.name}: not {what} within {timeout_s:.0f} s", self)
            time.sleep(_POLL_S)

    def ask_to_stop(self) -> None:
        """Let the guard end the session, without waiting for it."""
        if self._guard.stdin is not None:
            self._guard.stdin.close()

    def stop(self) -> int:
        """End the command and everything it started; return its exit status."""
        self.ask_to_stop()
        return self._guard.wait()


class Processes:
    """All processes of one run, with their logs in one folder; leaving the context ends them."""

    def __init__(self, folder: Path, *, grace_s: float = GRACE_S) -> None:
        self.folder = folder
        self._grace_s = grace_s
        self._started: list[Process] = []

    def start(self, name: str, command: Sequence[str], *, env: Mapping[str, str]) -> Process:
        """Start a command, with `FOLDER/NAME.log` as its log."""
        self.folder.mkdir(parents=True, exist_ok=True)
        process = Process(name, command, env=env, log=self.folder / f"{name}.log", grace_s=self._grace_s)
        self._started.append(process)
        return process

    def __enter__(self) -> "Processes":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._started:
            process.ask_to_stop()
        for process in self._started:
            process.stop()


def guard(begin: Callable[[], int], grace_s: float) -> int:
    """Begin a process that leads a session; end that session once it ends or standard input closes; return its status.

    `begin` returns the number of that process, which is a child of this one.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    parent = os.getppid()
    adopt_orphans()  # whoever left the session comes to us as well, once its parent is gone
    pid = begin()
    try:
        while not _has_exited(pid) and not is_gone(parent, wait_s=_POLL_S):
            pass
    finally:
        _end(pid, grace_s)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    _reap_orphans()
    return status if status >= 0 else 128 - status


def _begin(command: Sequence[str]) -> int:
    no_input = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)]
    return os.posix_spawnp(command[0], list(command), os.environ, file_actions=no_input, setsid=True)


def _end(session: int, grace_s: float) -> None:
    """Ask every process of the session, and every orphan of it, to end; kill what is left after the grace."""
    for signal_number in (signal.SIGTERM, signal.SIGKILL):
        asked: set[int] = set()
        deadline_s = time.monotonic() + grace_s
        while (members := set(_members(session))) and time.monotonic() < deadline_s:
            for pid in members - asked:
                with suppress(ProcessLookupError):  # it may have gone by itself
                    os.kill(pid, signal_number)
            asked |= members
            time.sleep(_POLL_S)


def _members(session: int) -> Iterator[int]:
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            # "pid (name) state parent group session …", and the name may hold anything
            state, parent, _, its_session = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[:4]
        except OSError:
            continue  # gone meanwhile
        if state not in "ZX" and (int(its_session) == session or int(parent) == os.getpid()):
            yield int(entry.name)


def _has_exited(pid: int) -> bool:
    # not reaped here: while the leader is a zombie, its number cannot become another session's
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _reap_orphans() -> None:
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


if __name__ == "__main__":
    sys.exit(guard(lambda: _begin(sys.argv[2:]), float(sys.argv[1])))
