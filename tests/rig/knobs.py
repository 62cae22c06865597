"""What tests turn while a vLLM runs: delays at places of its processes, and the speed of a simulated device.

In: times in ns by name, from any process. Out: the same in every process that opened the file; no vLLM is imported.
"""

import mmap
import time
from enum import IntEnum
from pathlib import Path
from time import monotonic_ns

_WAKE_NS = 150_000  # a thread may sleep so much too long
_SPIN_NS = 1_000_000  # a thread that slept does what comes next more slowly, by some 30 µs


class Knob(IntEnum):
    """Places that may be slow, and of a simulated device: its time of a step, and the host's to launch it."""

    TOKENIZER = 0
    SCHEDULE = 1
    GRAMMAR = 2
    UPDATE = 3
    POST = 4
    OUTPUT_THREAD = 5
    DETOKENIZER = 6
    IPC = 7
    WORKER = 8
    DEVICE = 9
    LAUNCH = 10


def wait_until(at_ns: int, *, spin_ns: int = _WAKE_NS) -> None:
    """Return at that time and hardly later, leaving the processor to others until shortly before."""
    if (ahead_ns := at_ns - monotonic_ns() - spin_ns) > 0:
        time.sleep(ahead_ns / 1e9)
    while monotonic_ns() < at_ns:
        pass


class Knobs:
    """Integers that several processes share."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(bytes(8 * len(Knob)))
        with path.open("r+b") as file:
            self._values = memoryview(mmap.mmap(file.fileno(), 8 * len(Knob))).cast("q")

    def turn(self, **values_ns: int) -> None:
        """Set the knobs named, and all others to 0."""
        for knob in Knob:
            self._values[knob] = values_ns.get(knob.name.lower(), 0)

    def spend(self, knob: Knob) -> None:
        """Keep this thread for as long as a knob says."""
        at_ns = monotonic_ns() + self._values[knob]
        if knob is Knob.OUTPUT_THREAD:  # beside the engine's own thread, which it must not keep from the interpreter
            wait_until(at_ns)
        wait_until(at_ns, spin_ns=_SPIN_NS)

    def __getitem__(self, knob: Knob) -> int:
        return self._values[knob]
