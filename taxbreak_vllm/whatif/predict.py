"""What a recording says of a change: gates, then the steps' times with an interval and bounds, or a refusal.

The point is the calibrated replay. The interval holds the replay with constants alone too, both with and without the
waits that the recording neither shows nor excludes, at both ends of each factor's range; the spread of the steps and
what the graph gets wrong of the recording widen it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TypeVar

from taxbreak_vllm.model.errors import TraceFormatError
from taxbreak_vllm.model.whatif import Gate, Prediction, Replayed, WhatIf
from taxbreak_vllm.taxes.recording import MIN_PLAIN_STEPS, Recording
from taxbreak_vllm.trace.intervals import median
from taxbreak_vllm.trace.kernels import Family
from taxbreak_vllm.trace.timeline import HostClass
from taxbreak_vllm.whatif import changes, launches, on_host
from taxbreak_vllm.whatif.build import Model
from taxbreak_vllm.whatif.changes import Change, Range, RefusedError
from taxbreak_vllm.whatif.compiled import compile_forward
from taxbreak_vllm.whatif.gates import TRANSLATION
from taxbreak_vllm.whatif.graph import Graph
from taxbreak_vllm.whatif.plain import lightened
from taxbreak_vllm.whatif.replay import replay
from taxbreak_vllm.whatif.replays import Replays
from taxbreak_vllm.whatif.spans import is_unsettled, mean, means, spread, step_spans
from taxbreak_vllm.whatif.strips import replayed

End = Callable[[Range], float]
_K = TypeVar("_K", HostClass, Family)


def predict(
    recording: Recording,
    change: Change,
    *,
    named: str,
    replays: Replays | None = None,
    is_drawn: bool = False,
) -> WhatIf:
    """Predict the steps of a recording under a change, which is `named` as it was asked for.

    `replays` are those of the recording, where something was asked of it before; `is_drawn` adds the timeline.
    Raises TraceFormatError where there is nothing to replay, SettingsError where the change names what is not there.
    """
    if not recording.backend.has_launches and (reason := on_host.beyond(change)):
        return refuse(recording, named, reason)
    measured = recording.measured
    if not len(measured.activities.row) or not len(measured.host.call_row):
        raise TraceFormatError(f"{recording.path}: no calls with work on a device, so there is nothing to replay")
    floors = recording.view.floors if recording.view else None
    points = floors.graph_points() if floors else ()
    if change.full_graph and len(points) < 2:
        return refuse(
            recording,
            named,
            "--graph full: what a graph launch costs is read from no profiled one, whose nodes the profiler slows;"
            " measure it where this was recorded (taxbreak floor) and give --baselines",
        )
    change = replace(change, graph_ns=points)
    replays = replays or Replays(recording)
    model, gates = replays.model, replays.gates
    if reason := _stops(gates, model, change):
        return refuse(recording, named, reason, gates)
    try:
        window, steps, notes = _predictions(recording, replays, change, replays.error)
    except RefusedError as refusal:
        return refuse(recording, named, str(refusal), gates)
    shown, no_plain = steps[0] if len(steps) == 1 else window, None
    try:
        steps = _with_plain(recording, replays, change, replays.error, steps)
    except RefusedError as refusal:
        no_plain = str(refusal)
    return WhatIf(
        path=recording.path,
        change=named,
        gates=gates,
        window=window,
        steps=steps,
        refuted_by=(
            f"recorded with {named}, the same steps take less than {shown.low_ns / 1e6:.3f} or more than"
            f" {shown.high_ns / 1e6:.3f} ms"
        ),
        command=f"taxbreak diff {recording.path} AFTER",
        dilation=recording.breakdown.calibration.dilation if recording.info else None,
        no_plain=no_plain,
        notes=tuple(notes),
        timeline=_drawn(replays, change) if is_drawn else None,
    )


def _drawn(replays: Replays, change: Change) -> Replayed:
    middle = apply(replays.calibrated, replays.model, change, _middle)
    return replayed(replays.model, replays.calibrated, middle, replay(middle))


def refuse(recording: Recording, named: str, reason: str, gates: tuple[Gate, ...] = ()) -> WhatIf:
    """Say why nothing is predicted."""
    return WhatIf(path=recording.path, change=named, gates=gates, refused=reason)


def _stops(gates: Iterable[Gate], model: Model, change: Change) -> str | None:
    """Return why nothing can be said; None where something can.

    Work from before the recording holds the device until a known time: a change of kernels alone can be told all the
    same.
    """
    failed = [gate for gate in gates if not gate.passes]
    if [gate.name for gate in failed] == [TRANSLATION] and change.is_device_only and model.graph.is_pinned.any():
        return None
    if not failed:
        return None
    return "; ".join(
        f"{gate.name} is {gate.value:.1%}, {'at least' if gate.is_least else 'at most'} {gate.limit:.0%} passes"
        for gate in failed
    )


def apply(graph: Graph, model: Model, change: Change, end: End) -> Graph:
    """Return a graph with everything changed; of each range the value that `end` picks."""
    sources = model.sources
    for chain in change.fused:
        graph = launches.fuse(graph, sources, chain)
    if change.full_graph:
        own_ns = launches.node_gap_ns(sources)
        gap_ns = own_ns if own_ns is not None else int(end(Range(low=0, high=_usual_gap_ns(model))))
        graph = launches.capture(graph, sources, change.graph_ns, gap_ns=gap_ns)
    for name in change.no_sync:
        graph = changes.without_sync(graph, sources, name)
    if change.one_step_ahead:
        graph = changes.one_step_ahead(graph, sources)
    if change.floor_ns is not None:
        graph = changes.change_floor(graph, sources, change.floor_ns)
    if change.compiled is not None:
        graph = compile_forward(graph, sources, change.compiled, end)
    if change.like is not None:
        graph = changes.take_times(graph, change.like, end)
    if change.kernels:
        graph = changes.scale_kernels(graph, sources, _picked(change.kernels, end))
    return changes.scale_host(graph, _picked(change.host, end)) if change.host else graph


def _picked(ranges: Mapping[_K, Range], end: End) -> dict[_K, float]:
    return {key: end(factor) for key, factor in ranges.items()}


def _usual_gap_ns(model: Model) -> int:
    return max(median(model.sources.constants.gap_ns) or 0, 0)


def _predictions(
    recording: Recording, replays: Replays, change: Change, error: float
) -> tuple[Prediction, tuple[Prediction, ...], list[str]]:
    model, calibrated, graph = replays.model, replays.calibrated, replays.model.graph
    rows = step_spans(recording, model)
    observed = [mean(calibrated, graph.at_ns, spans) for _, spans in rows]
    middle = apply(calibrated, model, change, _middle)
    at_ns = replay(middle)
    point = [mean(middle, at_ns, spans) for _, spans in rows]
    if recording.is_live and is_unsettled(model, middle, at_ns):
        raise RefusedError(
            "host and device of so few steps would not keep in step with this change: how a server settles, one"
            " recorded step does not tell"
        )
    found = [point]
    for variant, before in replays.variants:
        base = [mean(variant, before, spans) for _, spans in rows]
        for changed in _at_both_ends(variant, model, change):
            found.append([o + c - b for o, c, b in zip(observed, means(changed, rows), base, strict=True)])
    host_free, kernels_free = ([mean(*free, spans) for _, spans in rows] for free in replays.bounds)
    peers = sum(gate.value for gate in replays.gates if gate.name == "peers")  # who may wait for nobody any more
    predictions = [
        Prediction(
            phase=phase,
            steps=len(spans[0]),
            observed_ns=round(observed[i]),
            predicted_ns=round(point[i]),
            low_ns=max(round(min(each[i] for each in found) - wide - peers * observed[i]), 0),
            high_ns=round(max(each[i] for each in found) + wide),
            host_free_ns=round(host_free[i]),
            kernels_free_ns=round(kernels_free[i]),
        )
        for i, (phase, spans) in enumerate(rows)
        for wide in (spread(graph, spans) + error * observed[i],)
    ]
    return predictions[0], tuple(predictions[1:]), list(_notes(model, change))


def _with_plain(
    recording: Recording, replays: Replays, change: Change, error: float, steps: tuple[Prediction, ...]
) -> tuple[Prediction]:
    """Predict the plain step too: the same change to the graph without what the profiler added, whichever way it did.

    Raises RefusedError where no plain step is known.
    """
    model, calibrated, info = replays.model, replays.calibrated, recording.info
    points, node = model.sources.points, model.graph.point_node
    if info is None or len(points.step_start) != 1 or len(steps) != 1:
        raise RefusedError("only a recording that a server made of one step tells how long plain ones take")
    is_iteration = info.async_output or not recording.backend.has_launches
    is_iteration &= info.iteration_ns is not None and bool(info.plain_iteration_ns)
    plain_ns = info.plain_iteration_ns if is_iteration else info.plain_window_ns
    if not plain_ns or info.num_plain < MIN_PLAIN_STEPS:
        raise RefusedError(f"fewer than {MIN_PLAIN_STEPS} plain steps like this one had been timed")
    if is_iteration and points.next_step[0] < 0:
        raise RefusedError("the start of the step after was not recorded, so its iteration is not known")
    first, last = node[points.step_start[0]], node[points.next_step[0] if is_iteration else points.step_end[0]]

    def took(graph: Graph) -> float:
        at_ns = replay(graph)
        return float(at_ns[last] - at_ns[first])

    ways = lightened(calibrated, model.sources, took, plain_ns=plain_ns, op_cost_ns=info.op_cost_ns)
    if not recording.backend.has_launches:
        ways = ways[::-1]  # a forward's share of a plain step on the CPU is that of a host slowed alike
    known, base = ways[0], took(ways[0](calibrated))
    point = plain_ns + took(apply(known(calibrated), model, change, _middle)) - base
    variants = [(way(calibrated), took(way(calibrated))) for way in ways]
    for graph, before in replays.variants[1:]:
        is_as_observed = before is model.graph.at_ns
        variants.append((known(graph), base if is_as_observed else took(known(graph))))
    found = [plain_ns + took(e) - b for each, b in variants for e in _at_both_ends(each, model, change)]
    return (
        replace(
            steps[0],
            plain_ns=plain_ns,
            plain_predicted_ns=round(point),
            plain_low_ns=max(round(min(point, *found) - error * plain_ns), 0),
            plain_high_ns=round(max(point, *found) + error * plain_ns),
        ),
    )


def _at_both_ends(graph: Graph, model: Model, change: Change) -> Iterator[Graph]:
    """Apply a change with the low ends of all its ranges, then with the high ends where there is a range at all."""
    seen: list[Range] = []

    def low(factor: Range) -> float:
        seen.append(factor)
        return factor.low

    yield apply(graph, model, change, low)
    if any(factor.low != factor.high for factor in seen):
        yield apply(graph, model, change, lambda factor: factor.high)


def _middle(factor: Range) -> float:
    return (factor.low + factor.high) / 2


def _notes(model: Model, change: Change) -> Iterable[str]:
    if change.compiled is not None:
        yield "which ops a compiler fuses, and what its code takes, is in no recording: a range of what is usual"
    if change.fused:
        yield "a fused kernel is taken to run as long as its parts: what it saves of their memory traffic is not known"
    if change.one_step_ahead:
        yield "what the engine itself does to work a step ahead is not in this recording: a bound"
    if change.full_graph and launches.node_gap_ns(model.sources) is None:
        yield "this recording has no graph, so the gap between nodes is between 0 and that between its kernels"
    if change.full_graph:
        inside, count = launches.captured(model.sources)
        if inside < count:
            yield f"{inside} of {count} launches become one a step: waits cut the others off"
    if any(kind.family is Family.COLLECTIVE for kind in model.sources.measured.kinds):
        yield "collectives keep their time: peers are taken to change alike"
    if model.graph.is_pinned.any():
        yield "work from before the recording holds the device at its start, as long as it did"
