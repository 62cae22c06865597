"""What the processes behind a server share: of several on one spool one works at a time, and every other goes first."""

import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Protocol

from taxbreak_vllm.model.errors import SpoolError
from taxbreak_vllm.spool.spool import Spool

_POLL_S = 1.0


class StopEvent(Protocol):
    """What ends a loop."""

    def is_set(self) -> bool: ...
    def wait(self, timeout: float | None = None) -> bool: ...


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
