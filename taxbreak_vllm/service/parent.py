"""What the processes behind a server share: they end with it, and of several on one spool one works at a time."""

import logging
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Protocol

from taxbreak_vllm.model.errors import SpoolError
from taxbreak_vllm.spool.spool import Spool

_POLL_S = 1.0
_LEAVE_S = 3.0


class StopEvent(Protocol):
    """What ends a loop."""

    def is_set(self) -> bool: ...
    def wait(self, timeout: float | None = None) -> bool: ...


def end_with_parent() -> None:
    """End this process with the one that started it, however that ends; what it writes is its owner's alone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for whoever started us
    signal.signal(signal.SIGTERM, _leave)
    threading.Thread(target=_follow_parent, args=(os.getppid(),), name="parent", daemon=True).start()
    os.umask(0o077)


def step_back(niceness: int) -> None:
    """Let every other process go first.

    Where the kernel groups processes by session, niceness counts within a session only: there the session gets the
    same, if it is this process's own (sched(7), autogroup).
    """
    os.nice(niceness)
    if os.getsid(0) == os.getpid():
        with suppress(OSError):  # no such file where the kernel groups none
            Path("/proc/self/autogroup").write_text(str(niceness))


@contextmanager
def claimed(spool: Spool, stop: StopEvent, *, role: str) -> Iterator[None]:
    """Wait to be the one process of this role on the spool, and, said once, for a spool that can be used."""
    is_mine = has_spoken = False
    with ExitStack() as stack:
        while not is_mine:
            try:
                is_mine = stack.enter_context(spool.claim(role))
            except SpoolError as error:
                if not has_spoken:
                    logging.getLogger(f"taxbreak.{role}").warning("%s; waiting, without a further word", error)
                has_spoken = True
            if not is_mine:
                stack.close()
                stop.wait(_POLL_S)
        yield


def _leave(_signal: int, _frame: FrameType | None) -> None:
    sys.exit(0)


def _follow_parent(parent: int) -> None:
    # The parent's number is looked at too: a child it forked may hold the other end of our standard input.
    while os.getppid() == parent and not (select.select([0], [], [], _POLL_S)[0] and not os.read(0, 4096)):
        pass
    main_thread = threading.main_thread().ident
    assert main_thread is not None
    signal.pthread_kill(main_thread, signal.SIGTERM)  # a real signal: it also wakes the main thread from a wait
    time.sleep(_LEAVE_S)
    os._exit(1)
