"""Gives the engine of a server that this process started a core of its own, as it has where cores are many.

In: the cores there are. Out: nothing; the engine's threads have the last of them, all else of ours the others. It has
to be done again for each server that is started.
"""

import os
from collections.abc import Sequence
from contextlib import suppress

import psutil

ENGINE = "VLLM::EngineCor"  # a process's name, of 15 characters


def part_cores(cores: Sequence[int]) -> None:
    """Move every thread of this process and of its descendants."""
    this = psutil.Process()
    for process in (this, *this.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            own = cores[-1:] if process.name().startswith(ENGINE) else cores[:-1]
            for thread in process.threads():
                with suppress(ProcessLookupError):  # it has ended
                    os.sched_setaffinity(thread.id, own)
