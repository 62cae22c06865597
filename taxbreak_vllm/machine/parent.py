"""Processes that end with the one that started them, however that ends: by itself, by Ctrl-C or by SIGKILL.

Their starter holds the other end of their standard input and writes nothing into it: that it closes tells them, and so
does the number of their parent. What has nothing to put in order is killed by the kernel instead.
"""

import ctypes
import os
import select
import signal
import sys
import threading
import time
from types import FrameType

_POLL_S = 1.0
_LEAVE_S = 3.0
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h


def end_with_parent() -> None:
    """Raise SystemExit in the main thread once the parent is gone, and end in any case a little later."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for whoever started us
    signal.signal(signal.SIGTERM, _leave)
    threading.Thread(target=_follow, args=(os.getppid(),), name="parent", daemon=True).start()


def die_with_parent() -> None:
    """Let the kernel kill this process when the thread that started it ends; it may use standard input as it likes."""
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before we asked
        os._exit(1)


def is_gone(parent: int, *, wait_s: float) -> bool:
    """Whether this process has lost its parent, after waiting as long for its standard input to close.

    The parent's number is looked at too: a child it forked may hold the other end of the pipe.
    """
    return os.getppid() != parent or bool(select.select([0], [], [], wait_s)[0] and not os.read(0, 4096))


def adopt_orphans() -> None:
    """Become the parent of what this process's children leave behind.

    A container's first process is often no init and would keep them as zombies.
    """
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _leave(_signal: int, _frame: FrameType | None) -> None:
    sys.exit(0)


def _follow(parent: int) -> None:
    while not is_gone(parent, wait_s=_POLL_S):
        pass
    main_thread = threading.main_thread().ident
    assert main_thread is not None
    signal.pthread_kill(main_thread, signal.SIGTERM)  # a real signal: it also wakes the main thread from a wait
    time.sleep(_LEAVE_S)
    os._exit(1)
