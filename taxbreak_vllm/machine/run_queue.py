"""What the kernel's scheduler gave a thread of this process: CPU time, and time it was ready to run and had no CPU."""

import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

_TASKS = Path("/proc/self/task")
_LATE_S = 10
_READ_EVERY_NS = 10**9


def run_queue(tid: int, *, tasks: Path = _TASKS) -> tuple[int, int] | None:
    """Return (cpu_ns, wait_ns) of a thread since its start; None where the kernel does not tell or it has ended."""
    try:
        cpu_ns, wait_ns = (tasks / str(tid) / "schedstat").read_bytes().split()[:2]
        return int(cpu_ns), int(wait_ns)
    except (OSError, ValueError):
        return None


class RunQueueWait:
    """How much of the time in which a thread wants a CPU it waits for one, over about the last ten seconds."""

    def __init__(self, tid: int, *, tasks: Path = _TASKS, now_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._tid = tid
        self._tasks = tasks
        self._now_ns = now_ns
        self._read_ns = 0
        self._readings: deque[tuple[int, int]] = deque(maxlen=_LATE_S)  # any thread may ask

    def ratio(self) -> float | None:
        """Return wait / (CPU time + wait); None where the kernel does not tell, or the thread wanted none."""
        found, now_ns = run_queue(self._tid, tasks=self._tasks), self._now_ns()
        if found is None:
            return None
        cpu_ns, wait_ns = (
            now - then for now, then in zip(found, self._readings[0] if self._readings else found, strict=True)
        )
        if now_ns - self._read_ns >= _READ_EVERY_NS:
            self._read_ns = now_ns
            self._readings.append(found)
        return round(wait_ns / (cpu_ns + wait_ns), 3) if cpu_ns + wait_ns > 0 else None
