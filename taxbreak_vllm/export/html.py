"""Breakdowns as one HTML page: opens from a file, works offline, fetches nothing, runs no script.

In: breakdowns. Out: a document with its style inside. Everything that came from a trace is escaped: `_Markup` alone is
taken as HTML.
"""

import html
from collections.abc import Callable, Iterable, Sequence
from importlib.resources import files
from itertools import accumulate
from pathlib import Path

from taxbreak_vllm.export.files import replacing
from taxbreak_vllm.model import Breakdown, Coverage, StepBreakdown

MAX_BARS = 100  # steps drawn; the table of steps has all
MAX_ROWS = 50  # dearest (op, kernel) pairs
_UNKNOWN = "–"
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"

_HOST_PARTS = {  # HostTime field: class of the bar, word
    "python_ns": ("python", "Python"),
    "dispatch_ns": ("dispatch", "op dispatch"),
    "library_ns": ("library", "vendor library"),
    "launch_ns": ("launch", "launch calls"),
    "runtime_ns": ("runtime", "other runtime calls"),
    "blocked_ns": ("wait", "blocked"),
}
_BUSY_PARTS = {"active_ns": ("active", "active"), "other_active_ns": ("other", "active for other steps")}
_IDLE_PARTS = {
    "host_ns": ("python", "idle: waits for the host"),
    "blocked_ns": ("wait", "idle: host blocked"),
    "queue_ns": ("queue", "idle: launched, not begun"),
    "edge_ns": ("edge", "idle: before the first, after the last"),
}
_Part = tuple[str, str, int]  # class, word, ns
_PartsOf = Callable[[StepBreakdown], list[_Part]]


class _Markup(str):
    """Text that is HTML already."""


def write_html(breakdowns: Sequence[Breakdown], target: str | Path) -> None:
    """Write breakdowns as one page; raises TaxbreakError where the disk refuses."""
    with replacing(target) as temporary:
        temporary.write_text(render_html(breakdowns), encoding="utf-8")


def render_html(breakdowns: Sequence[Breakdown]) -> str:
    """Return the document."""
    style = (files(__package__) / "page.css").read_text(encoding="utf-8")
    title = ", ".join(Path(breakdown.source.path).name or "breakdown" for breakdown in breakdowns)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f'<title>{html.escape(title)} · taxbreak</title>\n<link rel="icon" href="data:,">\n<style>\n{style}</style>\n'
        f"</head>\n<body>\n<main>\n{''.join(map(_article, breakdowns))}</main>\n</body>\n</html>\n"
    )


def _article(breakdown: Breakdown) -> str:
    source, total = breakdown.source, breakdown.total
    drawn = breakdown.steps[:MAX_BARS]
    cut = f" The first {MAX_BARS} of {len(breakdown.steps)} steps." if len(drawn) < len(breakdown.steps) else ""
    facts = [source.model_name, source.dtype, source.device_name or source.device_type]
    facts += [f"{name} {version}" for name, version in (("torch", source.torch), ("vLLM", source.vllm)) if version]
    facts.append(f"attribution: {breakdown.attribution}")
    notes = dict.fromkeys([*breakdown.notes, *(note for step in breakdown.steps for note in step.notes)])
    return "".join(
        (
            f"<article>\n<h1>{html.escape(source.path or source.capture_id or 'breakdown')}</h1>\n",
            f"<p>{html.escape(' · '.join(fact for fact in facts if fact))}</p>\n",
            _cards(total),
            _table(
                "Steps",
                "HDBI: device time over device and host orchestration time, 0 host-bound, 1 device-bound. "
                "Exposed: what of the host's work the device waited for.",
                ("step", "phase"),
                ("window", "HDBI", "ΔFT", "ΔCT", "ΔKT", "exposed", "active", "idle", "TKLQT", "launches", "kernels"),
                (_step_row(step) for step in (*breakdown.steps, total)),
                has_total=True,
            ),
            _bars("Host", f"The main thread's window of each step, to the nanosecond.{cut}", drawn, _host_parts),
            _bars("Device", f"What it did, and what it waited for.{cut}", drawn, _device_parts),
            _table(
                "Families",
                "Kernels by what they are for, over the whole trace.",
                ("family",),
                ("kernels", "launches", "device time", "share"),
                _family_rows(total),
            ),
            _table(
                "Dearest ops",
                f"Over the whole trace, at most {MAX_ROWS}; the full name shows on hover.",
                ("op", "kernel", "family", "tier"),
                ("count", "ΔFT", "ΔCT", "ΔKT", "device time"),
                (
                    (
                        *(row.op, row.kernel, row.family + (" (library)" if row.i_lib else ""), str(row.tier)),
                        *(f"{row.count:,}", *map(_time, (row.delta_ft_ns, row.delta_ct_ns, row.delta_kt_ns))),
                        _time(row.active_ns),
                    )
                    for row in total.top[:MAX_ROWS]
                ),
            ),
            _coverage(breakdown),
            "<h2>Notes</h2>\n<ul>" + "".join(f"<li>{html.escape(note)}</li>" for note in notes) + "</ul>\n"
            if notes
            else "",
            "</article>\n",
        )
    )


def _cards(total: StepBreakdown) -> str:
    values = {
        "HDBI": _ratio(total.hdbi),
        "window": _time(total.window_ns),
        "device active": _time(total.device.active_ns),
        "device idle": _time(total.device.idle_ns),
        "orchestration": _time(total.taxes.orchestration_ns),
        "exposed to the device": _time(total.device.idle.host_ns),
        "kernels": f"{total.kernels:,}",
        "kernels per output token": _count(total.kernels_per_output_token),
    }
    cards = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in values.items())
    return f'<dl class="cards">{cards}</dl>\n'


