"""How full a spool is, and since when its oldest capture waits."""

import os
from contextlib import suppress
from typing import NamedTuple

from taxbreak_vllm.spool.layout import ANALYZED, STEP, capture_dirs, rank_dirs
from taxbreak_vllm.spool.spool import Spool


class SpoolUsage:
    """How full a spool is and since when its oldest capture waits; cheap to ask again, also for thousands of captures.

    A capture changes once, when it is marked as analyzed, so its folder is looked into twice at most.
    """

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._seen: dict[str, _Look] = {}

    def read(self) -> tuple[int, int | None]:
        """Return the bytes of all captures, and the Unix time in ns of the oldest unanalyzed one, None without one."""
        seen: dict[str, _Look] = {}
        for rank_dir in rank_dirs(self._spool.root):
            for path in capture_dirs(rank_dir):
                with suppress(FileNotFoundError, PermissionError):  # evicted this very moment, or no capture of ours
                    seen[path] = self._seen.get(path) or _look(path)
        oldest_unix_ns = None
        for _, path in sorted((look.modified_ns, path) for path, look in seen.items() if not look.is_analyzed):
            with suppress(FileNotFoundError):
                look = seen[path] = _look(path)
                if not look.is_analyzed:
                    oldest_unix_ns = look.modified_ns
                    break
        self._seen = seen
        return sum(look.size_bytes for look in seen.values()), oldest_unix_ns


class _Look(NamedTuple):
    modified_ns: int
    size_bytes: int
    is_analyzed: bool


def _look(path: str) -> _Look:
    sizes = {entry.name: entry.stat().st_size for entry in os.scandir(path)}
    if STEP not in sizes:
        raise FileNotFoundError(path)
    return _Look(os.stat(path).st_mtime_ns, sum(sizes.values()), ANALYZED in sizes)
