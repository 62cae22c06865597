"""What a recording says of a change: gates, then the steps' times with an interval and bounds, or a refusal.

The point is the calibrated replay. The interval holds the replay with constants alone too, both with and without the
waits that the recording neither shows nor excludes, at both ends of each factor's range; the spread of the steps and
what the graph gets wrong of the recording widen it.
"""

from collections.abc import Iterable
from dataclasses import replace

from taxbreak_vllm.model.errors import TraceFormatError
from taxbreak_vllm.model.whatif import Gate, Prediction, WhatIf
from taxbreak_vllm.taxes.recording import Recording
from taxbreak_vllm.trace.intervals import Int64
from taxbreak_vllm.trace.kernels import Family
from taxbreak_vllm.whatif import launches, on_host
from taxbreak_vllm.whatif.apply import apply, middle
from taxbreak_vllm.whatif.basis import Basis
from taxbreak_vllm.whatif.build import Model
from taxbreak_vllm.whatif.changes import Change, RefusedError
from taxbreak_vllm.whatif.gates import TRANSLATION
from taxbreak_vllm.whatif.graph import Graph
from taxbreak_vllm.whatif.interval import Answer, interval
from taxbreak_vllm.whatif.plain import plain_steps
from taxbreak_vllm.whatif.replay import replay
from taxbreak_vllm.whatif.spans import is_unsettled, means_at, spread
from taxbreak_vllm.whatif.strips import replayed


def predict(
    recording: Recording,
    change: Change,
    *,
    named: str,
    basis: Basis | None = None,
    is_drawn: bool = False,
) -> WhatIf:
    """Predict the steps of a recording under a change, which is `named` as it was asked for.

    `basis` is the recording's own, where something was asked of it before; `is_drawn` adds the timeline.
    Raises TraceFormatError where there is nothing to replay, SettingsError where the change names what is not there.
    """
    if reason := beyond(recording, change):
        return refuse(recording, named, reason)
    basis = basis or Basis(recording)
    model, gates = basis.model, basis.gates
    if reason := stops(basis, change):
        return refuse(recording, named, reason, gates)
    change = looked_up(basis, change)
    try:
        changed, at_ns = settled(basis, change)
        answers = recorded_steps(basis, change, changed, at_ns)
    except RefusedError as refusal:
        return refuse(recording, named, str(refusal), gates)
    window, *steps = _predictions(basis, answers)
    shown, no_plain = steps[0] if len(steps) == 1 else window, None
    try:
        plain = plain_steps(basis.plain, model, change, missed=basis.missed)
        steps = [_with_plain(step, answer) for step, answer in zip(steps, plain, strict=True)]
    except RefusedError as refusal:
        no_plain = str(refusal)
    return WhatIf(
        path=recording.path,
        change=named,
        gates=gates,
        window=window,
        steps=tuple(steps),
        refuted_by=(
            f"recorded with {named}, the same steps take less than {shown.low_ns / 1e6:.3f} or more than"
            f" {shown.high_ns / 1e6:.3f} ms"
        ),
        command=f"taxbreak diff {recording.path} AFTER",
        dilation=recording.breakdown.calibration.dilation if recording.info else None,
        no_plain=no_plain,
        notes=tuple(_notes(model, change)),
        timeline=replayed(model, basis.calibrated, changed, at_ns) if is_drawn else None,
    )


def refuse(recording: Recording, named: str, reason: str, gates: tuple[Gate, ...] = ()) -> WhatIf:
    """Say why nothing is predicted."""
    return WhatIf(path=recording.path, change=named, gates=gates, refused=reason)


def beyond(recording: Recording, change: Change) -> str | None:
    """Return why no replay of a recording tells of a change; None where one may.

    Raises TraceFormatError where there is nothing to replay.
    """
    if not recording.backend.has_launches and (reason := on_host.beyond(change)):
        return reason
    measured = recording.measured
    if not len(measured.activities.row) or not len(measured.host.call_row):
        raise TraceFormatError(f"{recording.path}: no calls with work on a device, so there is nothing to replay")
    if change.full_graph and len(_graph_ns(recording)) < 2:
        return (
            "--graph full: what a graph launch costs is read from no profiled one, whose nodes the profiler slows;"
            " measure it where this was recorded (taxbreak floor) and give --baselines"
        )
    return None


