"""What Kineto says of its failures: it writes to standard error alone, and that is read back where it is a file."""

import os
import re
import stat

_STDERR = "/proc/self/fd/2"
_MAX_BYTES = 2**16
_SAID = re.compile(r"^(?:ERROR|WARNING):.*\] (.*)$", flags=re.MULTILINE)


def stderr_bytes() -> int | None:
    """Return how much stands in this process's standard error, None where that is no file."""
    try:
        found = os.fstat(2)
    except OSError:
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def kineto_errors(since: int | None) -> str:
    """Return what Kineto has said there since, in one line; where that is not known, where to look for it."""
    if since is not None:
        try:
            with open(_STDERR, "rb") as file:
                file.seek(since)
                said = _SAID.findall(file.read(_MAX_BYTES).decode(errors="replace"))
        except OSError:
            said = []
        if said:
            return f"Kineto says: {'; '.join(dict.fromkeys(said))}"
    return "lines of this log that begin with ERROR: or WARNING: are Kineto's"
