"""What the processes behind a server share: of several on one spool one works at a time, and every other goes first."""

import argparse
import logging
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Protocol

from taxbreak_vllm.machine.parent import end_with_parent
from taxbreak_vllm.model.errors import SpoolError
from taxbreak_vllm.spool.spool import Spool

_POLL_S = 1.0


class StopEvent(Protocol):
    """What ends a loop."""

    def is_set(self) -> bool: ...
    def wait(self, timeout: float | None = None) -> bool: ...


def spool_parser(prog: str, description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options that name a spool and its bounds; `spool_of` opens that."""
    parser = argparse.ArgumentParser(prog=prog, description=description)
    parser.add_argument("--spool", type=Path, required=True)
    parser.add_argument("--spool-max-bytes", type=int, required=True)
    parser.add_argument("--spool-max-captures", type=int, required=True)
    return parser


def spool_of(options: argparse.Namespace) -> Spool:
    """Return the spool that was named."""
    return Spool(options.spool, max_bytes=options.spool_max_bytes, max_captures=options.spool_max_captures)


def begin(niceness: int) -> None:
    """Log to standard error, keep files private, end with the process that began this one, let all others go first."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    os.umask(0o077)
    end_with_parent()
    step_back(niceness)


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


def run_on(run: Callable[[StopEvent], None], stop: StopEvent, *, role: str, pause_s: float) -> None:
    """Run until `stop` is set, through times in which the ledger or the results cannot be read or written."""
    while not stop.is_set():
        try:
            run(stop)
        except sqlite3.OperationalError as error:  # the disk is full, or too slow: it may not stay so
            logging.getLogger(f"taxbreak.{role}").warning("%s; trying again", error)
            stop.wait(pause_s)
