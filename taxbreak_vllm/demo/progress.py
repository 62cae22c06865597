"""How far a run is, on standard error: on a terminal a bar over the last words of who is waited for, else lines."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from taxbreak_vllm.demo.processes import Process
from taxbreak_vllm.output.text.names import visible


class Stages:
    """The stages of a run, one after the other."""

    def __init__(self, num_stages: int, console: Console) -> None:
        self._num = num_stages
        self._num_done = 0
        self._console = console

    @contextmanager
    def stage(self, what: str, *, at_most_s: float) -> Iterator[Callable[[Process], None]]:
        """Show a stage while it lasts beside how long it may, and then how long it took.

        What is yielded takes the process waited for.
        """
        started_s = time.monotonic()
        if self._console.is_terminal:
            with _Bar(self._console) as bar:
                bar.add_task(what, total=self._num, completed=self._num_done, at_most=timedelta(seconds=at_most_s))
                yield bar.watch
        else:
            self.say(f"{what}, at most {at_most_s:.0f} s …")
            yield lambda process: None
        self._num_done += 1
        self.say(f"{what}: done in {time.monotonic() - started_s:.0f} s")

    def say(self, line: str) -> None:
        """Print a line, however long."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


class _Bar(Progress):
    """A bar that goes when it is left, over the last line of a log."""

    def __init__(self, console: Console) -> None:
        description = TextColumn("{task.description}", markup=False)
        bound = TextColumn("of {task.fields[at_most]}")
        columns = (description, BarColumn(bar_width=12), MofNCompleteColumn(), TimeElapsedColumn(), bound)
        self._process: Process | None = None
        super().__init__(*columns, console=console, transient=True, refresh_per_second=4)

    def watch(self, process: Process) -> None:
        self._process = process

    def get_renderables(self) -> Iterator[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        if self._process is not None:
            yield Text(visible(self._process.tail(1)), style="dim", no_wrap=True, overflow="ellipsis")