def _step_row(step: StepBreakdown) -> tuple[str, ...]:
    times_ns = [step.taxes.delta_ft_ns, step.taxes.delta_ct_ns, step.taxes.delta_kt_ns, step.device.idle.host_ns]
    times_ns += [step.device.active_ns, step.device.idle_ns, step.tklqt_ns]
    counts = (_count(step.launches), _count(step.kernels))
    name, phase = step.name or "total", step.phase or _UNKNOWN
    return (name, phase, _time(step.window_ns), _ratio(step.hdbi), *map(_time, times_ns), *counts)


def _family_rows(total: StepBreakdown) -> Iterable[tuple[str, ...]]:
    device_ns = sum(share.active_ns for share in total.families.values())
    for family, share in sorted(total.families.items(), key=lambda item: -item[1].active_ns):
        ratio = f"{share.active_ns / device_ns:.1%}" if device_ns else _UNKNOWN
        yield family, f"{share.kernels:,}", f"{share.launches:,}", _time(share.active_ns), ratio


def _coverage(breakdown: Breakdown) -> str:
    counts = {name: getattr(breakdown.coverage, name) for name in Coverage.__dataclass_fields__ if name != "replay"}
    rows = [(name.replace("_", " "), f"{count:,}") for name, count in counts.items()]
    rows += [(f"carried by tier: {tier}", f"{share:.1%}") for tier, share in breakdown.coverage.replay.items()]
    calibration = breakdown.calibration
    dilation = _UNKNOWN if calibration.dilation is None else f"{calibration.dilation:.2f}×"
    rows += [("calibration", calibration.state), ("recorded step over plain step", dilation)]
    return _table("Coverage", "What was read, joined and lost.", ("what",), ("",), rows)


def _host_parts(step: StepBreakdown) -> list[_Part]:
    return [(css, word, getattr(step.host, name)) for name, (css, word) in _HOST_PARTS.items()]


def _device_parts(step: StepBreakdown) -> list[_Part]:
    return [
        *((css, word, getattr(step.device, name)) for name, (css, word) in _BUSY_PARTS.items()),
        *((css, word, getattr(step.device.idle, name)) for name, (css, word) in _IDLE_PARTS.items()),
    ]


def _bars(title: str, caption: str, steps: Sequence[StepBreakdown], parts_of: _PartsOf) -> str:
    words = {css: word for css, word, _ in parts_of(StepBreakdown())}
    square = '<svg viewBox="0 0 8 8" aria-hidden="true"><rect class="{}" width="8" height="8"/></svg>'
    legend = "".join(f"<li>{square.format(css)}{word}</li>" for css, word in words.items())
    rows = (
        (step.name or "total", _bar(parts_of(step)), _time(sum(length_ns for _, _, length_ns in parts_of(step))))
        for step in steps
    )
    table = _table(title, caption, ("step", ""), ("in all",), rows)
    return f'{table}<ul class="legend">{legend}</ul>\n'


def _bar(parts: Sequence[_Part]) -> _Markup:
    """Draw the parts of a whole; each says its name, length and share on hover, and the picture says all of them."""
    whole_ns = sum(length_ns for _, _, length_ns in parts) or 1
    starts_ns = accumulate((length_ns for _, _, length_ns in parts), initial=0)
    said = [f"{word} {_time(length_ns)} ({length_ns / whole_ns:.1%})" for _, word, length_ns in parts]
    rects = "".join(
        f'<rect class="{css}" x="{1000 * start_ns / whole_ns:.2f}" width="{1000 * length_ns / whole_ns:.2f}" '
        f'height="16"><title>{text}</title></rect>'
        for (css, _, length_ns), start_ns, text in zip(parts, starts_ns, said, strict=False)
        if length_ns > 0
    )
    label = "; ".join(said)
    return _Markup(
        f'<svg viewBox="0 0 1000 16" preserveAspectRatio="none" role="img" aria-label="{label}">{rects}</svg>'
    )


def _table(
    title: str,
    caption: str,
    texts: Sequence[str],
    numbers: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    has_total: bool = False,
) -> str:
    """Lay out a table: the columns of text first, then those of numbers."""
    heads = "".join(f'<th scope="col" class="text">{html.escape(text)}</th>' for text in texts)
    heads += "".join(f'<th scope="col">{html.escape(text)}</th>' for text in numbers)
    lines = ["".join(_cell(value, is_text=i < len(texts)) for i, value in enumerate(row)) for row in rows]
    last = len(lines) - 1
    body = "".join(
        f'<tr class="total">{line}</tr>' if has_total and i == last else f"<tr>{line}</tr>"
        for i, line in enumerate(lines)
    )
    name = html.escape(title)
    return (
        f'<h2>{name}</h2>\n<div class="scroll" role="region" aria-label="{name}" tabindex="0"><table>'
        f"<caption>{html.escape(caption)}</caption><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>\n"
    )


def _cell(value: str, *, is_text: bool) -> str:
    if isinstance(value, _Markup):
        return f'<td class="bar">{value}</td>'
    text = html.escape(value)
    return f'<td class="text" title="{text}">{text}</td>' if is_text else f"<td>{text}</td>"


def _time(duration_ns: int | None) -> str:
    if duration_ns is None:
        return _UNKNOWN
    return f"{duration_ns / 1e3:,.1f} µs" if abs(duration_ns) < 10_000_000 else f"{duration_ns / 1e6:,.1f} ms"


def _ratio(value: float | None) -> str:
    return _UNKNOWN if value is None else f"{value:.3f}"


def _count(value: float | None) -> str:
    return _UNKNOWN if value is None else f"{value:,.1f}".removesuffix(".0")
