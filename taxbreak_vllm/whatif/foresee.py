"""What the changes that advice asks for would win of the steps of a recording.

In: a recording, and which changes are asked for in which phases. Out: a `Forecast` each. The profiler's dilation is
divided out twice, of the step as a whole and of its host's work alone, as nobody knows which part of it is whose: the
second is the point, and both are in the interval.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import NamedTuple

from taxbreak_vllm.model.errors import SettingsError, TraceFormatError
from taxbreak_vllm.model.forecast import Forecast, Remedy
from taxbreak_vllm.model.step import Phase
from taxbreak_vllm.model.whatif import Prediction
from taxbreak_vllm.taxes.recording import Recording
from taxbreak_vllm.trace.timeline import HostClass
from taxbreak_vllm.whatif.basis import Basis
from taxbreak_vllm.whatif.changes import HOST, Change, Range, RefusedError, scale_host
from taxbreak_vllm.whatif.compiled import Forward
from taxbreak_vllm.whatif.predict import predict
from taxbreak_vllm.whatif.spans import means

MAX_EVENTS = 50_000  # ops and activities; more take seconds, for which someone should have asked

_FASTER = Range(low=0.8, high=0.8)  # a core a quarter faster, by as much as the CPUs of one year differ
_CHANGES: Mapping[Remedy, Change] = {
    Remedy.GRAPH: Change(full_graph=True),
    Remedy.AHEAD: Change(one_step_ahead=True),
    Remedy.FASTER: Change(host={HostClass.PYTHON: _FASTER, HostClass.DISPATCH: _FASTER}),
}

_SAME = 1.02  # a recording that is so near the plain step is taken for it
_ROUNDS = 5  # of bisection, which a straight line ends

Rows = Mapping[Phase | None, Prediction]


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
    basis = Basis(recording)
    found: list[Forecast] = []
    for name, phases in asked.items():
        try:
            change = _change(recording, name, chains)
            rows = {one.phase: one for one in _forecasts(basis, change, name, dilation or 1.0)}
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


def _forecasts(basis: Basis, change: Change, name: Remedy, dilation: float) -> Iterator[Forecast]:
    if change.full_graph:
        _require_plain_launches(basis.recording)
    as_recorded = _rows(basis, change)
    is_told = all(row.plain_ns is not None for row in as_recorded.values())
    factor = None if is_told else _host_factor(basis, dilation)
    before: Mapping[Phase | None, float] = {}
    after: Rows = {}
    if factor is not None:
        with suppress(RefusedError):
            after = _rows(basis, _slowed(change, factor))
            before = _steps_ns(basis, factor)
    low = 0.0 if name is Remedy.FUSED else 1.0  # which chains a compiler fuses is its own affair: it may be none
    for phase, row in as_recorded.items():
        wins = [_win(row.observed_ns, row)]
        if row.plain_ns is not None:
            wins = [_plain_win(row)]
        elif before:
            wins.insert(0, _win(before[phase], after[phase]))
        yield Forecast(
            change=name,
            phase=phase,
            plain_ns=row.plain_ns or round(row.observed_ns / dilation),
            win_ratio=wins[0].point,
            low_ratio=min(low, *(win.low for win in wins)),
            high_ratio=max(win.high for win in wins),
        )


def _require_plain_launches(recording: Recording) -> None:
    """Raise RefusedError where what a graph of the launches costs was not measured, or some are graphs already."""
    floors = recording.view.floors if recording.view is not None else None
    if floors is None or len(floors.graph_points()) < 2:
        raise RefusedError("what launching a graph costs here was not measured: taxbreak floor")
    if recording.measured.dispatches.is_graph.any():
        raise RefusedError("parts of it are graphs already, and what one graph of all costs is not in the recording")


def _rows(basis: Basis, change: Change) -> Rows:
    answer = predict(basis.recording, change, named="", basis=basis)
    if answer.window is None:
        raise RefusedError(answer.refused or "nothing was replayed")
    return {row.phase: row for row in answer.steps or (answer.window,)}


class _Win(NamedTuple):
    """A share won, and between which shares it lies."""

    point: float
    low: float
    high: float


def _win(before_ns: float, after: Prediction) -> _Win:
    return _Win(*((before_ns - ns) / before_ns for ns in (after.predicted_ns, after.high_ns, after.low_ns)))


def _plain_win(row: Prediction) -> _Win:
    plain_ns = row.plain_ns or 0
    ends = (row.plain_predicted_ns, row.plain_high_ns, row.plain_low_ns)
    return _Win(*((plain_ns - (ns or 0)) / plain_ns for ns in ends))


def _slowed(change: Change, factor: float) -> Change:
    host = {cls: change.host.get(cls, Range()) for cls in HOST}
    return replace(change, host={cls: Range(low=r.low * factor, high=r.high * factor) for cls, r in host.items()})


def _host_factor(basis: Basis, dilation: float) -> float | None:
    """Return what share of its host work would leave a recording as long as plain steps are; None where none would."""
    low, high = 0.0, 1.0
    low_ns, high_ns = (_whole_ns(basis, factor) for factor in (low, high))
    wanted_ns = high_ns / dilation
    if dilation < _SAME or low_ns >= wanted_ns:
        return None
    for _ in range(_ROUNDS):
        middle = (low + high) / 2
        middle_ns = _whole_ns(basis, middle)
        if middle_ns < wanted_ns:
            low, low_ns = middle, middle_ns
        else:
            high, high_ns = middle, middle_ns
    return low + (high - low) * (wanted_ns - low_ns) / (high_ns - low_ns)


def _whole_ns(basis: Basis, factor: float) -> float:
    return sum(_steps_ns(basis, factor).values())


def _steps_ns(basis: Basis, factor: float) -> dict[Phase | None, float]:
    found = means(scale_host(basis.calibrated, dict.fromkeys(HOST, factor)), basis.groups)
    rows = list(zip(basis.phases, found, strict=True))
    return dict(rows[1:] or rows)
