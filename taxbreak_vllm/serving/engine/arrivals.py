"""The requests that a server's API servers say are on their way: the files of its folder in, slots out.

A file is mapped into the memory of the API server that writes it, so a slot may be half written when it is read; what
the numbers mean is known in `iterations.waits`.
"""

import os
import stat
from pathlib import Path

import numpy as np

from taxbreak_vllm.iterations.spans import Int64
from taxbreak_vllm.spool.layout import API, ARRIVALS

_NUM_NUMBERS = 4
_SLOT_BYTES = 8 * _NUM_NUMBERS
_MAX_BYTES = 4096 * _SLOT_BYTES


def read_arrivals(server_dir: Path) -> Int64:
    """Return the slots of all API servers of a server (requests, 4); a file that cannot be read has none."""
    found = [_read(path) for path in sorted(server_dir.glob(f"{API}*/{ARRIVALS}"))]
    whole = b"".join(data[: len(data) // _SLOT_BYTES * _SLOT_BYTES] for data in found)
    return np.frombuffer(whole, dtype=np.int64).reshape(-1, _NUM_NUMBERS)


def _read(path: Path) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)  # one that is no file holds nobody up
    except OSError:
        return b""
    try:
        return os.read(descriptor, _MAX_BYTES) if stat.S_ISREG(os.fstat(descriptor).st_mode) else b""
    except OSError:
        return b""
    finally:
        os.close(descriptor)
