"""What a server would make of other traffic or settings, as its page shows it: a prediction, or a sweep of many.

In: answers of `workload`. Out: `WorkloadView`, words and where marks stand. No figure is computed here.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from taxbreak_vllm.model.sweep import SweepPoint, Swept
from taxbreak_vllm.model.workload import Bounds, Latencies, Prediction, Validation
from taxbreak_vllm.output.page.axis import Axis
from taxbreak_vllm.output.page.server import Part
from taxbreak_vllm.output.text.sweep import best_words, point_words, slo_words
from taxbreak_vllm.output.text.workload import E2E_WORDS
from taxbreak_vllm.output.words import UNKNOWN, percent

METRICS = ("ttft", "tpot", "e2e")
QUANTILES = ("p50", "p90", "p99")
JUDGED = "p90"
_COLOURS = {"frontend": "frontend", "queue": "queue", "kv": "blocked", "host": "host", "device": "active"}


@dataclass(frozen=True, slots=True)
class Mark:
    """A point of a chart, in percent from the left and from the top; `css` is `front`, `beaten` or `fails`."""

    x: float
    y: float
    css: str
    words: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """Throughput of a replica against a latency; ticks are (percent, words), `slo` is where the bound stands."""

    title: str
    x_words: str
    marks: tuple[Mark, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    slo: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """One figure of a prediction: where its band, itself and what was recorded stand, in percent of a common axis."""

    name: str
    recorded: str
    predicted: str
    band: str
    low: float
    high: float
    at: float
    was: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PointView:
    """A row: what it is, its figures in the order of the heads, each with what is small beside it, and its bar."""

    name: str
    figures: tuple[tuple[str, str], ...]
    parts: tuple[Part, ...]
    css: str = ""
    e2e_ns: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadView:
    """The page. `heads` are those of a point's figures; `refused` are points without an answer, and why."""

    title: str
    lead: str
    facts: tuple[str, ...]
    checks: tuple[Validation, ...]
    heads: tuple[str, ...] = ()
    points: tuple[PointView, ...] = ()
    charts: tuple[Chart, ...] = ()
    intervals: tuple[Interval, ...] = ()
    ticks: tuple[tuple[float, str], ...] = ()
    refused: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def legend(self) -> tuple[tuple[str, str], ...]:
        """Return the colours and words of all parts that are seen."""
        seen = {css for point in self.points for css, _, part_ns in point.parts if part_ns}
        return tuple((css, E2E_WORDS[name]) for name, css in _COLOURS.items() if css in seen)


def prediction_view(found: Prediction) -> WorkloadView:
    """Show one answer."""
    changes = ", ".join(f"{name}={value}" for name, value in found.changes.items())
    facts = (f"{found.engine}, vLLM {found.vllm}", found.load, changes or "as it was set")
    if found.predicted is None:
        return WorkloadView(
            title="workload predict", lead=f"No answer: {found.reason}.", facts=facts, checks=found.checks
        )
    intervals, ticks = _intervals(found)
    told = found.predicted
    kept = "" if told.slo_ratio is None else f"; {percent(told.slo_ratio)} of the requests keep to the SLO"
    mostly = "" if found.bounds is None else f", most of the mean E2E is {E2E_WORDS[found.bounds.bound]}"
    return WorkloadView(
        title="workload predict",
        lead=f"{told.tokens_per_s:,.1f} tokens a second{_band_words(found.band, 'tokens_per_s')}{mostly}{kept}.",
        facts=facts,
        checks=found.checks,
        points=(PointView(name="predicted", figures=(), parts=_parts(told, found.bounds), e2e_ns=_e2e_ns(told)),),
        intervals=intervals,
        ticks=ticks,
        notes=found.notes,
    )


def sweep_view(found: Swept) -> WorkloadView:
    """Show many answers."""
    facts = [f"{found.engine}, vLLM {found.vllm}", found.load, *([slo_words(found)] if found.slo else [])]
    lead = f"No answer: {found.reason}." if found.reason else f"{best_words(found)}."
    answered = [point for point in found.points if point.predicted is not None]
    searched = ("beyond",) if found.aim else ()
    kept = ("keep to SLO",) if found.slo else ()
    return WorkloadView(
        title="workload sweep",
        lead=lead,
        facts=tuple(facts),
        checks=found.checks,
        heads=("requests/s", "tokens/s", *(metric.upper() for metric in METRICS), *kept, *searched),
        points=tuple(_point_view(point, found) for point in answered),
        charts=tuple(_charts(answered, found)),
        refused=tuple((point_words(point), point.reason or "") for point in found.points if point.predicted is None),
        notes=found.notes,
    )


