"""Asks a process of its own, in which vLLM is imported: a task in, the bytes of its answer out."""

import importlib.util
import os
import subprocess
import sys

import msgspec

from taxbreak_vllm.model.errors import WorkloadError
from taxbreak_vllm.workload.task import Failure, Task

REFUSED = 3
_NUM_LINES = 8


def ask(task: Task) -> bytes:
    """Do a task; raises WorkloadError where it is refused, or where vLLM is not installed or fails."""
    if importlib.util.find_spec("vllm") is None:
        raise WorkloadError(
            "vLLM is not installed here, and its scheduler is what runs: pip install 'taxbreak-vllm[vllm]', or [cpu], "
            "in the version of the recording"
        )
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("VLLM_", "TAXBREAK_"))}
    quiet = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_PLUGINS": "", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "taxbreak_vllm.workload.child"],
        input=msgspec.json.encode(task),
        capture_output=True,
        env=kept | quiet | {"OMP_NUM_THREADS": "1"},
        check=False,
    )
    if done.returncode == REFUSED:
        raise WorkloadError(msgspec.json.decode(done.stdout, type=Failure).reason)
    if done.returncode != 0:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-_NUM_LINES:]
        raise WorkloadError(f"the simulation ended with status {done.returncode}: {' / '.join(last)}")
    return done.stdout
