"""vLLM imported once: a server or a script of the tests is a fork of this process, and so is each process it starts.

As a module, `ForkingProcesses` starts what runs vLLM as such a fork and anything else as a command, both with the
guard of `taxbreak_vllm.demo.processes`. As a program it listens at the address given. A connection brings one command
as JSON and is, from then on, what standard input is to a guard: the command ends with it, and its exit status comes
back. So whoever goes first, the command, this process or the tests, nothing is left.

What a fork does not show, that vLLM comes up from its own command line and spawns its own processes, the live server
shows, which is started as a user would. Several API servers are spawned here too: their metrics need a
`prometheus_client` that was imported for several.
"""

import contextlib
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from taxbreak_vllm.demo.processes import GRACE_S, Process, Processes, guard

VLLM = "vllm.entrypoints.cli.main"
# What a server and an offline engine come to import; a vLLM that has one of them elsewhere imports it later.
IMPORTED = (
    VLLM,
    "vllm.entrypoints.cli.serve",
    "vllm.entrypoints.openai.api_server",
    "vllm.entrypoints.llm",
    "vllm.v1.engine.async_llm",
    "vllm.v1.engine.core",
    "vllm.v1.executor.multiproc_executor",
    "vllm.v1.executor.uniproc_executor",
    "vllm.v1.worker.cpu_worker",
    "vllm.v1.worker.cpu_model_runner",
    "vllm.model_executor.models.llama",
)
_MAX_REQUEST_BYTES = 2**20


class ForkingProcesses(Processes):
    """Processes of which those that run vLLM are forks of the process at `address`."""

    def __init__(self, folder: Path, address: Path) -> None:
        super().__init__(folder)
        self._address = address

    def start(self, name, command, *, env):
        """Start a command, with `FOLDER/NAME.log` as its log."""
        _python, *arguments = command
        if arguments[:2] == ["-m", VLLM]:
            arguments = arguments[1:]
        elif Path(arguments[0]).parent != Path(__file__).parent:
            return super().start(name, command, env=env)
        process = Fork(name, arguments, env=env, log=self.folder / f"{name}.log", address=self._address)
        self._started.append(process)
        return process


class Fork(Process):
    """A fork that runs vLLM's command line or a script, with its arguments; its guard is at the end of a connection."""

    def __init__(self, name, command, *, env, log, address, grace_s=GRACE_S) -> None:
        self.name = name
        self.log = log
        log.touch()
        umask = os.umask(0)
        os.umask(umask)
        request = {"command": command, "env": dict(env), "log": str(log), "cwd": os.getcwd(), "umask": umask}
        self._guard = _Guard(address, request | {"grace_s": grace_s})

    def ask_to_stop(self):
        self._guard.stop()


class _Guard:
    """What a guard's Popen is, over a connection."""

    def __init__(self, address, request) -> None:
        self.returncode = None
        self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._connection.connect(str(address))
        self._connection.send(json.dumps(request).encode())

    def poll(self):
        if self.returncode is None and select.select([self._connection], [], [], 0)[0]:
            self.wait()
        return self.returncode

    def wait(self):
        if self.returncode is None:
            self.returncode = -signal.SIGKILL  # it was, where it leaves no word
            with contextlib.suppress(ConnectionResetError):
                self.returncode = int(self._connection.recv(16) or self.returncode)
            self._connection.close()
        return self.returncode

    def stop(self):
        if self.returncode is None:
            self._connection.shutdown(socket.SHUT_WR)


def listen(address: str, modules: Sequence[str]) -> None:
    """Import the modules and fork for each connection; only in a fork does this return, once its command has."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(f"{address}.new")
        listening.listen(16)
        os.rename(f"{address}.new", address)  # who finds it may connect, and waits for the imports
        for name in modules:
            with contextlib.suppress(ImportError):
                importlib.import_module(name)
        while True:
            connection, _ = listening.accept()
            if os.fork() == 0:
                break
            connection.close()
            _reap()
    _guard(connection)


def _reap() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _guard(connection: socket.socket) -> None:
    request = json.loads(connection.recv(_MAX_REQUEST_BYTES))
    os.setsid()
    log = os.open(request["log"], os.O_WRONLY | os.O_APPEND)
    for source, target in ((connection.fileno(), 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.close(log)

    def begin() -> int:
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            connection.close()
            _become(request)
            sys.exit()
        return pid

    status = guard(begin, request["grace_s"])
    connection.send(str(status).encode())


def _become(request: dict) -> None:
    """Turn this process into the one asked for, as far as a fork can, and run it to its end."""
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(request["cwd"])
    os.umask(request["umask"])
    os.environ.clear()
    os.environ.update(request["env"])
    sys.path[1:1] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    tempfile.tempdir = None
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)
    if envs := sys.modules.get("vllm.envs"):
        # vLLM's CPU build sets this to spawn, and then each engine and each worker would import everything again
        envs.environment_variables["VLLM_WORKER_MULTIPROC_METHOD"] = lambda: "fork"
    sys.argv = request["command"]
    if sys.argv[0] == VLLM:
        sys.argv[0] = "vllm"
        importlib.import_module(VLLM).main()
    else:
        runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    listen(sys.argv[1], sys.argv[2:])