def _point_view(point: SweepPoint, found: Swept) -> PointView:
    told = point.predicted
    assert told is not None
    figures = [
        (UNKNOWN if point.requests_per_s is None else f"{point.requests_per_s:,.2f}", ""),
        (f"{told.tokens_per_s:,.1f}", _band_words(point.band, "tokens_per_s").strip(" ()")),
    ]
    for metric in METRICS:
        spread = _spread(told, metric)
        words = UNKNOWN if spread is None else " / ".join(_ms(spread[quantile]) for quantile in QUANTILES)
        band = point.band.get(f"{metric}_{JUDGED}")
        figures.append((words, "" if band is None else f"{JUDGED} {_ms(band[0])} to {_ms(band[1])}"))
    if found.slo:
        figures.append((percent(told.slo_ratio), "kept" if point.meets_slo else "not kept"))
    if found.aim:
        figures.append(("", point.ended_by or ""))
    return PointView(
        name=point_words(point),
        figures=tuple(figures),
        parts=_parts(told, point.bounds),
        css=_css(point),
        e2e_ns=_e2e_ns(told),
    )


def _css(point: SweepPoint) -> str:
    if point.meets_slo is False:
        return "fails"
    return "front" if point.is_on_front else "beaten"


def _charts(answered: Sequence[SweepPoint], found: Swept) -> Iterator[Chart]:
    if len(answered) < 2:
        return
    xs = [point.tokens_per_s_replica or 0.0 for point in answered]
    x_axis = Axis.of(xs, from_zero=True)
    for metric in found.slo or ("ttft", "tpot"):
        spreads = [None if point.predicted is None else _spread(point.predicted, metric) for point in answered]
        ys = [None if spread is None else spread[JUDGED] for spread in spreads]
        known = [y for y in ys if y is not None]
        if not known:
            continue
        bound = found.slo.get(metric)
        y_axis = Axis.of([*known, *([bound] if bound else [])])
        marks = [
            Mark(
                x_axis.place(x),
                100 - y_axis.place(y),
                _css(point),
                f"{point_words(point)}: {x:,.1f} tok/s, {_ms(y)} ms",
            )
            for point, x, y in zip(answered, xs, ys, strict=True)
            if y is not None
        ]
        order = {"beaten": 0, "fails": 1, "front": 2}  # what matters lies above
        yield Chart(
            title=f"{metric.upper()} {JUDGED}",
            x_words="tokens a second and replica",
            marks=tuple(sorted(marks, key=lambda mark: order[mark.css])),
            x_ticks=tuple((x_axis.place(tick), f"{tick:,g}") for tick in x_axis.ticks),
            y_ticks=tuple((100 - y_axis.place(tick), _tick(tick)) for tick in y_axis.ticks),
            slo=None if bound is None else 100 - y_axis.place(bound),
        )


def _intervals(found: Prediction) -> tuple[tuple[Interval, ...], tuple[tuple[float, str], ...]]:
    assert found.predicted is not None
    rows = []
    for metric in METRICS:
        told, was = (
            _spread(found.predicted, metric),
            None if found.measured is None else _spread(found.measured, metric),
        )
        for quantile in QUANTILES:
            if told is not None:
                value = told[quantile]
                band = found.band.get(f"{metric}_{quantile}", (value, value))
                rows.append((f"{metric.upper()} {quantile}", value, band, None if was is None else was[quantile]))
    ends = [each for _, value, band, was in rows for each in (value, *band, value if was is None else was) if each > 0]
    axis = Axis.of(ends or [1.0])
    least = axis.low

    def place(value: float) -> float:
        return axis.place(max(value, least))

    intervals = tuple(
        Interval(
            name=name,
            recorded=UNKNOWN if was is None else _ms(was),
            predicted=_ms(value),
            band=f"{_ms(band[0])} to {_ms(band[1])}",
            low=place(band[0]),
            high=place(band[1]),
            at=place(value),
            was=None if was is None else place(was),
        )
        for name, value, band, was in rows
    )
    return intervals, tuple((axis.place(tick), _tick(tick)) for tick in axis.ticks)


def _parts(told: Latencies, bounds: Bounds | None) -> tuple[Part, ...]:
    """Return the bar of the mean E2E, each part in ns of it."""
    if bounds is None or told.e2e_s is None:
        return ()
    return tuple(
        (_COLOURS[name], E2E_WORDS[name], round(share * _e2e_ns(told))) for name, share in bounds.e2e_ratio.items()
    )


def _e2e_ns(told: Latencies) -> float:
    return 0.0 if told.e2e_s is None else told.e2e_s["mean"] * 1e9


def _spread(told: Latencies, metric: str) -> Mapping[str, float] | None:
    found: Mapping[str, float] | None = getattr(told, f"{metric}_s")
    return found


def _tick(seconds: float) -> str:
    return f"{seconds:,g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms" if seconds else "0"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:,.{1 if seconds < 1 else 0}f}"


def _band_words(band: Mapping[str, tuple[float, float]], name: str) -> str:
    return "" if name not in band else f" ({band[name][0]:,.1f} to {band[name][1]:,.1f})"
