"""What a change makes of a worker's steps: the captures beside a server's traffic in, what `whatif` says of them out.

A step's `device` part is all that its worker takes, the host's work in it too. How much of that another host, or one
graph of the launches, would change is told by recorded steps of its kind.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from taxbreak_vllm.model.errors import TaxbreakError, WorkloadError
from taxbreak_vllm.model.step import Phase
from taxbreak_vllm.spool.capture import Capture
from taxbreak_vllm.spool.layout import STEP
from taxbreak_vllm.taxes.recording import Recording
from taxbreak_vllm.taxes.terms import Terms
from taxbreak_vllm.whatif.asked import Asked, asked
from taxbreak_vllm.workload.recording import traffic_dirs
from taxbreak_vllm.workload.task import DECODE, PREFILL, Change, Worker, WorkerStep

if TYPE_CHECKING:  # it opens SQLite
    from taxbreak_vllm.baselines.store import Baselines

_KINDS = {Phase.DECODE: DECODE, Phase.PREFILL: PREFILL, Phase.MIXED: PREFILL}
_NUM_ASKED = 3  # captures of a kind, the newest


def with_worker(change: Change, path: Path, *, baselines: "Baselines | None" = None) -> Change:
    """Return a change with what it makes of a worker's steps; raises as `worker_told` does."""
    if change.host == 1.0 and change.graph is None:
        return change
    told = worker_told(path, host=change.host, graph=change.graph, baselines=baselines)
    return msgspec.structs.replace(change, worker=told)


def worker_told(
    path: Path, *, host: float = 1.0, graph: str | None = None, baselines: "Baselines | None" = None
) -> Worker:
    """Ask the newest captures of each kind of the server whose traffic is at a path.

    Raises WorkloadError where a graph is asked for that no decode step tells of, SettingsError for one that is none.
    """
    change = asked(host=[] if host == 1 else [f"{host:.6f}"], graph=graph)
    if change.beyond is not None:
        raise WorkloadError(change.beyond)
    steps: list[WorkerStep] = []
    unknown = {kind: f"no capture of a {kind} step is beside the traffic" for kind in (DECODE, PREFILL)}
    for kind, capture in _newest(path):
        try:
            steps.append(_told(capture, kind, change, Terms(baselines=baselines)))
        except TaxbreakError as error:
            unknown[kind] = str(error)
    unknown = {kind: reason for kind, reason in unknown.items() if kind not in {step.kind for step in steps}}
    if graph is not None and DECODE in unknown:
        raise WorkloadError(f"--graph {graph}: {unknown[DECODE].removeprefix('--graph: ')}")
    return Worker(steps=tuple(steps), unknown=unknown)


def _newest(path: Path) -> Iterator[tuple[str, Capture]]:
    """Yield the captures of the first rank beside the traffic, the newest first, some of each kind."""
    left = dict.fromkeys((DECODE, PREFILL), _NUM_ASKED)
    folders = traffic_dirs(path)
    found = [*folders[-1].parent.glob(f"0/*/{STEP}")] if folders else []
    for step in sorted(found, key=lambda each: each.stat().st_mtime_ns, reverse=True):
        capture = Capture(step.parent)
        kind = _KINDS.get(capture.read_info().phase)
        if kind is not None and left[kind]:
            left[kind] -= 1
            yield kind, capture


def _told(capture: Capture, kind: str, change: Asked, terms: Terms) -> WorkerStep:
    """Ask one capture; raises TaxbreakError where it does not tell of plain steps."""
    with Recording.open(capture.path, terms) as recording:
        answer = change.of(recording)
        info, has_launches = recording.info, recording.backend.has_launches
    step = answer.steps[0] if answer.steps else None
    if (
        info is None
        or step is None
        or step.plain_ns is None
        or step.plain_predicted_ns is None
        or step.plain_low_ns is None
        or step.plain_high_ns is None
    ):
        raise WorkloadError(answer.refused or answer.no_plain or f"{capture.path}: its plain step is not known")
    return WorkerStep(
        kind=kind,
        is_iteration=info.async_output or not has_launches,
        plain_ns=step.plain_ns,
        predicted_ns=step.plain_predicted_ns,
        low_ns=step.plain_low_ns,
        high_ns=step.plain_high_ns,
    )
