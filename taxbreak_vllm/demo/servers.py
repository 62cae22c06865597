"""A real vLLM and a real sidecar as guarded processes: a model folder goes in, an address that answers comes out.

The flags are those with which a tiny model starts fastest and takes least memory, on vLLM's CPU build and on a GPU.
The environment is the caller's less every `TAXBREAK_` and `VLLM_` setting, offline, its caches in the run's folder
(`VLLM_CACHE_ROOT`, where vLLM keeps what it found out about model classes, is left where the caller has it).
"""

import os
import random
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from taxbreak_vllm.demo.processes import Process, Processes
from taxbreak_vllm.model.defaults import HOST

WORKER_EXTENSION = ("--worker-extension-cls", "taxbreak_vllm.WorkerExtension")
# The engine and its worker in one process, as on one GPU; by its short name, `uni`, the CPU build makes it two.
ONE_PROCESS = ("--distributed-executor-backend", "vllm.v1.executor.uniproc_executor.UniProcExecutor")
VLLM_START_S = 600.0  # on two cores that others use too it has taken five minutes
SIDECAR_START_S = 60.0

# None of those that the kernel gives to whoever connects: vLLM listens a minute after it was told where.
_PORTS = range(15_000, 32_000)

# vLLM puts sockets with names of 36 characters into TMPDIR, and a socket's path ends at 107.
_MAX_FOLDER_CHARS = 64

_VLLM_FLAGS = (
    *("--load-format", "dummy"),
    *("--dtype", "float32"),
    "--enforce-eager",
    *("--max-model-len", "512"),
    *("--max-num-seqs", "8"),
    *("--kv-cache-memory-bytes", str(32 * 2**20)),
    *("--seed", "0"),
)


@dataclass(frozen=True, slots=True)
class RunningServer:
    """One server that is, or will be, listening at `url`."""

    process: Process
    url: str
    health: str
    start_s: float

    def is_healthy(self) -> bool:
        """Whether the server answers its health check now."""
        try:
            # verify=False: a plain-text address, and reading the certificates takes longer than the request
            return httpx.get(self.url + self.health, timeout=5.0, verify=False).is_success
        except httpx.TransportError:
            return False

    def wait(self) -> "RunningServer":
        """Return once the server is healthy; raises ProcessError with the log's last lines where it will not be."""
        self.process.wait_until(self.is_healthy, "healthy", timeout_s=self.start_s)
        return self


def start_vllm(
    processes: Processes,
    model: Path,
    *,
    flags: Sequence[str] = WORKER_EXTENSION,
    env: Mapping[str, str] | None = None,
    name: str | None = None,
) -> RunningServer:
    """Start `vllm serve` on a model folder, served under the folder's name; `env` is added to its environment."""
    port = _free_port()
    command = [
        sys.executable,
        "-m",
        "vllm.entrypoints.cli.main",
        "serve",
        str(model),
        "--served-model-name",
        model.name,
    ]
    command += ["--host", HOST, "--port", str(port), *_VLLM_FLAGS, *flags]
    environment = _environment(processes.folder) | dict(env or {})
    process = processes.start(name or f"vllm-{model.name}", command, env=environment)
    return RunningServer(process, f"http://{HOST}:{port}", "/health", VLLM_START_S)


def start_sidecar(
    processes: Processes, spool: Path, *, env: Mapping[str, str] | None = None, name: str = "sidecar", port: int = 0
) -> RunningServer:
    """Start `taxbreak serve` on a spool, at this port if nobody has it."""
    port = _free_port(port)
    command = [sys.executable, "-m", "taxbreak_vllm.cli", "serve", "--spool", str(spool)]
    command += ["--host", HOST, "--port", str(port)]
    environment = _environment(processes.folder) | dict(env or {})
    process = processes.start(name, command, env=environment)
    return RunningServer(process, f"http://{HOST}:{port}", "/healthz", SIDECAR_START_S)


def plain_environment() -> dict[str, str]:
    """Return the caller's environment without settings of ours and vLLM's; a cache of vLLM's it names is kept."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("TAXBREAK_", "VLLM_")) or name == "VLLM_CACHE_ROOT"
    }


def _environment(folder: Path) -> dict[str, str]:
    places = {
        "TMPDIR": folder / "tmp",
        "XDG_CACHE_HOME": folder / "cache",
        "XDG_CONFIG_HOME": folder / "config",
        "HF_HOME": folder / "cache" / "huggingface",
    }
    if len(str(folder)) > _MAX_FOLDER_CHARS:
        del places["TMPDIR"]
    for place in places.values():
        place.mkdir(parents=True, exist_ok=True)
    return (
        plain_environment()
        | {name: str(place) for name, place in places.items()}
        | {
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "PYTHONUNBUFFERED": "1",  # the last words of a killed process are in its log
        }
    )


def _free_port(wanted: int = 0) -> int:
    port = wanted or random.choice(_PORTS)
    with socket.socket() as probe:
        try:
            probe.bind((HOST, port))
        except OSError:
            return _free_port()
    return port
