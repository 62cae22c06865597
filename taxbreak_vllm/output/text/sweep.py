"""What a server would make of many settings and loads, in words."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from taxbreak_vllm.model.sweep import Aim, SweepPoint, Swept
from taxbreak_vllm.output.text.names import visible
from taxbreak_vllm.output.text.table import Column, Kind, Table
from taxbreak_vllm.output.text.workload import E2E_WORDS
from taxbreak_vllm.output.words import UNKNOWN, duration

_METRICS = ("ttft", "tpot", "e2e")
_AIMS = {
    Aim.THROUGHPUT: "of each setting the greatest load that keeps the SLO",
    Aim.REPLICAS: "of each setting the fewest replicas that keep the SLO",
}


@contextmanager
def progress_bar() -> Iterator[Callable[[int, int, str], None]]:
    """Show on stderr, where that is a terminal, how far a task is and what is left."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Bar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("starting vLLM's scheduler", total=None)

        def report(done: int, total: int, doing: str) -> None:
            bar.update(task, description=visible(doing), completed=done, total=total)

        yield report


def sweep_lines(found: Swept) -> Iterator[str]:
    """Say what was asked, what was checked, and which point is best, or why there is none."""
    yield f"{found.engine}, vLLM {found.vllm}: {found.load}"
    for check in found.checks:
        yield f"  {check.name}: {'passed' if check.passed else 'FAILED'}: {check.said}"
    if found.reason is not None:
        yield f"  no answer: {found.reason}"
        return
    if found.slo:
        yield f"  {slo_words(found)}"
    if found.aim is not None:
        yield f"  {_AIMS[found.aim]}"
    yield f"  {best_words(found)}"
    for note in found.notes:
        yield f"  {note}"


def slo_words(found: Swept) -> str:
    """Say what is to be kept."""
    bounds = ", ".join(f"{name.upper()} {duration(bound * 1e9)}" for name, bound in found.slo.items())
    return f"SLO: {bounds}, of {found.attainment:.0%} of the requests"


def best_words(found: Swept) -> str:
    """Say how many points keep the SLO, and which of them has the most throughput of a replica."""
    answered = [point for point in found.points if point.predicted is not None]
    kept = [point for point in answered if point.meets_slo] if found.slo else answered
    said = f"{len(found.points):,} points, {len(found.points) - len(answered):,} of them without an answer"
    if found.slo:
        said += f"; {len(kept):,} keep the SLO"
    best = max(kept, key=lambda point: point.tokens_per_s_replica or 0.0, default=None)
    if best is None:
        return said
    each = " a replica" if best.replicas > 1 else ""
    return f"{said}; most throughput{each}: {point_words(best)}: {best.tokens_per_s_replica:,.1f} tok/s"


def point_words(point: SweepPoint) -> str:
    """Say what a point is."""
    return ", ".join([f"{name}={value}" for name, value in point.changes.items()] + [f"{point.load:g}x"])


def sweep_table(found: Swept) -> Table:
    """Return a row for each point; the last column says what ended a search, or why there is no answer."""
    names = list(dict.fromkeys(name for point in found.points for name in point.changes))
    table = Table(
        (
            *(Column(name, 9) for name in names),
            Column("load", 9),
            Column("req/s", 4),
            Column("tok/s", 8),
            *(Column(f"{metric.upper()} p90, ms", 7 if metric in found.slo else 5) for metric in _METRICS),
            Column("keep to SLO", 8),
            Column("mostly", 6, Kind.NAME),
            Column("front", 6, Kind.NAME),
            Column("", 7, Kind.PROSE),
        )
    )
    for point in found.points:
        table.add(
            *(point.changes.get(name, "as recorded") for name in names),
            f"{point.load:g}x",
            UNKNOWN if point.requests_per_s is None else f"{point.requests_per_s:,.2f}",
            UNKNOWN if point.predicted is None else f"{point.predicted.tokens_per_s:,.1f}",
            *(_p90_ms(point, metric) for metric in _METRICS),
            _attained(point),
            "" if point.bounds is None else E2E_WORDS[point.bounds.bound],
            "front" if point.is_on_front else "",
            point.reason or ("" if point.ended_by is None else f"beyond: {point.ended_by}"),
        )
    return table


def _p90_ms(point: SweepPoint, metric: str) -> str:
    spread = None if point.predicted is None else getattr(point.predicted, f"{metric}_s")
    return UNKNOWN if spread is None else f"{spread['p90'] * 1e3:,.1f}"


def _attained(point: SweepPoint) -> str:
    if point.predicted is None or point.predicted.slo_ratio is None:
        return ""
    return f"{point.predicted.slo_ratio:.1%} {'yes' if point.meets_slo else 'no'}"
