"""Floors, replays and baselines as lines and tables for people."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from taxbreak_vllm.baselines.store import Baselines
from taxbreak_vllm.model.baseline import Environment, Floor, FloorKind, Floors
from taxbreak_vllm.model.ceilings import MeasuredCeilings
from taxbreak_vllm.output.text.limit import giga
from taxbreak_vllm.output.text.names import visible
from taxbreak_vllm.output.text.table import Column, Kind, Table
from taxbreak_vllm.replay.command import Account
from taxbreak_vllm.replay.runner import ReplayProgress

_FLOORS = {
    FloorKind.KERNEL: "T_sys, an empty kernel",
    FloorKind.GRAPH: "T_sys_graph",
    FloorKind.DISPATCH: "an empty op registered in Python",
    FloorKind.ATEN_DISPATCH: "an aten op on no elements",
    FloorKind.PROFILER_OP: "ε_op, the profiler per op",
    FloorKind.PROFILER_LAUNCH: "ε_launch, the profiler per launch",
}


def floor_lines(environment: Environment, floors: Floors) -> list[str]:
    """Say where and how the floors were measured."""
    place = f"{environment.device_type} {environment.device_name}, torch {environment.torch}"
    lines = [place + (f", driver {environment.driver}" if environment.driver else "")]
    governor = f", governor {floors.governor}" if floors.governor else ""
    lines.append(f"host {floors.host_cpu}{governor}, clock of {floors.clock}")
    if floors.kernel_source:
        lines.append(f"empty kernel by {floors.kernel_source}")
    line = floors.graph_line()
    if line is not None:
        lines.append(f"a graph launch takes {line[0] / 1000:.2f} µs and {line[1] / 1000:.3f} µs a node")
    return [*lines, *floors.notes]


def floor_table(floors: Floors) -> Table:
    """One row a floor: median, median absolute deviation, samples."""
    table = Table((Column("floor", 3, Kind.NAME), Column("median µs", 3), Column("MAD µs", 2), Column("samples", 1)))
    for floor in floors.floors:
        spread = floor.spread
        table.add(
            _floor_name(floor), f"{spread.median_ns / 1000:.3f}", f"{spread.mad_ns / 1000:.3f}", str(spread.samples)
        )
    return table


def ceiling_tables(ceilings: MeasuredCeilings) -> Iterator[str | Table]:
    """One row a dtype, one a working set, and why a dtype has none."""
    products = Table(
        (Column("type", 1, Kind.NAME), Column("at least", 2), Column("by", 3, Kind.NAME)), title="products, dense"
    )
    for dtype, rate in ceilings.flops_per_s.items():
        products.add(dtype, f"{rate.per_s / 1e12:.3g} TFLOP/s", rate.by)
    yield products
    memory = Table(
        (Column("working set", 1), Column("at least", 2), Column("by", 3, Kind.NAME)), title="memory and its caches"
    )
    for size, rate in ceilings.bytes_per_s.items():
        memory.add(f"{size / 2**20:g} MiB", giga(rate.per_s), rate.by)
    yield memory
    if ceilings.shortest_kernel_ns is not None:
        yield f"a kernel that does nothing runs for {ceilings.shortest_kernel_ns / 1000:.2f} µs"
    yield from (f"not measured, {dtype}: {why}" for dtype, why in ceilings.missing.items())


def _floor_name(floor: Floor) -> str:
    return f"{_FLOORS[floor.kind]}({floor.nodes})" if floor.kind is FloorKind.GRAPH else _FLOORS[floor.kind]


@contextmanager
def progress_bar() -> Iterator[Callable[[ReplayProgress], None]]:
    """Show on stderr, where that is a terminal, how far a replay is and what is left."""
    columns = (TextColumn("{task.description:40.40}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Bar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("starting torch", total=None)

        def report(progress: ReplayProgress) -> None:
            bar.update(task, description=visible(progress.op), completed=progress.done, total=progress.total)

        yield report


def replay_lines(account: Account) -> list[str]:
    """Say what the store now holds of what was asked for."""
    outcomes = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in account.outcomes.items())
    place = f"{account.environment.device_name}, torch {account.environment.torch}"
    lines = [f"{account.baselines}: {account.signatures} signatures on {place}: {outcomes or 'none'}"]
    if account.left:
        lines.append(f"{account.left} calls are left: run it again to go on")
    return lines


def trouble_table(account: Account) -> Table:
    """One row a reason: which ops were not measured, and why."""
    counts = Counter((entry.op, str(entry.outcome).replace("_", " "), entry.reason) for entry in account.trouble)
    table = Table(
        (
            Column("op", 4, Kind.NAME),
            Column("outcome", 2, Kind.NAME),
            Column("signatures", 1),
            Column("why", 3, Kind.PROSE),
        ),
        title="not measured",
    )
    for (op, outcome, reason), count in counts.items():
        table.add(op, outcome, str(count), reason)
    return table


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What a store holds of one environment."""

    environment: Environment
    entries: int
    measured: int
    has_floors: bool


def summaries(store: Baselines) -> list[Summary]:
    """Count the entries of each environment."""
    found = []
    for environment in store.environments():
        outcomes = Counter(str(entry.outcome) for entry in store.entries(environment))
        found.append(
            Summary(
                environment=environment,
                entries=sum(outcomes.values()),
                measured=outcomes["measured"],
                has_floors=store.floors(environment) is not None,
            )
        )
    return found


def environment_table(found: list[Summary]) -> Table:
    """One row an environment."""
    table = Table(
        (
            Column("device", 6, Kind.NAME),
            Column("torch", 5, Kind.NAME),
            Column("driver", 1, Kind.NAME),
            Column("floors", 2, Kind.NAME),
            Column("measured", 4),
            Column("entries", 3),
        )
    )
    for summary in found:
        env = summary.environment
        device = f"{env.device_type} {env.device_name}"
        has_floors = "yes" if summary.has_floors else "no"
        table.add(device, env.torch, env.driver or "–", has_floors, str(summary.measured), str(summary.entries))
    return table
