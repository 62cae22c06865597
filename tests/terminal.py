"""A command on a terminal of its own: it sees a screen so many columns wide, and what it writes there comes back."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
from collections.abc import Sequence

_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def run_on_terminal(command: Sequence[str], *, columns: int, **options: object) -> subprocess.CompletedProcess[str]:
    """Run a command whose standard output and errors are one terminal; its escapes are left in."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment | {"TERM": "xterm"}, **options
    )
    os.close(theirs)
    said = b""
    while True:
        try:
            chunk = os.read(ours, 2**16)
        except OSError:  # nobody holds the other end any more
            break
        if not chunk:
            break
        said += chunk
    os.close(ours)
    return subprocess.CompletedProcess(command, process.wait(), said.decode().replace("\r\n", "\n"), "")


def without_escapes(text: str) -> str:
    """Return the text as it is read."""
    return _ESCAPE.sub("", text)
