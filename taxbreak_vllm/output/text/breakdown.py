"""Breakdowns as text for people. In: the nouns of `model`. Out: lines and tables; times in ms or µs."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from taxbreak_vllm.model.breakdown import Breakdown, Calibration, StepBreakdown
from taxbreak_vllm.output.kernel_names import kernel_name
from taxbreak_vllm.output.text.headline import step_sentence
from taxbreak_vllm.output.text.table import Column, Kind, Table
from taxbreak_vllm.output.words import duration, ratio

if TYPE_CHECKING:
    from taxbreak_vllm.model.worker import ControlState, WorkerControl

MAX_STEPS = 40

_BALANCE = (
    Column("step", 10, Kind.NAME),
    Column("phase", 9),
    Column("window", 8),
    Column("HDBI", 10),
    Column("ΔFT", 7),
    Column("ΔCT", 4),
    Column("ΔKT", 3),
    Column("exposed", 5),
    Column("device", 6),
    Column("idle", 2),
    Column("TKLQT", 0),
    Column("kernels", 1),
)
_MEANINGS = {
    "window": "from the start of the step on the host to its end there",
    "HDBI": "device ÷ (device + ΔFT + ΔCT + ΔKT); near 0 is host-bound",
    "ΔFT": "host work in Python and in dispatching ops",
    "ΔCT": "host work in vendor libraries, choosing kernels",
    "ΔKT": "launches, each at the least that one takes",
    "exposed": "the device was idle and waited for the host",
    "device": "the device worked",
    "idle": "the device did not work, for whatever reason",
    "TKLQT": "from launch call to start of kernel, summed, queueing too",
    "kernels": "ran on the device",
}


def shown_step(breakdown: Breakdown) -> StepBreakdown:
    """Return the one step, else all together."""
    return breakdown.steps[0] if len(breakdown.steps) == 1 else breakdown.total


def balance_table(breakdown: Breakdown) -> Table:
    """Show the host/device balance of the one step, else of all together, a figure a row with what it means."""
    step, title = shown_step(breakdown), f"all {len(breakdown.steps)} steps" if breakdown.steps else "the whole trace"
    if len(breakdown.steps) == 1:
        name = "the whole trace" if step.name == "trace" else step.name or "the step"
        title = f"{name}, {step.phase}" if step.phase else name
    table = Table((Column("", 1, Kind.NAME), Column("", 1), Column("", 0, Kind.PROSE)), title=title)
    for column, cell in zip(_BALANCE, _balance("", step), strict=True):
        if column.title in _MEANINGS:
            table.add(column.title, cell, _MEANINGS[column.title])
    return table


def step_table(breakdown: Breakdown) -> Table:
    """Show the host/device balance of the first steps, one a row."""
    rows = [(step.name or str(number), step) for number, step in enumerate(breakdown.steps[:MAX_STEPS])]
    more = len(breakdown.steps) - MAX_STEPS
    return _steps(rows, f"the first {MAX_STEPS} steps of {len(breakdown.steps)}" if more > 0 else "steps")


def phase_table(breakdowns: Mapping[str, StepBreakdown]) -> Table:
    """Show the host/device balance of each titled breakdown in one row: HDBI, taxes, exposed tax, device time."""
    return _steps(breakdowns.items(), "")


def _steps(rows: Iterable[tuple[str, StepBreakdown]], title: str) -> Table:
    table = Table(_BALANCE, title=title)
    for name, step in rows:
        table.add(*_balance(name, step))
    return table


def _balance(name: str, step: StepBreakdown) -> tuple[str, ...]:
    return (
        name,
        step.phase or "",
        duration(step.window_ns),
        ratio(step.hdbi),
        duration(step.taxes.delta_ft_ns),
        duration(step.taxes.delta_ct_ns),
        duration(step.taxes.delta_kt_ns),
        duration(step.device.idle.host_ns),
        duration(step.device.active_ns),
        duration(step.device.idle_ns),
        duration(step.tklqt_ns),
        str(step.kernels),
    )


def top_table(step: StepBreakdown, limit: int) -> Table:
    """Show the dearest (op, kernel) pairs of a step."""
    table = Table(
        (
            Column("op", 6, Kind.NAME),
            Column("kernel", 8, Kind.NAME),
            Column("family", 3, Kind.NAME),
            Column("count", 5),
            Column("ΔFT", 7),
            Column("ΔCT", 4),
            Column("ΔKT", 2),
            Column("device", 8),
            Column("tier", 1, Kind.NAME),
        ),
        title="dearest ops and kernels",
    )
    for row in step.top[:limit]:
        table.add(
            row.op,
            kernel_name(row.kernel),
            row.family + (" (lib)" if row.i_lib else ""),
            str(row.count),
            duration(row.delta_ft_ns),
            duration(row.delta_ct_ns),
            duration(row.delta_kt_ns),
            duration(row.active_ns),
            row.tier,
        )
    return table


def summary_lines(breakdown: Breakdown) -> Iterable[str]:
    """Say where the figures come from, how complete they are, and what stands on an estimate."""
    source, coverage = breakdown.source, breakdown.coverage
    yield source.path
    yield ", ".join(
        part for part in (source.device_name or source.device_type, source.model_name, source.dtype) if part
    )
    sentence = step_sentence(shown_step(breakdown))
    if sentence is not None:
        yield sentence
    if coverage.kernel_launches and source.device_type != "cpu":
        yield (
            f"{coverage.kernels} kernels, {coverage.linked} linked to {coverage.kernel_launches} launches "
            f"({coverage.graph_launches} graphs), {coverage.unlinked} without a launch event; "
            f"{coverage.events} events read, {coverage.dropped_events} unreadable"
        )
    yield _calibration(breakdown.calibration)
    notes = [*breakdown.notes, *(note for step in breakdown.steps for note in step.notes)]
    yield from (f"note: {note}" for note in dict.fromkeys(notes))


def _calibration(calibration: Calibration) -> str:
    grade = f" ({calibration.grade})" if calibration.grade is not None else ""
    parts = [f"calibration: {calibration.state}{grade}"]
    if calibration.dilation is not None:
        parts.append(f"recording made this step {calibration.dilation:.2f}× as long as a plain one")
    if calibration.residual is not None:
        known = f" after {calibration.op_cost_ns} ns an op" if calibration.op_cost_ns is not None else ""
        parts.append(f"{calibration.residual:+.1%} unexplained{known}")
    return "; ".join(parts)


def control_lines(state: "ControlState") -> list[str]:
    """Say in one line a worker how it records, and below what one should know of that."""
    lines = []
    for worker in state.workers:
        lines.append(f"{state.server_id}: engine {worker.engine} rank {worker.rank}: {_recording(worker)}")
        lines += [f"  {note}" for note in worker.notes]
    return lines


def _recording(worker: "WorkerControl") -> str:
    if not worker.enabled:
        return f"recording is off ({worker.off_reason or 'unknown'})"
    slowed = f", slowed down {worker.slowdown} times to keep to it" if worker.slowdown > 1 else ""
    ratio = worker.overhead_budget_ratio
    budget = "" if ratio is None else f" within {ratio * 100:g} % of the time"
    return f"recording one step in {worker.sample_every} of each kind{budget}{slowed}"
