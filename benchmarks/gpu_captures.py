"""What the plugin recorded of a server of `gpu_serving.py`: its captures by phase and graph mode, decomposed."""

import shutil
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from gpu_lab import conservation, figures
from gpu_servers import Server

from taxbreak_vllm.baselines.store import Baselines
from taxbreak_vllm.model.breakdown import Breakdown
from taxbreak_vllm.model.step import StepInfo
from taxbreak_vllm.model.worker import WorkerState
from taxbreak_vllm.spool.capture import Capture
from taxbreak_vllm.spool.spool import Spool
from taxbreak_vllm.taxes.analyze import analyze

MAX_TRACES = 3  # beside those of `gpu_check.py`, of which one has room then
MAX_TRACE_BYTES = 1_000_000


def spool_of(server: Server) -> Spool:
    """Return a server's spool, from which nothing is evicted by reading it."""
    return Spool(server.spool, max_bytes=2**40, max_captures=10**6)


def settled(server: Server) -> list[Capture]:
    """Return a server's captures, once the worker has stored the last of them."""
    spool, stored = spool_of(server), None
    while stored != (stored := [capture.path for capture in spool.captures()]):
        time.sleep(1.0)  # a worker says nowhere that it has no more to store
    return spool.captures()


def captures_of(server: Server, began_ns: int, ended_ns: int) -> dict[tuple[str, str], list[Capture]]:
    """Return the captures of a load, by phase and graph mode."""
    groups: dict[tuple[str, str], list[Capture]] = defaultdict(list)
    for capture in settled(server):
        info = capture.read_info()
        if began_ns <= info.started_unix_ns <= ended_ns:
            groups[str(info.phase), info.graph_mode].append(capture)
    return groups


def state_of(server: Server, *, later_than_ns: int) -> WorkerState:
    """Return what a server's worker says of itself, as of later than that."""
    until_s = time.monotonic() + 30
    while True:
        states = [state for state in spool_of(server).states() if state.updated_unix_ns > later_than_ns]
        if states:
            return states[0]
        if time.monotonic() > until_s:
            raise TimeoutError("the worker has not said anything for 30 s")
        time.sleep(0.1)


def breakdowns(work: Path, captures: Sequence[Capture]) -> list[Breakdown]:
    """Decompose captures, with what was measured of their device."""
    with Baselines(work / "baselines.sqlite3") as store:
        return [analyze(capture.path, baselines=store) for capture in captures]


def stalls_ns(infos: Sequence[StepInfo]) -> list[int]:
    """Return by how much each recorded step held up its thread: the bracket around it, and how much longer it was."""
    return [i.overhead_ns + max(0, i.window_ns - i.plain_window_ns) for i in infos if i.plain_window_ns]


def decomposed(work: Path, captures: Sequence[Capture]) -> dict[str, Any]:
    """Return medians over captures."""
    infos, found = [capture.read_info() for capture in captures], breakdowns(work, captures)
    steps = [step for breakdown in found for step in breakdown.steps]
    plain = [info.plain_window_ns for info in infos if info.plain_window_ns]
    dilation = [b.calibration.dilation for b in found if b.calibration.dilation]
    residual = [b.calibration.residual for b in found if b.calibration.residual is not None]
    return figures(steps) | {
        "captures": len(captures),
        "plain_ns": median(plain) if plain else None,
        "dilation": median(dilation) if dilation else None,
        "residual": median(residual) if residual else None,
        "bracket_ns": median(info.overhead_ns for info in infos),
        "bracket_max_ns": max(info.overhead_ns for info in infos),
        "async": sum(info.async_output for info in infos),
        # what the device still had to do when the step returned, and the bracket then waited for
        "drained_ns": median(step.device.window_ns - step.window_ns for step in steps) if steps else None,
        "other_active_ns": median(step.device.other_active_ns for step in steps) if steps else None,
        "graph_launches": median(b.coverage.graph_launches for b in found),
        "without_activity": sum(b.coverage.launches_without_activity for b in found),
        "hdbi null": sum(step.hdbi is None for step in steps),
        "guard": sum(any("left no recorded node" in note for note in b.notes) for b in found),
        "kernels_seen": sorted({step.kernels for step in steps})[:20],
        "conservation": [wrong for b in found for wrong in conservation(b)][:5],
        "notes": sorted({note for b in found for note in b.notes})[:10],
    }


def keep(out: Path, capture: Capture, name: str) -> str | None:
    """Keep a capture's trace beside the results, while there is room."""
    kept = out / f"{name.replace(', ', '-').replace(' ', '-')}.json.gz"
    if len(list(out.glob("*.json.gz"))) >= MAX_TRACES or capture.trace_path.stat().st_size > MAX_TRACE_BYTES:
        return None
    shutil.copyfile(capture.trace_path, kept)
    return kept.name
