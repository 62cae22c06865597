"""`taxbreak` loaded once: each command of the tests is a fork of one process, in a twentieth of the time of its own.

As a module, `CommandLine` runs commands; as a program it reads requests, a line of JSON each: a command to begin, which
it answers with the number of its process, or such a number, which it answers with the exit status. What it began ends
with it. What a fork does not show, that a command comes up by itself, those tests show that start one as a user would.
"""

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO

_LOADED = (
    "taxbreak_vllm.baselines.store",
    "taxbreak_vllm.cli.analyses",
    "taxbreak_vllm.cli.app",
    "taxbreak_vllm.cli.client",
    "taxbreak_vllm.output.html",
    "taxbreak_vllm.output.parquet",
    "taxbreak_vllm.output.pprof",
    "taxbreak_vllm.output.speedscope",
    "taxbreak_vllm.output.text.insight",
    "taxbreak_vllm.service.app",
    "pyarrow.parquet",
    "rich.progress",
    "typer._adapters",
    "typer.rich_utils",
    "uvicorn.lifespan.on",
    "uvicorn.loops.auto",
    "uvicorn.protocols.http.auto",
)


class Command:
    """A command that was begun."""

    def __init__(self, words: list[str], pid: int, out: IO[bytes], err: IO[bytes], end: Callable[[int], int]) -> None:
        self._words, self._pid, self._out, self._err, self._end = words, pid, out, err, end
        self._pidfd = os.pidfd_open(pid)

    @property
    def is_alive(self) -> bool:
        """Whether it has not ended yet."""
        return not select.select([self._pidfd], [], [], 0)[0]

    @property
    def stderr(self) -> str:
        """What it has printed on standard error so far."""
        return Path(self._err.name).read_text()

    def kill(self) -> None:
        """End it at once."""
        signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def wait(self) -> subprocess.CompletedProcess[str]:
        """Wait for its end, once; what it printed is read and removed."""
        select.select([self._pidfd], [], [])
        os.close(self._pidfd)
        status = self._end(self._pid)
        with self._out as out, self._err as err:
            return subprocess.CompletedProcess(self._words, status, out.read().decode(), err.read().decode())


class CommandLine:
    """Runs commands as subprocess.run would, in forks of a process that ends with this."""

    def __init__(self) -> None:
        self._forking = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self._lock = threading.Lock()  # tests run commands in threads

    def __call__(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        """Run `taxbreak ARGUMENTS` here, in this environment, to its end."""
        return self.start(*arguments).wait()

    def start(self, *arguments: object, **settings: object) -> Command:
        """Begin `taxbreak ARGUMENTS` here, in this environment and with these settings as variables of it."""
        words = ["taxbreak", *map(str, arguments)]
        env = dict(os.environ) | {f"TAXBREAK_{name.upper()}": str(value) for name, value in settings.items()}
        out, err = tempfile.NamedTemporaryFile(), tempfile.NamedTemporaryFile()  # noqa: SIM115 - until it has ended
        pid = self._ask({"words": words, "env": env, "cwd": os.getcwd(), "out": out.name, "err": err.name})
        return Command(words, pid, out, err, lambda pid: self._ask({"ended": pid}))

    def close(self) -> None:
        """End the process, and with it what it began."""
        self._forking.communicate()

    def _ask(self, request: dict) -> int:
        with self._lock:
            self._pipe(self._forking.stdin).write(json.dumps(request) + "\n")
            return int(self._pipe(self._forking.stdout).readline())

    @staticmethod
    def _pipe(pipe: IO[str] | None) -> IO[str]:
        assert pipe is not None
        return pipe


def _serve() -> None:
    """Answer each line; only in a fork does this return, with the command still to be run."""
    for name in _LOADED:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    gc.freeze()  # else each fork looks through all of that at its end
    running = set()
    for line in sys.stdin:
        request = json.loads(line)
        if pid := request.get("ended"):
            answer = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            running.remove(pid)
        elif (answer := os.fork()) == 0:
            _become(request)
            return
        else:
            running.add(answer)
        sys.stdout.write(f"{answer}\n")
        sys.stdout.flush()
    for pid in running:
        os.kill(pid, signal.SIGKILL)
    os._exit(0)


def _become(request: dict) -> None:
    for path, target in ((os.devnull, 0), (request["out"], 1), (request["err"], 2)):
        os.dup2(os.open(path, os.O_RDWR), target)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    sys.argv = request["words"]


def _run() -> int:
    from taxbreak_vllm.cli import main

    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


if __name__ == "__main__":
    _serve()
    status = _run()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # to take apart all that is loaded takes longer than most commands
