"""The CUPTI that this process has loaded: nothing in, the number of its version out."""

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

_MAPS = Path("/proc/self/maps")


def loaded_cupti_version(maps: Path = _MAPS, load: Callable[[str], Any] = ctypes.CDLL) -> int | None:
    """Return what `cuptiGetVersion` says, None where none is loaded as a library of its own; loads none."""
    try:
        paths = (line.split(maxsplit=5)[-1] for line in maps.read_text().splitlines() if "/libcupti.so" in line)
        path = next(paths, None)
        if path is None:
            return None
        number = ctypes.c_uint32()
        is_wrong = load(path).cuptiGetVersion(ctypes.byref(number))
    except (OSError, AttributeError):
        return None
    return None if is_wrong else number.value
