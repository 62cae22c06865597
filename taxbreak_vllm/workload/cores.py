"""A function of many values on processes of this machine; a value whose process dies is done again by another.

The processes are forks of one that imported what they need (a fork server), and end with whoever asked.
"""

import gc
import multiprocessing
import signal
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import TypeVar

from taxbreak_vllm.machine.parent import die_with_parent

MAX_TRIES = 3

A = TypeVar("A")
B = TypeVar("B")


def on_cores(
    work: Callable[[A], B], values: Sequence[A], lost: Callable[[A, str], B], *, num_workers: int
) -> Iterator[tuple[int, B]]:
    """Yield the place of each value and what comes of it, in the order in which they are done; each once.

    `work` is sent to each process once. `lost` tells what comes of a value over which `work`
    failed, or whose process ended `MAX_TRIES` times.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([work_module(work)])
    todo, tries = deque(range(len(values))), Counter[int]()
    busy: dict[Connection, int] = {}
    idle: list[Connection] = []
    processes = []
    try:
        while todo or busy:
            while todo and len(busy) < num_workers:
                if not idle:
                    ours, theirs = context.Pipe()
                    process = context.Process(target=_work, args=(theirs, work), daemon=True)
                    process.start()
                    theirs.close()
                    processes.append(process)
                    idle.append(ours)
                free, place = idle.pop(), todo.popleft()
                busy[free] = place
                with suppress(OSError):  # it has died, which its answer will tell
                    free.send(values[place])
            for worker in [each for each in wait(list(busy)) if isinstance(each, Connection)]:
                place = busy.pop(worker)
                try:
                    is_answered, found = worker.recv()
                except (EOFError, OSError):
                    worker.close()
                    tries[place] += 1
                    if tries[place] < MAX_TRIES:
                        todo.appendleft(place)
                        continue
                    is_answered, found = False, f"the process that simulates it ended {MAX_TRIES} times"
                else:
                    idle.append(worker)
                yield place, found if is_answered else lost(values[place], found)
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.join()


def work_module(work: Callable[[A], B]) -> str:
    """Return the name of the module that a function, or one with some of its arguments, is of."""
    return str(getattr(work, "func", work).__module__)


def _work(questions: Connection, work: Callable[[A], B]) -> None:
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for whoever started us
    gc.disable()  # no cycles are made that matter
    while True:
        try:
            value = questions.recv()
        except EOFError:
            return
        try:
            answer: tuple[bool, object] = True, work(value)
        except Exception as error:  # another process would come to the same
            answer = False, f"{type(error).__name__}: {error}"
        questions.send(answer)
