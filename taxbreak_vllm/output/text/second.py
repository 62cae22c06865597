"""Where the second of a server's devices went, as text for people. In: `DeviceSecond`. Out: lines and tables."""

from collections.abc import Iterable, Iterator

from taxbreak_vllm.model.server import DeviceSecond
from taxbreak_vllm.output.page.server import DEVICE_WORDS, with_unknown
from taxbreak_vllm.output.text.table import Column, Kind, Table
from taxbreak_vllm.output.words import duration, percent


def second_account(seconds: Iterable[DeviceSecond]) -> Iterator[str | Table]:
    """Show for each engine what its mean iteration since its start went to, from client to kernel."""
    for second in seconds:
        if second.num_iterations:
            of_all = f" of {second.num_iterations + second.num_left_out:,}" if second.num_left_out else ""
            num = f"{second.num_iterations:,}{of_all} iterations"
            yield f"where the device's second went: engine {second.engine}, {num} since its start"
            yield _table(second)


def _table(second: DeviceSecond) -> Table:
    table = Table((Column("part", 3, Kind.NAME), Column("mean", 3), Column("share", 2)))
    words = with_unknown(DEVICE_WORDS, second.parts_ns)
    for part, part_ns in second.parts_ns.items():
        table.add(words[part][1], duration(part_ns // second.num_iterations), percent(part_ns / second.total_ns))
    return table
