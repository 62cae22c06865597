"""`taxbreak` loaded once: each command of the tests is a fork of one process, in a twentieth of the time of its own.

As a module, `CommandLine` runs commands; as a program it takes one a line, as JSON, and answers with its exit status.
What a fork does not show, that a command comes up by itself, those tests show that start one as a user would.
"""

import contextlib
import gc
import importlib
import json
import os
import subprocess
import sys
import tempfile
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
)


class CommandLine:
    """Runs commands as subprocess.run would, in forks of a process that ends with this."""

    def __init__(self) -> None:
        self._forking = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def __call__(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        """Run `taxbreak ARGUMENTS` here, in this environment, to its end."""
        with tempfile.NamedTemporaryFile() as out, tempfile.NamedTemporaryFile() as err:
            words = ["taxbreak", *map(str, arguments)]
            request = {"words": words, "env": dict(os.environ), "cwd": os.getcwd(), "out": out.name, "err": err.name}
            self._pipe(self._forking.stdin).write(json.dumps(request) + "\n")
            status = int(self._pipe(self._forking.stdout).readline())
            return subprocess.CompletedProcess(words, status, out.read().decode(), err.read().decode())

    def close(self) -> None:
        """End the process."""
        self._forking.communicate()

    @staticmethod
    def _pipe(pipe: IO[str] | None) -> IO[str]:
        assert pipe is not None
        return pipe


def _serve() -> None:
    """Fork for each line; only in a fork does this return, with the command still to be run."""
    for name in _LOADED:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    gc.freeze()  # else each fork looks through all of that at its end
    for line in sys.stdin:
        if (pid := os.fork()) == 0:
            _become(json.loads(line))
            return
        sys.stdout.write(f"{os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}\n")
        sys.stdout.flush()
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
