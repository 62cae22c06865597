"""The spool's folder as its users would find it: whose it is, who may write, how much room it has; none is made."""

import os
import shutil
import stat
from pathlib import Path

from taxbreak_vllm.doctor.finding import Finding, fail, ok, warning
from taxbreak_vllm.spool.layout import entries, is_marked
from taxbreak_vllm.spool.spool import Spool

_TOO_LITTLE_BYTES = 64 * 2**20
_ELSEWHERE = "set TAXBREAK_SPOOL to a folder of the server's own user, for server and sidecar alike"


def spool_owner(root: Path, *, uid: int | None = None) -> Finding:
    """Judge owner and mode, as `spool.layout.take` would."""
    check = "spool"
    me = os.geteuid() if uid is None else uid
    try:
        found = root.lstat()
    except FileNotFoundError:
        return _absent(check, root)
    except OSError as error:
        return fail(check, f"{root}: {error.strerror}", _ELSEWHERE)
    if not stat.S_ISDIR(found.st_mode):
        return fail(check, f"{root} is {'a link' if stat.S_ISLNK(found.st_mode) else 'no folder'}", _ELSEWHERE)
    if me not in (0, found.st_uid):
        return fail(check, f"{root} belongs to user {found.st_uid}, and this is {me}", _ELSEWHERE)
    mode = f"{stat.S_IMODE(found.st_mode):04o}"
    strange = not is_marked(root) and bool(entries(root))
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and strange:
        return fail(check, f"{root} has mode {mode} and holds what others may have written", _ELSEWHERE)
    if found.st_mode & stat.S_IRWXU != stat.S_IRWXU and me != 0:
        return fail(check, f"{root} has mode {mode}: its owner may not write there", f"chmod 700 {root}")
    if strange:
        return warning(check, f"{root} holds other things, too: leavings of writers that died stay there", _ELSEWHERE)
    return ok(check, f"{root}, mode {mode}, of user {found.st_uid}")


def spool_space(spool: Spool) -> Finding:
    """Judge whether the disk has room for what the spool may hold."""
    check = "spool space"
    folder = next((each for each in (spool.root, *spool.root.parents) if each.is_dir()), Path("/"))
    free = shutil.disk_usage(folder).free
    captures = spool.captures()
    used = sum(capture.size_bytes() for capture in captures)
    seen = (
        f"{len(captures)} of {spool.max_captures} captures, {used / 2**20:.0f} of {spool.max_bytes / 2**20:.0f} MiB,"
        f" {free / 2**20:.0f} MiB free"
    )
    remedy = "free some, or lower TAXBREAK_SPOOL_MAX_BYTES; captures are dropped where the disk is full"
    if free < _TOO_LITTLE_BYTES:
        return fail(check, seen, remedy)
    return warning(check, seen, remedy) if free < spool.max_bytes - used else ok(check, seen)


def _absent(check: str, root: Path) -> Finding:
    parent = next(each for each in root.parents if each.exists())
    if parent.is_dir() and os.access(parent, os.W_OK | os.X_OK):
        return ok(check, f"absent: {root} is made on first use")
    return fail(check, f"{root} is not there, and {parent} may not be written", _ELSEWHERE)