def looked_up(basis: Basis, change: Change) -> Change:
    """Return a change with what it needs of the recording: what graph launches cost there, and which kernels are fused.

    Raises SettingsError where it has no such kernels.
    """
    followers = launches.find_followers(basis.model.sources, change.fused) if change.fused else None
    return replace(change, graph_ns=_graph_ns(basis.recording), followers=followers)


def _graph_ns(recording: Recording) -> tuple[tuple[int, int], ...]:
    floors = recording.view.floors if recording.view else None
    return floors.graph_points() if floors else ()


def stops(basis: Basis, change: Change) -> str | None:
    """Return which gates do not let a change be told; None where all do.

    Work from before the recording holds the device until a known time: a change of kernels alone can be told all the
    same.
    """
    gates, graph = basis.gates, basis.model.graph
    failed = [gate for gate in gates if not gate.passes]
    if [gate.name for gate in failed] == [TRANSLATION] and change.is_device_only and graph.is_pinned.any():
        return None
    if not failed:
        return None
    return "; ".join(
        f"{gate.name} is {gate.value:.1%}, {'at least' if gate.is_least else 'at most'} {gate.limit:.0%} passes"
        for gate in failed
    )


def settled(basis: Basis, change: Change) -> tuple[Graph, Int64]:
    """Return the graph changed in the middle of all ranges, and when all happens in it.

    Raises RefusedError where host and device would not keep in step with it.
    """
    changed = apply(basis.calibrated, basis.model, change, middle)
    at_ns = replay(changed)
    if basis.recording.is_live and is_unsettled(basis.model, changed, at_ns):
        raise RefusedError(
            "host and device of so few steps would not keep in step with this change: how a server settles, one"
            " recorded step does not tell"
        )
    return changed, at_ns


def recorded_steps(basis: Basis, change: Change, changed: Graph, at_ns: Int64) -> list[Answer]:
    """Answer of the whole recording and of the steps of each phase, as recorded; `changed` as `settled` returns it."""
    model, groups, observed_ns = basis.model, basis.groups, basis.observed_ns
    points = means_at(changed, at_ns, groups)
    ends = interval(basis.variants, model, change, groups, observed_ns, points)
    peers = sum(gate.value for gate in basis.gates if gate.name == "peers")  # who may wait for nobody any more
    return [
        Answer(
            was_ns=round(was_ns),
            point_ns=round(point),
            low_ns=max(round(low - wide - peers * was_ns), 0),
            high_ns=round(high + wide),
        )
        for spans, was_ns, point, (low, high) in zip(groups, observed_ns, points, ends, strict=True)
        for wide in (spread(model.graph, spans) + basis.missed.ns(was_ns, point),)
    ]


def _predictions(basis: Basis, answers: Iterable[Answer]) -> list[Prediction]:
    return [
        Prediction(
            phase=phase,
            steps=len(spans[0]),
            observed_ns=answer.was_ns,
            predicted_ns=answer.point_ns,
            low_ns=answer.low_ns,
            high_ns=answer.high_ns,
            host_free_ns=round(host_free),
            kernels_free_ns=round(kernels_free),
        )
        for phase, spans, answer, host_free, kernels_free in zip(
            basis.phases, basis.groups, answers, *basis.bounds, strict=True
        )
    ]


def _with_plain(step: Prediction, plain: Answer) -> Prediction:
    return replace(
        step,
        plain_ns=plain.was_ns,
        plain_predicted_ns=plain.point_ns,
        plain_low_ns=plain.low_ns,
        plain_high_ns=plain.high_ns,
    )


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
    if len(model.sources.measured.events.syncs):
        yield "which event each stream and call waits for is told by the recording"
    elif model.sources.waits_for_events:
        yield "which event each stream and call waits for is inferred: this recording does not tell"
    if model.graph.is_pinned.any():
        yield "work from before the recording holds the device at its start, as long as it did"
