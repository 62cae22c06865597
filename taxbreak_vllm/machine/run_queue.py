"""What the kernel's scheduler gave a thread of this process: CPU time, and time it was ready to run and had no CPU."""

from pathlib import Path

_TASKS = Path("/proc/self/task")


def run_queue(tid: int, *, tasks: Path = _TASKS) -> tuple[int, int] | None:
    """Return (cpu_ns, wait_ns) of a thread since its start; None where the kernel does not tell or it has ended."""
    try:
        cpu_ns, wait_ns = (tasks / str(tid) / "schedstat").read_bytes().split()[:2]
        return int(cpu_ns), int(wait_ns)
    except (OSError, ValueError):
        return None
