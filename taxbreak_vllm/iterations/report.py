"""What one may know of an engine from windows of its turns: windows in, iterations phase by phase out."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from taxbreak_vllm.iterations.account import Iterations, Label, Turns
from taxbreak_vllm.iterations.rows import Column
from taxbreak_vllm.iterations.spans import Bool, Int64
from taxbreak_vllm.iterations.waits import Arrivals
from taxbreak_vllm.iterations.window import Window
from taxbreak_vllm.model.engine import Between, Durations, EnginePart, IterationReport, PhaseIterations
from taxbreak_vllm.model.errors import SpoolError
from taxbreak_vllm.model.step import PHASES, Phase


def report(windows: Sequence[Window], *, path: Path, phase: Phase | None = None) -> IterationReport:
    """Account for the iterations of one engine's windows, those of a phase alone if one is given.

    Raises SpoolError where they are of several engines, or none is of the phase.
    """
    first = windows[0]
    if any((window.server_id, window.engine) != (first.server_id, first.engine) for window in windows):
        raise SpoolError(f"{path}: its windows are of several engines; name one file at a time")
    turns = [Turns(window.rows, Arrivals.of(window.slots, _number(window.engine))) for window in windows]
    found = [each.iterations() for each in turns]
    phases = _phases(found, works_ahead=first.works_ahead)
    if phase is not None and phase not in phases:
        raise SpoolError(f"{path}: no iteration of phase {str(phase)!r} among those of {', '.join(phases) or 'none'}")
    return IterationReport(
        path=str(path),
        server_id=first.server_id,
        engine=first.engine,
        works_ahead=first.works_ahead,
        num_windows=len(windows),
        num_turns=sum(len(window.rows) for window in windows),
        num_unjoined=sum(int(each.is_unjoined.sum()) for each in turns),
        thread_cpu_ratio=_thread_cpu_ratio(windows),
        phases=phases if phase is None else {phase: phases[phase]},
    )


def _phases(found: Sequence[Iterations], *, works_ahead: bool) -> dict[Phase, PhaseIterations]:
    """Where the engine works ahead only the device tells what it waited for; where it does not, there are no parts.

    Iterations about which the device is not asked count where it is asked about none.
    """
    is_told = np.concatenate([each.is_from_device for each in found])
    is_asked = np.concatenate([each.is_asked for each in found])
    is_counted = is_told if works_ahead and is_told.any() else is_asked if is_asked.any() else ~is_asked
    index = np.concatenate([each.phase_index for each in found])
    return {
        name: _phase(found, is_own, tells_parts=not works_ahead or bool(is_told.any()))
        for place, name in enumerate(PHASES)
        if (is_own := is_counted & (index == place)).any()
    }


def _phase(found: Sequence[Iterations], is_own: Bool, *, tells_parts: bool) -> PhaseIterations:
    total_ns = np.concatenate([each.total_ns for each in found])[is_own]
    worker_ns = np.concatenate([each.worker_ns for each in found])[is_own]
    labels: tuple[Label, ...] = (*EnginePart, *Between)
    parts_ns = {label: np.concatenate([each.parts_ns[label] for each in found])[is_own] for label in labels}
    if not tells_parts:
        return PhaseIterations(num=len(total_ns), total=_durations(total_ns), worker=_durations(worker_ns))
    working_ns = int((total_ns - parts_ns[Between.NO_WORK]).sum())
    parts = {
        str(label): _durations(spent, None if label is Between.NO_WORK else working_ns)
        for label, spent in parts_ns.items()
    }
    return PhaseIterations(
        num=len(total_ns),
        total=_durations(total_ns),
        worker=_durations(worker_ns, working_ns),
        parts=parts,
        unexplained_ratio=parts[EnginePart.LOOP].share,
    )


def _durations(spent_ns: Int64, working_ns: int | None = None) -> Durations:
    median, p90 = np.quantile(spent_ns, (0.5, 0.9), method="inverted_cdf")
    return Durations(
        median_ns=int(median), p90_ns=int(p90), share=int(spent_ns.sum()) / working_ns if working_ns else None
    )


def _thread_cpu_ratio(windows: Sequence[Window]) -> float | None:
    cpu_ns = busy_ns = 0
    for rows in (window.rows for window in windows):
        cpu = rows[:, Column.THREAD_CPU]
        is_stamped = (cpu[1:] > 0) & (cpu[:-1] > 0)
        turn_ns = np.diff(rows[:, Column.END])
        for first in (Column.IDLE0, Column.WAIT0, Column.WAIT_AGAIN0):
            turn_ns -= np.maximum(rows[1:, first + 1] - rows[1:, first], 0)
        cpu_ns += int(np.diff(cpu)[is_stamped].sum())
        busy_ns += int(turn_ns[is_stamped].sum())
    return min(1.0, cpu_ns / busy_ns) if busy_ns > 0 else None


def _number(engine: str) -> int:
    return int(engine) if engine.isdecimal() else 0
