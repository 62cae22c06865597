"""Fusion and differences as text for people. In: `FusionReport`, `Diff`. Out: lines and tables; times in ms or µs."""

from collections.abc import Iterable

from taxbreak_vllm.insight.diff import Change, Diff, Figure, Quartiles, Section
from taxbreak_vllm.model.fusion import FusionReport
from taxbreak_vllm.output.kernel_names import kernel_name
from taxbreak_vllm.output.text.table import Column, Kind, Table
from taxbreak_vllm.output.words import UNKNOWN, duration, percent, times

MAX_CHAINS = 12
MAX_ROWS = 12

# What a reader asks first; the JSON has every figure.
_SHOWN = {
    "window_ns": "step time",
    "hdbi": "HDBI",
    "taxes.delta_ft_ns": "ΔFT",
    "taxes.delta_ct_ns": "ΔCT",
    "taxes.delta_kt_ns": "ΔKT",
    "exposed.delta_ft_ns": "exposed ΔFT",
    "exposed.delta_ct_ns": "exposed ΔCT",
    "exposed.delta_kt_ns": "exposed ΔKT",
    "device.active_ns": "device active",
    "device.idle_ns": "device idle",
    "tklqt_ns": "TKLQT",
    "launches": "launches",
    "kernels": "kernels",
    "kernels_per_output_token": "kernels per output token",
}


def fusion_table(report: FusionReport) -> Table:
    """Show one row per chain length: how many chains there are, how many are candidates, what fusing them saves."""
    table = Table(
        (
            Column("length", 9),
            Column("chains", 1),
            Column("candidates", 7),
            Column("fused", 5),
            Column("kernels left", 3),
            Column("launches left", 8),
            Column("ideal speed-up", 6),
        )
    )
    for row in report.by_length:
        counts = (row.length, row.distinct, row.candidates, row.fused, row.kernels_after, row.launches_after)
        table.add(*map(str, counts), times(row.ideal_speedup))
    after = (str(report.kernels_after), str(report.launches_after), times(report.ideal_speedup))
    table.add("all", "", str(len(report.chains)), "", *after)
    return table


def chain_table(report: FusionReport, limit: int = MAX_CHAINS) -> Table:
    """Show the candidates that no longer one contains, those first that save most kernels."""
    table = Table(
        (Column("count", 2), Column("score", 1), Column("length", 1), Column("kernels", 2, Kind.PROSE)),
    )
    for chain in [chain for chain in report.chains if chain.is_maximal][:limit]:
        names = " → ".join(map(kernel_name, chain.kernels))
        table.add(str(chain.count), f"{chain.score:.2f}", str(chain.length), names)
    return table


def fusion_lines(report: FusionReport) -> Iterable[str]:
    """Say what was counted."""
    yield report.path
    yield f"{report.kernels} kernels from {report.launches} launches; candidates score {report.min_score:g} or more"
    yield from (f"note: {note}" for note in report.notes)


def diff_lines(diff: Diff) -> Iterable[str]:
    """Say what is compared, and what else differs."""
    yield f"a: {diff.a.path}"
    yield f"b: {diff.b.path}"
    yield from (f"note: {note}" for note in diff.notes)


def diff_tables(diff: Diff, limit: int = MAX_ROWS) -> Iterable[Table]:
    """Show per phase the headline figures, the families, and the ops and kernels that moved most."""
    for section in diff.sections:
        yield _figure_table(section)
        if section.steps_a and section.steps_b:
            yield _family_table(section)
            yield _row_table(section, limit)


def _figure_table(section: Section) -> Table:
    steps = f"{_steps(section.steps_a)} in a, {section.steps_b} in b"
    table = Table(
        (
            Column("figure", 9, Kind.NAME),
            Column("a", 8),
            Column("b", 8),
            Column("b - a", 5),
            Column("change", 7),
            Column("", 6, Kind.PROSE),
            Column("quartiles of a", 1),
            Column("quartiles of b", 1),
        ),
        title=f"{section.name}: median of {steps}",
    )
    figures = {figure.name: figure for figure in section.figures}
    for name, word in _SHOWN.items():
        figure = figures[name]
        is_time = name.endswith("_ns")
        table.add(
            word,
            _median(figure.a, is_time),
            _median(figure.b, is_time),
            _value(figure.absolute, is_time, sign="+"),
            percent(figure.relative, sign="+"),
            _verdict(figure),
            _spread(figure.a, is_time),
            _spread(figure.b, is_time),
        )
    return table


def _family_table(section: Section) -> Table:
    table = Table(
        (
            Column("family", 9, Kind.NAME),
            Column("", 4, Kind.NAME),
            Column("kernels a", 2),
            Column("kernels b", 2),
            *_changes(),
        ),
        title=f"{section.name}: families, per step",
    )
    for row in section.families:
        status = "" if row.status == "both" else row.status
        kernels = (_value(row.kernels.a, False), _value(row.kernels.b, False))
        table.add(row.family, status, *kernels, *_change(row.active_ns))
    return table


def _row_table(section: Section, limit: int) -> Table:
    table = Table(
        (
            Column("op", 7, Kind.NAME),
            Column("kernel", 9, Kind.NAME),
            Column("", 4, Kind.NAME),
            Column("count a", 3),
            Column("count b", 3),
            Column("ΔFT b - a", 8),
            Column("ΔCT b - a", 1),
            *_changes(),
        ),
        title=f"{section.name}: ops and kernels that moved most, per step",
    )
    for row in section.rows[:limit]:
        table.add(
            row.op,
            kernel_name(row.kernel),
            "" if row.status == "both" else row.status,
            _value(row.count.a, False),
            _value(row.count.b, False),
            _value(row.delta_ft_ns.absolute, True, sign="+"),
            _value(row.delta_ct_ns.absolute, True, sign="+"),
            *_change(row.active_ns),
        )
    return table


def _changes() -> tuple[Column, ...]:
    return (Column("device a", 5), Column("device b", 5), Column("device b - a", 9), Column("change", 6))


def _change(change: Change) -> tuple[str, str, str, str]:
    sides = (_value(change.a, True), _value(change.b, True))
    return (*sides, _value(change.absolute, True, sign="+"), percent(change.relative, sign="+"))


def _steps(count: int) -> str:
    return "1 step" if count == 1 else f"{count} steps"


def _median(spread: Quartiles | None, is_time: bool) -> str:
    return _value(None if spread is None else spread.median, is_time)


def _spread(spread: Quartiles | None, is_time: bool) -> str:
    if spread is None or spread.low == spread.high:
        return ""
    return f"{_value(spread.low, is_time)} – {_value(spread.high, is_time)}"


def _verdict(figure: Figure) -> str:
    if figure.is_clear is None:
        return ""
    return "clear" if figure.is_clear else "within the spread"


def _value(value: float | None, is_time: bool, sign: str = "") -> str:
    if value is None:
        return UNKNOWN
    if is_time:
        return duration(value, sign=sign)
    return "0" if value == 0 else f"{value:{sign}.3g}" if abs(value) < 100 else f"{value:{sign},.0f}"
