"""What a recording says of a change: gates, then the steps' times with an interval and bounds, or a refusal.

The point is the calibrated replay. The interval holds the replay with constants alone too, both with and without the
waits that the recording neither shows nor excludes, at both ends of each factor's range; the spread of the steps and
what the graph gets wrong of the recording widen it.
"""

from collections.abc import Iterable
from dataclasses import replace

from taxbreak_vllm.model.errors import TraceFormatError
from taxbreak_vllm.model.whatif import Gate, Prediction, Replayed, WhatIf
from taxbreak_vllm.taxes.recording import Recording
from taxbreak_vllm.trace.kernels import Family
from taxbreak_vllm.whatif import launches, on_host
from taxbreak_vllm.whatif.apply import apply, middle
from taxbreak_vllm.whatif.basis import Basis
from taxbreak_vllm.whatif.build import Model
from taxbreak_vllm.whatif.changes import Change, RefusedError
from taxbreak_vllm.whatif.gates import TRANSLATION
from taxbreak_vllm.whatif.interval import interval
from taxbreak_vllm.whatif.plain import plain_steps
from taxbreak_vllm.whatif.replay import replay
from taxbreak_vllm.whatif.spans import is_unsettled, mean, spread
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
    basis = basis or Basis(recording)
    model, gates = basis.model, basis.gates
    if reason := _stops(gates, model, change):
        return refuse(recording, named, reason, gates)
    try:
        window, steps = _recorded_steps(basis, change)
    except RefusedError as refusal:
        return refuse(recording, named, str(refusal), gates)
    shown, no_plain = steps[0] if len(steps) == 1 else window, None
    try:
        steps = plain_steps(basis.plain, model, change, steps, error=basis.error)
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
        notes=tuple(_notes(model, change)),
        timeline=_drawn(basis, change) if is_drawn else None,
    )


def _drawn(basis: Basis, change: Change) -> Replayed:
    changed = apply(basis.calibrated, basis.model, change, middle)
    return replayed(basis.model, basis.calibrated, changed, replay(changed))


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


def _recorded_steps(basis: Basis, change: Change) -> tuple[Prediction, tuple[Prediction, ...]]:
    """Predict the whole recording, and the steps of each phase in it."""
    model, groups, observed_ns = basis.model, basis.groups, basis.observed_ns
    changed = apply(basis.calibrated, model, change, middle)
    at_ns = replay(changed)
    if basis.recording.is_live and is_unsettled(model, changed, at_ns):
        raise RefusedError(
            "host and device of so few steps would not keep in step with this change: how a server settles, one"
            " recorded step does not tell"
        )
    points = [mean(changed, at_ns, spans) for spans in groups]
    ends = interval(basis.variants, model, change, groups, observed_ns)
    peers = sum(gate.value for gate in basis.gates if gate.name == "peers")  # who may wait for nobody any more
    window, *steps = (
        Prediction(
            phase=phase,
            steps=len(spans[0]),
            observed_ns=round(observed),
            predicted_ns=round(point),
            low_ns=max(round(min(point, low) - wide - peers * observed), 0),
            high_ns=round(max(point, high) + wide),
            host_free_ns=round(host_free),
            kernels_free_ns=round(kernels_free),
        )
        for phase, spans, observed, point, (low, high), host_free, kernels_free in zip(
            basis.phases, groups, observed_ns, points, ends, *basis.bounds, strict=True
        )
        for wide in (spread(model.graph, spans) + basis.error * observed,)
    )
    return window, tuple(steps)


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
