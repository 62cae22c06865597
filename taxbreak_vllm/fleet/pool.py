"""Batches on several processes of this machine that stay, so that numpy and the rules are loaded once each.

A process that dies takes its batch with it: whatever was under way then is tried again, one at a time, whole and then
capture by capture, and a capture that ends its process once more is set aside.
"""

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.context import BaseContext

from taxbreak_vllm.archive.store import Store
from taxbreak_vllm.fleet.batch import Batch, Outcome, analyze_batch, set_aside
from taxbreak_vllm.machine.parent import die_with_parent
from taxbreak_vllm.model.errors import TaxbreakError

Work = Callable[[Batch], Outcome]

_AHEAD = 2  # batches a process, so that none waits for its next
_DIED = "the process that analyzed it died or took too long, twice"
_BATCHES_PER_PROCESS = 200  # then another one goes on, whatever the first has kept


def outcomes(batches: Iterable[Batch], jobs: int, work: Work = analyze_batch) -> Iterator[Outcome]:
    """Yield what became of each batch, in no order."""
    waiting = iter(batches)
    while doubtful := (yield from _until_one_dies(waiting, work, jobs=jobs, ahead=_AHEAD)):
        yield from carefully(doubtful, work)


def carefully(batches: Iterable[Batch], work: Work = analyze_batch) -> Iterator[Outcome]:
    """Do batches that may have ended their process, one at a time: what is under way when it ends is why."""
    waiting = deque(batches)
    while waiting:
        for batch in (yield from _until_one_dies(_taken(waiting), work, jobs=1, ahead=1)):
            if len(batch.captures) > 1:
                waiting.extendleft(batch.alone())
            else:
                yield Outcome(0, (set_aside(Store(batch.archive), batch.version, batch.captures[0], _DIED),))


def _taken(waiting: deque[Batch]) -> Iterator[Batch]:
    while waiting:
        yield waiting.popleft()


def _until_one_dies(
    waiting: Iterator[Batch], work: Work, *, jobs: int, ahead: int
) -> Generator[Outcome, None, list[Batch]]:
    """Work until nothing waits or a process died; return what was under way then.

    Raises TaxbreakError where processes die that have no work yet.
    """
    under_way: dict[Future[Outcome], Batch] = {}
    pool = ProcessPoolExecutor(
        jobs,
        mp_context=_context(),
        initializer=die_with_parent,
        max_tasks_per_child=_BATCHES_PER_PROCESS,
    )
    try:
        _require_start(pool)
        while True:
            while len(under_way) < ahead * jobs and (batch := next(waiting, None)) is not None:
                try:
                    under_way[pool.submit(work, batch)] = batch
                except BrokenProcessPool:
                    return [*under_way.values(), batch]
            if not under_way:
                return []
            done, _ = wait(under_way, return_when=FIRST_COMPLETED)
            for future in done:
                try:
                    outcome = future.result()
                except BrokenProcessPool:
                    return list(under_way.values())
                del under_way[future]
                yield outcome
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _require_start(pool: ProcessPoolExecutor) -> None:
    """Raise TaxbreakError where a process cannot even begin: no capture is to blame for that."""
    try:
        pool.submit(os.getpid).result()
    except BrokenProcessPool:
        raise TaxbreakError("the processes that analyze end before they begin: what they say of it is above") from None


def _context() -> BaseContext:
    """Have processes forked from one that has loaded the analysis and nothing else, so that another one costs little.

    That one ends with this, and they with it.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([analyze_batch.__module__])
    return context
