"""What copying a spool to an archive came to, and how far it is."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar

from taxbreak_vllm.model.archive import Archived


@contextmanager
def copying_bar() -> Iterator[Callable[[int, int, int], None]]:
    """Show on stderr, where that is a terminal, how many captures are there, of how many, and the bytes sent."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[sent]}"))
    console = Console(stderr=True)
    with Bar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("archiving", total=None, sent="")

        def report(done: int, total: int, num_bytes: int) -> None:
            bar.update(task, completed=done, total=total, sent=f"{num_bytes / 1e6:.1f} MB")

        yield report


def archive_lines(copied: Archived) -> list[str]:
    """Say what is there now and what is not."""
    lines = [f"{copied.url}: {copied.objects} objects more, {copied.num_bytes / 1e6:.3g} MB"]
    if copied.unreadable:
        lines.append(f"{copied.unreadable} captures are not whole and were left out")
    if copied.steps_left:
        lines.append(f"{copied.steps_left} steps wait for their analysis: the next run adds their rows")
    if copied.reason:
        lines.append(f"{copied.left} captures are left, or rows: {copied.reason}")
    return lines
