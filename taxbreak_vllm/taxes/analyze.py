"""From a path to a Breakdown: the one entry for the command line, the sidecar and Python users."""

import dataclasses
from pathlib import Path

from taxbreak_vllm.baselines.store import Baselines
from taxbreak_vllm.model.breakdown import Attribution, Breakdown, Calibration, Source, StepBreakdown
from taxbreak_vllm.model.errors import TraceFormatError
from taxbreak_vllm.model.step import Phase, StepInfo
from taxbreak_vllm.spool.capture import Capture
from taxbreak_vllm.spool.layout import STEP
from taxbreak_vllm.taxes.decompose import Replayed, decompose
from taxbreak_vllm.taxes.recording import told
from taxbreak_vllm.trace.kernels import KernelRules
from taxbreak_vllm.trace.large.spill import open_trace
from taxbreak_vllm.trace.read.calls import read_calls
from taxbreak_vllm.trace.read.kineto import EventKind, Events, read_events

MIN_PLAIN_STEPS = 8  # fewer plain steps of a bucket are no median to compare with


def analyze(
    path: str | Path,
    *,
    floor_ns: int | None = None,
    rules: KernelRules | None = None,
    attribution: Attribution = Attribution.EXCLUSIVE,
    phase: Phase | None = None,
    step: str | None = None,
    baselines: Baselines | None = None,
) -> Breakdown:
    """Decompose a recorded trace (.json, .json.gz, .json.zst) or a capture (its folder).

    `floor_ns` is a measured T_sys in ns; without it the trace's own quickest launches stand for it. `phase` and `step`
    (a name or, from 0 on, a number) choose the steps to show; total and estimates stay those of the whole trace.
    `baselines` holds what `taxbreak replay` and `taxbreak floor` measured where the trace was made.
    Raises TraceFormatError for a file that is missing, damaged, not a trace or without such a step, SpoolError for a
    capture without its StepInfo.
    """
    path = Path(path)
    rules = rules or KernelRules.load()
    if (path / STEP).is_file():
        breakdown = analyze_capture(
            Capture(path), floor_ns=floor_ns, rules=rules, attribution=attribution, baselines=baselines
        )
    else:
        with open_trace(path) as trace:
            if baselines is not None and not isinstance(trace, Events):
                trace = trace.load()  # calls are joined by the order of all ops
            replayed, notes = _replayed(trace.head, None, baselines) if baselines else (None, ())
            breakdown = decompose(
                trace,
                source=_source(trace.head),
                rules=rules,
                floor_ns=floor_ns,
                attribution=attribution,
                replayed=replayed,
            )
        breakdown = dataclasses.replace(breakdown, notes=(*breakdown.notes, *notes))
    return breakdown if phase is None and step is None else _choose(breakdown, phase, step)


def analyze_capture(
    capture: Capture,
    *,
    floor_ns: int | None = None,
    rules: KernelRules | None = None,
    attribution: Attribution = Attribution.EXCLUSIVE,
    baselines: Baselines | None = None,
) -> Breakdown:
    """Decompose one capture of the spool; its StepInfo gives phase, batch, labels and the plain step time."""
    info = capture.read_info()
    events = read_events(capture.trace_path)
    server = info.server
    source = dataclasses.replace(
        _source(events),
        path=str(capture.path),
        capture_id=info.capture_id,
        device_name=server.device_name or events.device_name,
        torch=server.torch,
        vllm=server.vllm,
        model_name=server.model_name,
        dtype=server.dtype,
        server_id=server.server_id,
        engine=server.engine,
        rank=server.rank,
        device_type=server.device_type,
    )
    replayed, notes = _replayed(events, info, baselines)
    breakdown = decompose(
        events,
        source=source,
        rules=rules or KernelRules.load(),
        floor_ns=floor_ns,
        attribution=attribution,
        op_cost_ns=(info.op_cost_ns or 0) if _is_calibrated(info) else 0,
        replayed=replayed,
    )
    return dataclasses.replace(
        breakdown,
        steps=tuple(_labelled(step, info) for step in breakdown.steps),
        total=_labelled(breakdown.total, info),
        calibration=_calibration(info, len(events.rows(EventKind.OP))),
        notes=(*breakdown.notes, *notes),
    )


def _replayed(
    events: Events, info: StepInfo | None, baselines: Baselines | None
) -> tuple[Replayed | None, tuple[str, ...]]:
    """Find the baselines that hold for a trace, and say what was found."""
    if baselines is None:
        return None, ()
    here = told(events, info)
    view = baselines.view(here)
    if view is None:
        place = ", ".join(f"{name} {value!r}" for name, value in here.items() if value)
        return None, (f"{baselines.path.name} holds no baselines of one place with {place}: none used",)
    env = view.environment
    place = ", ".join(
        part for part in (env.device_name, f"torch {env.torch}", env.driver and f"driver {env.driver}") if part
    )
    return Replayed(read_calls(events.path), view), (f"baselines replayed on {place}",)


def _choose(breakdown: Breakdown, phase: Phase | None, name: str | None) -> Breakdown:
    steps = [
        step
        for number, step in enumerate(breakdown.steps)
        if (phase is None or step.phase == phase) and (name is None or name in (step.name, str(number)))
    ]
    if not steps:
        wanted = " ".join(str(part) for part in (phase, name) if part is not None)
        raise TraceFormatError(f"{breakdown.source.path}: no step {wanted!r} among its {len(breakdown.steps)}")
    return dataclasses.replace(breakdown, steps=tuple(steps))


def _source(events: Events) -> Source:
    version = events.metadata.get("vllm_version")
    return Source(path=events.path, device_name=events.device_name, vllm=version if isinstance(version, str) else "")


def _labelled(step: StepBreakdown, info: StepInfo) -> StepBreakdown:
    tokens = info.batch.output_tokens
    return dataclasses.replace(
        step,
        phase=info.phase,
        graph_mode=info.graph_mode,
        batch=info.batch,
        kernels_per_output_token=step.kernels / tokens if tokens else None,
    )


def _is_calibrated(info: StepInfo) -> bool:
    return info.op_cost_ns is not None and bool(info.plain_window_ns) and info.num_plain >= MIN_PLAIN_STEPS


def _calibration(info: StepInfo, num_ops: int) -> Calibration:
    if not info.plain_window_ns:
        return Calibration(op_cost_ns=info.op_cost_ns)
    dilation = info.window_ns / info.plain_window_ns
    if info.op_cost_ns is None or not _is_calibrated(info):
        return Calibration(dilation=dilation, op_cost_ns=info.op_cost_ns)
    residual = (info.window_ns - num_ops * info.op_cost_ns) / info.plain_window_ns - 1
    return Calibration(dilation=dilation, op_cost_ns=info.op_cost_ns, residual=residual, state="calibrated")
