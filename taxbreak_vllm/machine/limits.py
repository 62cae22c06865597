"""The processors that a process of this machine may use, read from /proc and its cgroup.

In: a worker's process id. Out: `Machine`; None where the process is not to be seen from here, as in another container.
"""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_PROC, _CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The processors a worker may use, and how many threads it computes with; None where it could not be read."""

    cpu_limit: float | None = None
    omp_threads: int | None = None
    throttled_ratio: float | None = None


def read_machine(pid: int, *, proc: Path = _PROC, cgroups: Path = _CGROUPS) -> Machine | None:
    """Read the CPU limit, the threads asked for by OMP_NUM_THREADS and how often the cgroup was throttled."""
    process = proc / str(pid)
    try:
        if b"vllm" not in (process / "cmdline").read_bytes().lower():
            return None  # the number is of another namespace, or was given anew
        environment = dict(
            entry.partition("=")[::2] for entry in (process / "environ").read_text(errors="replace").split("\0")
        )
        path = (process / "cgroup").read_text().strip().rpartition("::/")[2]
        allowed = _allowed(process)
    except OSError:
        return None
    limits = [limit for limit in (allowed, _quota(cgroups / path)) if limit is not None]
    threads = environment.get("OMP_NUM_THREADS", "")
    return Machine(
        cpu_limit=min(limits, default=None),
        omp_threads=int(threads) if threads.isdecimal() else None,
        throttled_ratio=_throttled(cgroups / path),
    )


def _allowed(process: Path) -> float | None:
    """Count the processors of the affinity mask."""
    for line in (process / "status").read_text().splitlines():
        if line.startswith("Cpus_allowed:"):
            return float(int(line.partition(":")[2].strip().replace(",", ""), 16).bit_count()) or None
    return None


def _quota(folder: Path) -> float | None:
    with suppress(OSError, ValueError):
        quota, period = (folder / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    return None


def _throttled(folder: Path) -> float | None:
    with suppress(OSError, ValueError):
        counts = dict(line.split() for line in (folder / "cpu.stat").read_text().splitlines())
        if periods := int(counts.get("nr_periods", 0)):
            return int(counts.get("nr_throttled", 0)) / periods
    return None
