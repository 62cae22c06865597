"""The Kineto trace of a run, or of any bracket of it, as torch's profiler writes one.

In: a `Run`. Out: a `Trace`, the records that a profiler would have got, and its text. What a profiler loses is taken
out of a `Trace` by `loss`.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path

from rig.program import MAIN, Server
from rig.records import STEP, Activity, Run, Span, Sync
from rig.truth import Figures, iteration
from taxbreak_vllm.model.step import Batch, GraphMode, Phase, StepInfo
from taxbreak_vllm.model.step import Server as Labels

DEVICE = "NVIDIA H100 80GB HBM3"
NEIGHBOUR = "taxbreak.neighbour:"
_ORIGIN_NS = 7_431_902_118_000  # of the run on the trace's clock
_CATEGORY = {"op": "cpu_op", "call": "cuda_runtime", "step": "user_annotation", "engine": "user_annotation"}


@dataclass(frozen=True, slots=True)
class Trace:
    """The records of host and device, in the order in which they came about; of waits where it was asked for them."""

    spans: tuple[Span, ...]
    activities: tuple[Activity, ...]
    syncs: tuple[Sync, ...] = ()


def whole(run: Run, *, with_syncs: bool = False) -> Trace:
    """Return what a profiler sees that was on before the first step and until everything had ended."""
    return Trace(run.spans, run.activities, run.syncs if with_syncs else ())


def bracket(
    run: Run, first: int, last: int, *, is_drained: bool = True, is_whole: bool = True, with_syncs: bool = False
) -> Trace:
    """Return what a profiler sees that is on from the start of step `first` to the end of step `last`.

    It has what the host begins in it, and the device's part of what was launched in it: of work launched before there
    is no record, though it may still run. Stopping waits for the device, a call that is seen too; without that
    (`is_drained`) there is no record of what still ran at the stop. If the last step is not `is_whole`, the profiler
    stops when that has begun.
    """
    start_ns, stop_ns = run.windows[first][0], run.windows[last][is_whole]
    spans = [span for span in run.spans if start_ns <= span.start_ns < stop_ns]
    if not is_whole:
        spans.append(Span("step", f"{STEP}{last}", stop_ns, stop_ns))
    launched = [a for a in run.activities if start_ns <= a.launch_ns < stop_ns]
    if not is_drained:
        return Trace(tuple(spans), tuple(a for a in launched if a.end_ns <= stop_ns))
    busy_until = max((a.end_ns for a in run.activities if a.launch_ns < stop_ns), default=stop_ns)
    done_ns = max(stop_ns + run.server.wait_call_ns, busy_until + run.server.return_ns)
    correlation = max(span.correlation for span in run.spans) + 1
    spans.append(Span("call", "cudaDeviceSynchronize", stop_ns, done_ns, correlation=correlation))
    return Trace(tuple(spans), tuple(launched), _told(run, start_ns, stop_ns) if with_syncs else ())


def _told(run: Run, start_ns: int, stop_ns: int) -> tuple[Sync, ...]:
    """Return the records of waits begun in a bracket; of events recorded before it nothing is known."""
    seen = {span.correlation for span in run.spans if start_ns <= span.start_ns < stop_ns}
    begun = (sync for sync in run.syncs if start_ns <= sync.start_ns < stop_ns)
    return tuple(sync if sync.record in seen else replace(sync, record=-1, record_stream=-1) for sync in begun)


def middle_of_three(
    run: Run, middle: int, *, is_drained: bool = True, is_whole: bool = True, with_syncs: bool = False
) -> tuple[Trace, Figures]:
    """Return the bracket of the three steps around step `middle`, and what was true of that one's iteration.

    As the recorder does it, the other two are called neighbours.
    """
    trace = bracket(run, middle - 1, middle + 1, is_drained=is_drained, is_whole=is_whole, with_syncs=with_syncs)
    names = {f"{STEP}{middle - 1}": NEIGHBOUR + "before", f"{STEP}{middle + 1}": NEIGHBOUR + "after"}
    spans = (replace(span, name=names[span.name]) if span.name in names else span for span in trace.spans)
    return replace(trace, spans=tuple(spans)), iteration(run, middle)


def sample_info(server: Server, batch: Batch | None = None) -> StepInfo:
    """Return what a worker says of a sample: of a server that works ahead, that its outputs came later."""
    return StepInfo(
        step_id="sample",
        step_index=1,
        server=Labels(server_id="rig", device_type="cuda"),
        phase=Phase.DECODE,
        batch=batch or Batch(),
        graph_mode=GraphMode.NONE,
        started_unix_ns=0,
        window_ns=1,
        async_output=server.steps_ahead > 0,
    )


def write(trace: Trace, path: Path) -> Path:
    """Write a trace where it can be read; returns the path."""
    path.write_text(to_json(trace))
    return path


def to_json(trace: Trace) -> str:
    """Write a trace as Kineto does, its times as decimal µs."""
    events = [_host_event(span) for span in trace.spans] + [_device_event(a) for a in trace.activities]
    events += [_sync_event(sync) for sync in trace.syncs]
    head = {
        "schemaVersion": 1,
        "deviceProperties": [{"id": 0, "name": DEVICE, "totalGlobalMem": 84_929_347_584, "numSms": 132}],
        "cupti_version": 130101,
        "cuda_runtime_version": 13000,
        "cuda_driver_version": 13000,
        "displayTimeUnit": "ms",
        "baseTimeNanoseconds": 1_795_000_000_000_000_000,
    }
    return json.dumps(head)[:-1] + ', "traceEvents": [\n' + ",\n".join(events) + '\n], "traceName": "rig.json"}\n'


def _host_event(span: Span) -> str:
    if span.kind == "call":
        external = f'"External id": {span.external}, ' if span.external >= 0 else ""
        args = f'{external}"cbid": 211, "correlation": {span.correlation}'
    elif span.kind == "op":
        args = f'"External id": {span.external}'
    else:
        args = ""
    return _event(_CATEGORY[span.kind], span.name, MAIN, span.thread, span.start_ns, span.end_ns, args)


def _device_event(activity: Activity) -> str:
    category = "kernel" if activity.is_kernel else "gpu_memcpy"
    external = f'"External id": {activity.external}, ' if activity.external >= 0 else ""
    graph = f', "graph id": {activity.graph_id}, "graph node id": {activity.node}' if activity.graph_id else ""
    args = (
        f'{external}"device": 0, "context": 1, "stream": {activity.stream}, '
        f'"correlation": {activity.correlation}{graph}'
    )
    return _event(category, activity.name, 0, activity.stream, activity.start_ns, activity.end_ns, args)


def _sync_event(sync: Sync) -> str:
    event = (
        f'"wait_on_stream": {sync.record_stream}, "wait_on_cuda_event_record_corr_id": {sync.record}, '
        '"wait_on_cuda_event_id": 1, '
    )
    args = (
        f'"cuda_sync_kind": "{sync.name}", {event if "Event" in sync.name else ""}"stream": {sync.stream}, '
        f'"correlation": {sync.correlation}, "device": 0, "context": 1'
    )
    return _event("cuda_sync", sync.name, 0, sync.stream, sync.start_ns, sync.end_ns, args)


def _event(category: str, name: str, pid: int, tid: int, start_ns: int, end_ns: int, args: str) -> str:
    return (
        f'{{"ph": "X", "cat": "{category}", "name": "{name}", "pid": {pid}, "tid": {tid}, '
        f'"ts": {_us(start_ns + _ORIGIN_NS)}, "dur": {_us(end_ns - start_ns)}, "args": {{{args}}}}}'
    )


def _us(ns: int) -> str:
    return f"{ns // 1000}.{ns % 1000:03d}"
