"""Where the second of a server's devices went, as text for people. In: `DeviceSecond`. Out: rich tables."""

from collections.abc import Iterable, Iterator

from rich.table import Table
from rich.text import Text

from taxbreak_vllm.model.server import DeviceSecond
from taxbreak_vllm.output.page.server import DEVICE_WORDS
from taxbreak_vllm.output.words import duration, percent


def second_tables(seconds: Iterable[DeviceSecond]) -> Iterator[Table]:
    """Show for each engine what its mean iteration went to, from client to kernel."""
    for second in seconds:
        if second.num_iterations:
            yield _table(second)


def _table(second: DeviceSecond) -> Table:
    of_all = f" of {second.num_iterations + second.num_left_out:,}" if second.num_left_out else ""
    title = f"where the device's second went: engine {second.engine}, {second.num_iterations:,}{of_all} iterations"
    table = Table(title=Text(title), title_justify="left", pad_edge=False)
    table.add_column("since its start", no_wrap=True)
    table.add_column("each", justify="right", no_wrap=True)
    table.add_column("share", justify="right", no_wrap=True)
    for part, part_ns in second.parts_ns.items():
        words = DEVICE_WORDS[part][1]
        table.add_row(words, duration(part_ns // second.num_iterations), percent(part_ns / second.total_ns))
    return table
