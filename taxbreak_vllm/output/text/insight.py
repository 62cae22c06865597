"""Fusion and differences as text for people. In: `FusionReport`, `Diff`. Out: rich tables; times in ms or µs."""

from collections.abc import Iterable

from rich.table import Table
from rich.text import Text

from taxbreak_vllm.insight.diff import Change, Diff, Figure, Quartiles, Section
from taxbreak_vllm.model.fusion import FusionReport
from taxbreak_vllm.output.kernel_names import kernel_name
from taxbreak_vllm.output.text.names import visible
from taxbreak_vllm.output.words import UNKNOWN, duration, percent, times

MAX_CHAINS = 12
MAX_ROWS = 12
_NAME_CHARS = 46

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
    table = Table(pad_edge=False)
    for title in ("length", "chains", "candidates", "fused", "kernels left", "launches left", "ideal speed-up"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in report.by_length:
        counts = (row.length, row.distinct, row.candidates, row.fused, row.kernels_after, row.launches_after)
        table.add_row(*map(str, counts), times(row.ideal_speedup))
    after = (str(report.kernels_after), str(report.launches_after), times(report.ideal_speedup))
    table.add_row("all", "", str(len(report.chains)), "", *after)
    return table


def chain_table(report: FusionReport, limit: int = MAX_CHAINS) -> Table:
    """Show the candidates that no longer one contains, those first that save most kernels."""
    table = Table(pad_edge=False)
    for title in ("count", "score", "length"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("kernels", overflow="fold")
    for chain in [chain for chain in report.chains if chain.is_maximal][:limit]:
        names = Text(" → ".join(_short(kernel_name(name)) for name in chain.kernels))
        table.add_row(str(chain.count), f"{chain.score:.2f}", str(chain.length), names)
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
    title = f"{section.name}: median (quartiles) of {section.steps_a} steps in a, {section.steps_b} in b"
    table = _table(title, texts=("figure",), numbers=("a", "b", "b - a", "change"))
    table.add_column("")
    figures = {figure.name: figure for figure in section.figures}
    for name, word in _SHOWN.items():
        figure = figures[name]
        is_time = name.endswith("_ns")
        table.add_row(
            word,
            _spread(figure.a, is_time),
            _spread(figure.b, is_time),
            _value(figure.absolute, is_time, sign="+"),
            percent(figure.relative, sign="+"),
            _verdict(figure),
        )
    return table


def _family_table(section: Section) -> Table:
    title = f"{section.name}: families, per step"
    numbers = ("kernels a", "kernels b", "device a", "device b", "b - a", "change")
    table = _table(title, texts=("family", ""), numbers=numbers)
    for row in section.families:
        status = "" if row.status == "both" else row.status
        kernels = (_value(row.kernels.a, False), _value(row.kernels.b, False))
        table.add_row(row.family, status, *kernels, *_change(row.active_ns))
    return table


def _row_table(section: Section, limit: int) -> Table:
    title = f"{section.name}: ops and kernels that moved most, per step"
    numbers = ("count a", "count b", "ΔFT b - a", "ΔCT b - a", "device a", "device b", "b - a", "change")
    table = _table(title, texts=("op", "kernel", ""), numbers=numbers)
    for row in section.rows[:limit]:
        table.add_row(
            Text(_short(row.op)),
            Text(_short(kernel_name(row.kernel))),
            "" if row.status == "both" else row.status,
            _value(row.count.a, False),
            _value(row.count.b, False),
            _value(row.delta_ft_ns.absolute, True, sign="+"),
            _value(row.delta_ct_ns.absolute, True, sign="+"),
            *_change(row.active_ns),
        )
    return table


def _table(title: str, *, texts: Iterable[str], numbers: Iterable[str]) -> Table:
    table = Table(title=Text(title), title_justify="left", pad_edge=False)
    for text in texts:
        table.add_column(text, overflow="ellipsis", no_wrap=True)
    for number in numbers:
        table.add_column(number, justify="right", no_wrap=True)
    return table


def _change(change: Change) -> tuple[str, str, str, str]:
    sides = (_value(change.a, True), _value(change.b, True))
    return (*sides, _value(change.absolute, True, sign="+"), percent(change.relative, sign="+"))


def _spread(spread: Quartiles | None, is_time: bool) -> str:
    if spread is None:
        return UNKNOWN
    median = _value(spread.median, is_time)
    if spread.low == spread.high:
        return median
    return f"{median} ({_value(spread.low, is_time)} – {_value(spread.high, is_time)})"


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


def _short(name: str) -> str:
    name = visible(name)
    return name if len(name) <= _NAME_CHARS else name[: _NAME_CHARS - 1] + "…"
