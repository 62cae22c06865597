"""Room in a spool for the rows of a trace too large for memory, within the spool's bound.

A file of it lies in the spool's folder while its process has it open, locked, so that whoever stores a capture counts
it and whoever finds it unlocked removes it: the process died. It is no capture, and no reader of captures sees it.
"""

import fcntl
import os
import tempfile
from typing import IO

from taxbreak_vllm.model.errors import TaxbreakError
from taxbreak_vllm.spool.layout import SPILL
from taxbreak_vllm.spool.spool import Spool

_MB = 10**6


class SpillRoom:
    """Files for the rows of a large trace; analyzed captures make way for them, the oldest first, others never."""

    remedy = "set TAXBREAK_SPOOL_MAX_BYTES higher, or unset TAXBREAK_SPOOL to use TMPDIR"

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self.folder = str(spool.root)

    def open(self) -> IO[bytes]:
        """Return an empty file that is gone once it is closed; raises SpoolError where the folder is no spool."""
        self._spool.make()
        with self._spool.lock():
            file = tempfile.NamedTemporaryFile(dir=self.folder, prefix=SPILL, suffix=".tmp")  # noqa: SIM115
            fcntl.flock(file, fcntl.LOCK_EX)
        return file

    def claim(self, file: IO[bytes], size_bytes: int) -> None:
        """Let a file grow to a size; raises TaxbreakError where the spool's bound leaves no room for that."""
        with self._spool.lock():
            captures = [(capture, capture.size_bytes()) for capture in self._spool.captures()]
            used = self._spool.spilled_bytes() + sum(size for _, size in captures)
            wanted = size_bytes - os.fstat(file.fileno()).st_size
            excess = used + wanted - self._spool.max_bytes
            analyzed = [(capture, size) for capture, size in captures if capture.is_analyzed]
            if excess > sum(size for _, size in analyzed):
                raise TaxbreakError(
                    f"{self.folder}: no room for {size_bytes / _MB:.3g} MB of a large trace within the spool's "
                    f"{self._spool.max_bytes / _MB:.3g} MB; {self.remedy}"
                )
            for capture, size in analyzed:
                if excess <= 0:
                    break
                self._spool.remove(capture)
                excess -= size
            os.ftruncate(file.fileno(), size_bytes)  # what is claimed counts from now on
