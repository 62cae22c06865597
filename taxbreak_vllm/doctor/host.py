"""What the kernel says of this host, from trees like /proc and /sys: processors, limits, memory, clocks, disk."""

import shutil
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from taxbreak_vllm.doctor.finding import Finding, fail, ok, warning
from taxbreak_vllm.machine.limits import allowed_processors, cpu_quota, throttled_ratio

MIN_PROCESSORS = 2  # an engine and a worker, or they take turns
MAX_THROTTLED_RATIO = 0.01  # of the periods
LITTLE_BYTES, TOO_LITTLE_BYTES = 2**30, 2**28
LITTLE_TMP_BYTES, TOO_LITTLE_TMP_BYTES = 2**30, 2**26
_SLOW_CLOCKS = {"hpet", "acpi_pm", "jiffies", "refined-jiffies", "pit", "xen"}  # a system call a reading


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """Where to look."""

    proc: Path = Path("/proc")
    sys: Path = Path("/sys")

    def text(self, path: Path) -> str | None:
        """Read a file of a line or two; None where there is none or it may not be read."""
        try:
            return path.read_text(errors="replace").strip()
        except OSError:
            return None

    @property
    def cgroup(self) -> Path:
        """Return the folder of this process's own group (version 2)."""
        path = (self.text(self.proc / "self" / "cgroup") or "").rpartition("::/")[2]
        return self.sys / "fs" / "cgroup" / path.splitlines()[0] if path else self.sys / "fs" / "cgroup"


def governor(host: Host) -> Finding:
    """Judge what sets the processors' clock."""
    check = "CPU governor"
    files = sorted(host.sys.glob("devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor"))
    found = Counter(filter(None, map(host.text, files)))
    if not found:
        return ok(check, "absent: the clock is not this system's to set")
    seen = ", ".join(f"{name} on {count}" for name, count in found.most_common())
    if set(found) == {"performance"}:
        return ok(check, seen)
    return warning(
        check,
        f"{seen} processors; host times follow the clock",
        "cpupower frequency-set -g performance, or compare only what ran at the same clock",
    )


def processors(host: Host) -> Finding:
    """Judge how many processors this process and its like may use."""
    check = "CPU limit"
    allowed = None
    with suppress(OSError, ValueError):
        allowed = allowed_processors(host.proc / "self")
    limits = [found for found in (allowed, cpu_quota(host.cgroup)) if found is not None]
    if not limits:
        return ok(check, "absent: no limit can be read")
    seen = f"{min(limits):g} processors"
    if min(limits) >= MIN_PROCESSORS:
        return ok(check, seen)
    return warning(
        check,
        f"{seen}: a server's processes wait for one another",
        "give the container or the affinity mask (taskset, --cpus, resources.limits.cpu) more processors",
    )


def throttling(host: Host) -> Finding:
    """Judge how often the kernel has stopped this group for its quota."""
    check = "CPU throttling"
    ratio = throttled_ratio(host.cgroup)
    if ratio is None:
        return ok(check, "absent: this group has no quota")
    seen = f"in {ratio:.1%} of the periods"
    if ratio <= MAX_THROTTLED_RATIO:
        return ok(check, seen)
    return warning(check, f"{seen}: the host stands still and seems slow", "raise the group's CPU quota, or lift it")


def memory(host: Host) -> Finding:
    """Judge how much memory is left, of the host and of this group."""
    check = "memory"
    free = [found for found in (_available_bytes(host), _group_bytes(host)) if found is not None]
    if not free:
        return ok(check, "absent: neither /proc/meminfo nor a limit can be read")
    seen = f"{_size(min(free))} left"
    remedy = "free some, or raise the group's memory limit; an analysis takes some 100 MiB"
    if min(free) < TOO_LITTLE_BYTES:
        return fail(check, seen, remedy)
    return warning(check, seen, remedy) if min(free) < LITTLE_BYTES else ok(check, seen)


def clock(host: Host) -> Finding:
    """Judge what tells the time."""
    check = "clock source"
    source = host.text(host.sys / "devices" / "system" / "clocksource" / "clocksource0" / "current_clocksource")
    if source is None:
        return ok(check, "absent: cannot be read")
    if source not in _SLOW_CLOCKS:
        return ok(check, source)
    return warning(
        check,
        f"{source}: reading the time is a system call, which lengthens all that is timed",
        "boot with clocksource=tsc, or see in the kernel's log why it distrusts the TSC",
    )


def run_queue(host: Host) -> Finding:
    """Judge whether the kernel tells how long a thread waited for a processor."""
    check = "schedstat"
    fields = (host.text(host.proc / "self" / "schedstat") or "").split()
    if len(fields) == 3 and any(map(int, fields)):
        return ok(check, "the kernel tells how long a thread waits for a processor")
    return warning(
        check,
        "the kernel does not tell how long a thread waits for a processor",
        "take a kernel with CONFIG_SCHED_INFO (not gVisor); runqueue_wait_ratio stays null without",
    )


def perf_events(host: Host) -> Finding:
    """Say who may use perf; nothing of ours does."""
    level = host.text(host.proc / "sys" / "kernel" / "perf_event_paranoid")
    seen = "absent" if level is None else f"perf_event_paranoid is {level}"
    return ok("perf events", f"{seen}; taxbreak needs none (perf and the CPU sampling of nsys want 2 or less)")


def temporary_folder(folder: Path) -> Finding:
    """Judge the space for temporary files: torch writes each recording there first."""
    check = "temporary folder"
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return fail(check, f"{folder}: {error.strerror}", "set TMPDIR to a folder that can be written")
    seen, remedy = f"{folder}: {_size(free)} free", "free some, or set TMPDIR to a larger folder"
    if free < TOO_LITTLE_TMP_BYTES:
        return fail(check, seen, remedy)
    return warning(check, seen, remedy) if free < LITTLE_TMP_BYTES else ok(check, seen)


def _available_bytes(host: Host) -> int | None:
    for line in (host.text(host.proc / "meminfo") or "").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _group_bytes(host: Host) -> int | None:
    with suppress(TypeError, ValueError):  # no limit ("max"), or no such group
        limit, used = (host.text(host.cgroup / f"memory.{name}") for name in ("max", "current"))
        return int(limit or "") - int(used or "")
    return None


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.1f} GiB" if num_bytes >= 2**30 else f"{max(0, num_bytes) / 2**20:.0f} MiB"
