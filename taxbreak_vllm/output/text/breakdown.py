"""Breakdowns as text for people. In: the nouns of `model`. Out: rich tables; times in ms or µs, shares in percent."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from taxbreak_vllm.model.breakdown import Breakdown, Calibration, StepBreakdown
from taxbreak_vllm.output.kernel_names import kernel_name
from taxbreak_vllm.output.text.names import visible
from taxbreak_vllm.output.words import UNKNOWN, duration, ratio

if TYPE_CHECKING:
    from taxbreak_vllm.model.worker import ControlState, WorkerControl

MAX_STEPS = 40
_NAME_CHARS = 60


def step_table(breakdown: Breakdown) -> Table:
    """Show one row for each of the first steps, and the total of all."""
    rows = [(step.name or "", step) for step in breakdown.steps[:MAX_STEPS]]
    if len(breakdown.steps) != 1:
        rows.append((f"total of {len(breakdown.steps)} steps", breakdown.total))
    return _balance_table(rows)


def phase_table(breakdowns: Mapping[str, StepBreakdown]) -> Table:
    """Show the host/device balance of each titled breakdown in one row: HDBI, taxes, exposed tax, device time."""
    return _balance_table(breakdowns.items())


def _balance_table(rows: Iterable[tuple[str, StepBreakdown]]) -> Table:
    table = Table(pad_edge=False)
    table.add_column("step", overflow="fold", max_width=34)
    for title in ("phase", "window", "HDBI", "ΔFT", "ΔCT", "ΔKT", "exposed", "device", "idle", "TKLQT", "kernels"):
        table.add_column(title, justify="left" if title == "phase" else "right", no_wrap=True)
    for title, step in rows:
        table.add_row(
            Text(visible(title)),
            step.phase or UNKNOWN,
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
    return table


def top_table(step: StepBreakdown, limit: int) -> Table:
    """Show the dearest (op, kernel) pairs of a step."""
    table = Table(pad_edge=False)
    # Only the names give way on a narrow terminal: rich shrinks columns that may wrap, and these have no space.
    table.add_column("op", overflow="ellipsis")
    table.add_column("kernel", overflow="ellipsis")
    table.add_column("family", no_wrap=True)
    for title in ("count", "ΔFT", "ΔCT", "ΔKT", "device"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("tier", no_wrap=True)
    for row in step.top[:limit]:
        table.add_row(
            _name(row.op),
            _name(kernel_name(row.kernel)),
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
    parts = [source.model_name, source.dtype, source.device_name or source.device_type]
    yield " · ".join([source.path, *(part for part in parts if part)])
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


def _name(name: str) -> Text:
    return Text(visible(name.removeprefix("void "))[:_NAME_CHARS].replace(" ", "\u00a0"))


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
