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
        allowed = allowed_processors(process)
    except OSError:
        return None
    limits = [limit for limit in (allowed, cpu_quota(cgroups / path)) if limit is not None]
    threads = environment.get("OMP_NUM_THREADS", "")
    return Machine(
        cpu_limit=min(limits, default=None),
        omp_threads=int(threads) if threads.isdecimal() else None,
        throttled_ratio=throttled_ratio(cgroups / path),
    )


def allowed_processors(process: Path) -> float | None:
    """Count the processors of the affinity mask of a process; raises OSError where it cannot be read."""
    for line in (process / "status").read_text().splitlines():
        if line.startswith("Cpus_allowed:"):
            return float(int(line.partition(":")[2].strip().replace(",", ""), 16).bit_count()) or None
    return None


def cpu_quota(folder: Path) -> float | None:
    """Return the processors that a control group may use (version 2); None without a limit."""
    with suppress(OSError, ValueError):
        quota, period = (folder / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    return None


def throttled_ratio(folder: Path) -> float | None:
    """Return the share of its periods in which a control group was stopped for its quota; None without one."""
    with suppress(OSError, ValueError):
        counts = dict(line.split() for line in (folder / "cpu.stat").read_text().splitlines())
        if periods := int(counts.get("nr_periods", 0)):
            return int(counts.get("nr_throttled", 0)) / periods
    return None
