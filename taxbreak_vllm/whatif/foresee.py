"""What the changes that advice asks for would win of the steps of a recording.

In: a recording, and which changes are asked for in which phases. Out: a `Forecast` each, of the plain step where that
is known. All changes share one `Basis`, and only what a forecast needs is replayed.
"""

from collections.abc import Iterator, Mapping, Sequence

from taxbreak_vllm.model.errors import SettingsError, TraceFormatError
from taxbreak_vllm.model.forecast import Forecast, Remedy
from taxbreak_vllm.model.step import Phase
from taxbreak_vllm.taxes.recording import Recording
from taxbreak_vllm.trace.timeline import HostClass
from taxbreak_vllm.whatif.basis import Basis
from taxbreak_vllm.whatif.changes import Change, Range, RefusedError
from taxbreak_vllm.whatif.compiled import Forward
from taxbreak_vllm.whatif.plain import plain_steps
from taxbreak_vllm.whatif.predict import beyond, looked_up, recorded_steps, settled, stops

MAX_EVENTS = 50_000  # ops and activities; more take seconds, for which someone should have asked

_FASTER = Range(low=0.8, high=0.8)  # a core a quarter faster, by as much as the CPUs of one year differ
_CHANGES: Mapping[Remedy, Change] = {
    Remedy.GRAPH: Change(full_graph=True),
    Remedy.AHEAD: Change(one_step_ahead=True),
    Remedy.FASTER: Change(host={HostClass.PYTHON: _FASTER, HostClass.DISPATCH: _FASTER}),
}


def foresee(
    recording: Recording,
    asked: Mapping[Remedy, Sequence[Phase | None]],
    *,
    dilation: float | None = None,
    chains: Sequence[tuple[str, ...]] = (),
) -> tuple[Forecast, ...]:
    """Foresee what each change would win in each of its phases.

    `dilation` is the recorded step over the plain one, None where that is not known; `chains` are the kernels to be
    fused.
    """
    if not asked:
        return ()
    if recording.survey.num_ops + recording.survey.num_activities > MAX_EVENTS:
        reason = f"more than {MAX_EVENTS:,} ops and kernels are replayed only when asked: taxbreak whatif"
        return tuple(
            Forecast(change=name, phase=each, refused=reason) for name, phases in asked.items() for each in phases
        )
    basis = Basis(recording, dilation=dilation)
    found: list[Forecast] = []
    for name, phases in asked.items():
        try:
            change = _change(recording, name, chains)
            rows = {one.phase: one for one in _forecasts(basis, change, name)}
            reason = "its steps are not told apart"
        except (RefusedError, SettingsError, TraceFormatError) as error:
            rows, reason = {}, str(error)
        found += (rows.get(each) or Forecast(change=name, phase=each, refused=reason) for each in phases)
    return tuple(found)


def _change(recording: Recording, name: Remedy, chains: Sequence[tuple[str, ...]]) -> Change:
    match name:
        case Remedy.FUSED:
            return Change(fused=tuple(chains))
        case Remedy.COMPILED:
            return Change(compiled=Forward.of(recording))
        case _:
            return _CHANGES[name]


def _forecasts(basis: Basis, change: Change, name: Remedy) -> Iterator[Forecast]:
    recording = basis.recording
    if change.full_graph:
        _require_plain_launches(recording)
    if reason := beyond(recording, change) or stops(basis, change):
        raise RefusedError(reason)
    change = looked_up(basis, change)
    changed, at_ns = settled(basis, change)
    phases = basis.phases[1:] or basis.phases
    try:
        answers, dilation = plain_steps(basis.plain, basis.model, change, missed=basis.missed), 1.0
    except RefusedError:
        answers, dilation = recorded_steps(basis, change, changed, at_ns)[-len(phases) :], basis.dilation or 1.0
    low = 0.0 if name is Remedy.FUSED else 1.0  # which chains a compiler fuses is its own affair: it may be none
    for phase, answer in zip(phases, answers, strict=True):
        point, *ends = ((answer.was_ns - ns) / answer.was_ns for ns in (answer.point_ns, answer.low_ns, answer.high_ns))
        yield Forecast(
            change=name,
            phase=phase,
            plain_ns=round(answer.was_ns / dilation),
            win_ratio=point,
            low_ratio=min(low, *ends),
            high_ratio=max(ends),
        )


def _require_plain_launches(recording: Recording) -> None:
    """Raise RefusedError where what a graph of the launches costs was not measured, or some are graphs already."""
    floors = recording.view.floors if recording.view is not None else None
    if floors is None or len(floors.graph_points()) < 2:
        raise RefusedError("what launching a graph costs here was not measured: taxbreak floor")
    if recording.measured.dispatches.is_graph.any():
        raise RefusedError("parts of it are graphs already, and what one graph of all costs is not in the recording")
