"""A spool on disk: what its files and folders are called, and which folder may be used as one.

`SPOOL/<server id>/<rank>/<step id>/` is a capture if it holds `step.json`. Whoever uses a spool deletes captures in it
and what writers left that died. A file marks it as a spool; a folder without that holds nothing else or is refused. It
is its owner's alone; what is not called as here is never touched.
"""

import fcntl
import logging
import os
import re
import shutil
import stat
from functools import cache
from pathlib import Path

from taxbreak_vllm.model.errors import SpoolError

MARKER = ".taxbreak-spool"
TRACE = "trace.json.gz"
STEP = "step.json"
STATE = "state.json"
ENGINE = "engine-"  # and its number: the folder of an engine beside those of its ranks
API = "api-"  # and its number: the folder of an API server
REQUESTS = "requests.json"  # of an API server: its newest waterfalls
ARRIVALS = "arrivals"  # of an API server: which requests are on their way to an engine
WINDOW = "iterations-{}.json.gz"  # of an engine: consecutive turns of its loop
NUM_WINDOWS = 8  # of an engine are kept, the newest
TRAFFIC = "traffic"  # the folder of what a server's engines and API servers keep of their requests and steps
REQUEST = "capture.json"
CONTROL = "control.json"
ANALYZED = "analyzed"
SPILL = ".spill-"  # and letters and .tmp: rows of a large trace, while it is analyzed

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")

logger = logging.getLogger("taxbreak.spool")

_LOST_AND_FOUND = "lost+found"  # in the root of a volume
_DATABASES = r"(results|baselines|archive-[0-9a-f]{8})\.sqlite3(-wal|-shm|-journal)?"
_LEFTOVER = re.compile(rf"\.{NAME.pattern}\.(tmp|gone)")  # of a capture, or of a file that was being written

_SPILLED = re.compile(rf"{re.escape(SPILL)}\w+\.tmp")

_TRAFFIC = rf"({ENGINE}|{API})[0-9]{{1,9}}-[0-9]{{8}}\.jsonl\.gz"

_ROOT, _SERVER, _RANK = range(3)
_FILES = (
    re.compile(rf"{re.escape(MARKER)}|\.[a-z]+\.lock|{_DATABASES}|{_SPILLED.pattern}"),
    re.compile(rf"{REQUEST}|{CONTROL}|{_LEFTOVER.pattern}"),
    re.compile(rf"{STATE}|{REQUESTS}|{ARRIVALS}|iterations-[0-9]\.json\.gz|{_TRAFFIC}|{_LEFTOVER.pattern}"),
)
_FOLDERS = (NAME, re.compile(rf"({ENGINE}|{API})?[0-9]{{1,9}}|{TRAFFIC}"), NAME)


def take(root: Path) -> None:
    """Make a spool's folder and mark it as one, or take one that is there: marked, empty, or of nothing but our files.

    Raises SpoolError for a folder that is not ours alone or holds anything else, OSError where the disk refuses.
    """
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = root.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise _refusal(root, "is a link", "the folder itself")
    if not _is_own(found):
        raise _refusal(root, f"belongs to another user ({found.st_uid})", "a folder of your own, or to a new one in it")
    is_open = bool(found.st_mode & (stat.S_IWGRP | stat.S_IWOTH))
    held = [] if is_marked(root) else [entry for entry in entries(root) if entry.name != _LOST_AND_FOUND]
    if is_open and held and not is_marked(root):  # another process may have been first
        raise _refusal(root, "others may have written to it", "a new or empty folder")
    strange = next((entry.name for entry in held if not _is_ours(entry)), None)
    if strange is not None and not is_marked(root):
        raise _refusal(root, f"holds {strange!r}, which is no part of a spool", "a new or empty folder")
    if is_open:
        root.chmod(0o700)
    if not is_marked(root):
        os.close(open_private(root / MARKER))


def is_marked(root: Path) -> bool:
    """Whether a folder is a spool of ours."""
    try:
        found = (root / MARKER).lstat()
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and (_is_own(found) or found.st_uid == 0)


def is_own(root: Path) -> bool:
    """Whether a folder is there and not another user's."""
    try:
        return _is_own(root.lstat())
    except OSError:
        return False


def server_dirs(root: Path) -> list[str]:
    """List the folders of servers."""
    return _folders(root, _ROOT)


def rank_dirs(root: Path) -> list[str]:
    """List the folders of all ranks of all servers."""
    return [folder for folder in _server_parts(root) if os.path.basename(folder).isdigit()]


def engine_dirs(root: Path) -> list[str]:
    """List the folders of all engines of all servers."""
    return [folder for folder in _server_parts(root) if os.path.basename(folder).startswith(ENGINE)]


