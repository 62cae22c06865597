"""Asks a process of its own, in which vLLM is imported: a task in, the bytes of its answer out."""

import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress

import msgspec

from taxbreak_vllm.model.errors import WorkloadError
from taxbreak_vllm.workload.task import Failure, Progress, Task

REFUSED = 3
_NUM_LINES = 8
_PROGRESS = b'{"type":"progress"'


def ask(task: Task, report: Callable[[Progress], None] = lambda progress: None) -> bytes:
    """Do a task; raises WorkloadError where it is refused, or where vLLM is not installed or fails.

    `report` is told how far it is. An exception, as of Ctrl-C, ends the process.
    """
    if importlib.util.find_spec("vllm") is None:
        raise WorkloadError(
            "vLLM is not installed here, and its scheduler is what runs: pip install 'taxbreak-vllm[vllm]', or [cpu], "
            "in the version of the recording"
        )
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("VLLM_", "TAXBREAK_"))}
    quiet = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_PLUGINS": "", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    answer = b""
    with (
        tempfile.TemporaryFile() as said,
        subprocess.Popen(
            [sys.executable, "-m", "taxbreak_vllm.workload.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            env=kept | quiet | {"OMP_NUM_THREADS": "1"},
        ) as child,
    ):
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            with suppress(BrokenPipeError), child.stdin:  # where it died at once, its status tells
                child.stdin.write(msgspec.json.encode(task))
            for line in child.stdout:
                if line.startswith(_PROGRESS):
                    report(msgspec.json.decode(line, type=Progress))
                else:
                    answer = line.rstrip()
            status = child.wait()
        except BaseException:
            child.kill()
            raise
        said.seek(0)
        last = said.read().decode(errors="replace").strip().splitlines()[-_NUM_LINES:]
    if status == REFUSED:
        raise WorkloadError(msgspec.json.decode(answer, type=Failure).reason)
    if status != 0:
        raise WorkloadError(f"the simulation ended with status {status}: {' / '.join(last)}")
    return answer
