"""Run a command as a process of its own and measure it."""

import os
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Run:
    """One whole process: wall and processor time, peak resident memory, what it printed."""

    wall_ns: int
    cpu_ns: int
    peak_bytes: int
    stdout: bytes


class CommandFailed(Exception):
    """A measured command ended with an error; the message has the end of what it wrote."""


def run(command: Sequence[str | Path]) -> Run:
    """Run a command to its end; raises CommandFailed where it exits with anything but 0."""
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:  # pipes could fill and block
        started_ns = time.perf_counter_ns()
        child = subprocess.Popen(
            [str(part) for part in command], stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr
        )
        # wait4 gives this child's own peak; getrusage(RUSAGE_CHILDREN) would give the highest of all so far.
        _, status, usage = os.wait4(child.pid, 0)
        wall_ns = time.perf_counter_ns() - started_ns
        child.returncode = os.waitstatus_to_exitcode(status)
        stdout.seek(0)
        stderr.seek(0)
        if child.returncode:
            raise CommandFailed(f"exit {child.returncode}: {stderr.read().decode(errors='replace').strip()[-300:]}")
        return Run(
            wall_ns=wall_ns,
            cpu_ns=round((usage.ru_utime + usage.ru_stime) * 1e9),
            peak_bytes=usage.ru_maxrss * 1024,
            stdout=stdout.read(),
        )