def api_dirs(root: Path) -> list[str]:
    """List the folders of all API servers of all servers."""
    return [folder for folder in _server_parts(root) if os.path.basename(folder).startswith(API)]


def traffic_dirs(root: Path) -> list[str]:
    """List the folders of what servers keep of their requests and steps."""
    return [folder for folder in _server_parts(root) if os.path.basename(folder) == TRAFFIC]


def capture_dirs(rank_dir: str) -> list[str]:
    """List the folders that may be captures; `is_capture` tells."""
    return _folders(rank_dir, _RANK)


def is_capture(path: Path | str) -> bool:
    """Whether a folder holds what makes it a capture."""
    return os.path.isfile(os.path.join(path, STEP))


def recordings(path: Path) -> list[Path]:
    """Return a trace or a capture by itself, and of any other folder, as a spool, the captures in it.

    Raises SpoolError for a folder without any.
    """
    if not path.is_dir() or is_capture(path):
        return [path]
    found = sorted(step.parent for step in path.glob(f"*/*/*/{STEP}"))
    if not found:
        raise SpoolError(f"{path}: neither a capture nor a spool with captures")
    return found


def remove_leftovers(rank_dir: str, *, older_than_ns: int) -> int:
    """Delete the folders of writers and removers that died; return how many."""
    doomed = [
        entry.path
        for entry in entries(rank_dir)
        if _LEFTOVER.fullmatch(entry.name) and is_folder(entry) and _is_older(entry.path, older_than_ns)
    ]
    for path in doomed:
        shutil.rmtree(path, ignore_errors=True)
    return len(doomed)


def spilled_bytes(root: Path) -> int:
    """Return the bytes of large traces being analyzed; what a process that died left of one is deleted.

    To be called with the writer's lock: between its making and its own lock a file looks like one that was left.
    """
    return sum(_spill_bytes(entry.path) for entry in entries(root) if _SPILLED.fullmatch(entry.name))


def remove_rank(rank_dir: str, *, older_than_ns: int) -> bool:
    """Delete the folder of a rank that publishes no more and has no capture left."""
    return _remove_bare(rank_dir, _RANK, older_than_ns)


def remove_server(server_dir: str, *, older_than_ns: int) -> bool:
    """Delete the folder of a server that has no rank left."""
    return _remove_bare(server_dir, _SERVER, older_than_ns)


def open_private(path: Path, flags: int = 0) -> int:
    """Open a file of our own to write to, made where there is none; a link is refused."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | flags, 0o600)


def entries(folder: Path | str) -> list[os.DirEntry[str]]:
    """List a folder; nothing where there is none, or we may not look into it."""
    try:
        return list(os.scandir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except PermissionError:
        _say_unreadable(str(folder))
        return []


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder itself, as a link could lead out of the spool."""
    return entry.is_dir(follow_symlinks=False)


@cache
def _say_unreadable(folder: str) -> None:  # once
    logger.warning("%s: may not be read by this user and is left out", folder)


def _spill_bytes(path: str) -> int:
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
            size_bytes = os.fstat(file.fileno()).st_size
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(path)
            return 0
    except BlockingIOError:
        return size_bytes
    except OSError:  # gone meanwhile, or none of ours
        return 0


def _server_parts(root: Path) -> list[str]:
    return [part for server in server_dirs(root) for part in _folders(server, _SERVER)]


def _folders(folder: Path | str, level: int) -> list[str]:
    return sorted(e.path for e in entries(folder) if _FOLDERS[level].fullmatch(e.name) and is_folder(e))


def _is_ours(entry: os.DirEntry[str], level: int = _ROOT) -> bool:
    if _FILES[level].fullmatch(entry.name):
        return True
    if not _FOLDERS[level].fullmatch(entry.name) or not is_folder(entry):
        return False
    return is_capture(entry.path) if level == _RANK else all(_is_ours(e, level + 1) for e in entries(entry.path))


def _remove_bare(folder: str, level: int, older_than_ns: int) -> bool:
    """Delete a folder that holds nothing but files of ours; what comes into it meanwhile keeps it."""
    held = entries(folder)
    if not _is_older(folder, older_than_ns) or any(is_folder(e) or not _FILES[level].fullmatch(e.name) for e in held):
        return False
    try:
        for entry in held:
            os.unlink(entry.path)
        os.rmdir(folder)
    except OSError:
        return False
    return True


def _is_older(path: str, than_ns: int) -> bool:
    try:
        return os.stat(path).st_mtime_ns < than_ns
    except OSError:
        return False


def _is_own(found: os.stat_result) -> bool:
    return os.geteuid() in (0, found.st_uid)


def _refusal(root: Path, why: str, instead: str) -> SpoolError:
    return SpoolError(f"{root}: {why}; set TAXBREAK_SPOOL to {instead}")
