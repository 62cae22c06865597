"""Which requests are on their way through an API server: a file of slots that its engines read.

A slot is four native integers of 64 bits: arrived, sent (`time.monotonic_ns`), the engine's number and a 0. `sent` is 0
while a request is on its way, and its engine then not known yet (`UNKNOWN_ENGINE`); one that ends without being sent
gets `NO_ENGINE`. Slots are used in turn; one that is in use is passed by.
"""

import mmap
import os
import struct
from pathlib import Path

from taxbreak_vllm.model.frontend import UNKNOWN_ENGINE
from taxbreak_vllm.spool.layout import open_private

NUM_SLOTS = 4096
_SLOT = struct.Struct("=4q")
_MAX_TRIES = 64


class Arrivals:
    """Slots in memory that a file shows as well; one thread writes."""

    def __init__(self, path: Path) -> None:
        """Make the file anew; raises OSError where the disk refuses."""
        size = NUM_SLOTS * _SLOT.size
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            os.close(open_private(temporary, os.O_TRUNC))
            descriptor = os.open(temporary, os.O_RDWR | os.O_NOFOLLOW)
            try:
                os.posix_fallocate(descriptor, 0, size)  # a page the disk has no room for would end the process
                self._slots = mmap.mmap(descriptor, size)
            finally:
                os.close(descriptor)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        self._is_used = bytearray(NUM_SLOTS)
        self._next = 0

    def begin(self, arrived_ns: int) -> int | None:
        """Take a slot for a request; None where all near ones are in use."""
        for place in range(self._next, self._next + _MAX_TRIES):
            slot = place % NUM_SLOTS
            if not self._is_used[slot]:
                self._is_used[slot] = True
                self._next = slot + 1
                _SLOT.pack_into(self._slots, slot * _SLOT.size, arrived_ns, 0, UNKNOWN_ENGINE, 0)
                return slot
        self._next += _MAX_TRIES
        return None

    def end(self, slot: int, arrived_ns: int, sent_ns: int, engine: int) -> None:
        """Say when a request was sent to which engine, or ended, and free its slot."""
        _SLOT.pack_into(self._slots, slot * _SLOT.size, arrived_ns, sent_ns, engine, 0)
        self._is_used[slot] = False
