"""An engine's iterations as text for people. In: `IterationReport`. Out: lines and tables; times in ms or µs."""

from collections.abc import Iterable

from taxbreak_vllm.model.engine import Durations, IterationReport, PhaseIterations
from taxbreak_vllm.model.step import Phase
from taxbreak_vllm.output.text.table import Column, Kind, Table
from taxbreak_vllm.output.words import UNKNOWN, duration, percent


def iteration_lines(report: IterationReport) -> Iterable[str]:
    """Say what was read, and what is missing."""
    yield report.path
    windows = "1 window" if report.num_windows == 1 else f"{report.num_windows} windows"
    yield f"server {report.server_id}, engine {report.engine}: {report.num_turns} turns of its loop in {windows}"
    if report.thread_cpu_ratio is not None and report.thread_cpu_ratio < 1:
        yield f"its thread had a CPU for at most {percent(report.thread_cpu_ratio)} of the time it waited for nothing"
    if report.num_unjoined:
        yield f"note: of {report.num_unjoined} steps no worker's times came back; no iteration spans one"
    if not report.phases:
        yield "note: no two consecutive steps are in it"
    elif not any(phase.parts for phase in report.phases.values()):
        yield "note: the engine works a step ahead, and its device does not tell what it waited for"


def iteration_tables(report: IterationReport) -> Iterable[Table]:
    """Show for each phase what its iterations went to, in their order."""
    for phase, found in report.phases.items():
        yield _phase_table(phase, found)


def _phase_table(phase: Phase, found: PhaseIterations) -> Table:
    table = Table(
        (Column("part", 3, Kind.NAME), Column("median", 3), Column("p90", 1), Column("share", 2)),
        title=f"{phase}: {found.num} iterations, {percent(found.unexplained_ratio)} unexplained",
    )
    table.add("whole", *_cells(found.total))
    table.add("worker", *_cells(found.worker))
    for name, durations in found.parts.items():
        table.add(name, *_cells(durations))
    return table


def _cells(durations: Durations) -> tuple[str, str, str]:
    share = UNKNOWN if durations.share is None else percent(durations.share)
    return duration(durations.median_ns), duration(durations.p90_ns), share
