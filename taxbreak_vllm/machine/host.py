"""The host of this process, as a recording names it: /proc, /sys and the cgroup in, `HostFacts` out.

What does not change while a process runs is read once; the rest are a few files of a line.
"""

import os
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from taxbreak_vllm.machine.limits import allowed_processors, cpu_quota, throttled_ratio
from taxbreak_vllm.machine.processor import processor_name
from taxbreak_vllm.model.host import HostFacts

_PROC, _SYS = Path("/proc"), Path("/sys")


class ThisHost:
    """The host of this process, read when first asked for; never raises."""

    def __init__(self, *, proc: Path = _PROC, sys: Path = _SYS) -> None:
        self._process = proc / "self"
        self._sys = sys

    def facts(self, *, runqueue_wait_ratio: float | None = None) -> HostFacts:
        """Return the facts of now."""
        throttled = None if self._cgroup is None else throttled_ratio(self._cgroup)
        return replace(self._fixed, throttled_ratio=throttled, runqueue_wait_ratio=runqueue_wait_ratio)

    @cached_property
    def _fixed(self) -> HostFacts:
        allowed = None
        with suppress(OSError, ValueError):
            allowed = allowed_processors(self._process)
        return HostFacts(
            cpu=processor_name(),
            governor=self._governor(),
            num_cpus=os.cpu_count(),
            num_allowed=None if allowed is None else int(allowed),
            cpu_limit=None if self._cgroup is None else cpu_quota(self._cgroup),
        )

    @cached_property
    def _cgroup(self) -> Path | None:
        with suppress(OSError):
            path = (self._process / "cgroup").read_text().strip().rpartition("::/")[2]
            return self._sys / "fs" / "cgroup" / (path.splitlines() or [""])[0]
        return None

    def _governor(self) -> str | None:
        found: set[str] = set()
        for file in self._sys.glob("devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor"):
            with suppress(OSError, UnicodeDecodeError):
                found.add(file.read_text().strip())
        return ", ".join(sorted(found)) or None
