"""Work for processes of a pool, some of which die over it; a module of its own, which they import."""

import os
import signal
from pathlib import Path


def squared(value):
    """Return the square, and who worked it out."""
    return value * value, os.getpid()


def squared_by_another(folder, value):
    """Die over an odd value the first time; leave a file each time."""
    tries = len(list(Path(folder).glob(f"{value}-*")))
    Path(folder, f"{value}-{tries}").touch()
    if value % 2 and not tries:
        os.kill(os.getpid(), signal.SIGKILL)
    return value * value


def dies(value):
    """Die over 3."""
    if value == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return value * value


def added_by_another(common, value):
    """Die over an odd value the first time; leave a file each time."""
    folder, more = common
    squared_by_another(folder, value)
    return value + more


def fails(value):
    """Fail over 3."""
    if value == 3:
        raise ValueError("three")
    return value * value
