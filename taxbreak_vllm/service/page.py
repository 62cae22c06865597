"""The page at `/`: the window's balance per phase, servers, newest steps and dearest ops as one HTML document.

Rendered here from `static/page.html`, refreshed by fetching itself. Nothing comes from another host, and everything
that came from outside is escaped: `_Markup` alone is taken as HTML.
"""

import html
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from string import Template

from taxbreak_vllm.model import Phase, StepBreakdown, TopRow, WorkerState
from taxbreak_vllm.service.results import Results, StepRow
from taxbreak_vllm.service.servers import live
from taxbreak_vllm.service.window import MAX_STEPS
from taxbreak_vllm.spool import Spool

_LISTED_STEPS = 20
_LISTED_OPS = 15
_UNKNOWN = "–"


class _Markup(str):
    """Text that is HTML already."""


@dataclass(frozen=True, slots=True)
class Overview:
    """What the page shows."""

    window_s: int
    num_steps: int
    total_by_phase: dict[Phase, tuple[int, StepBreakdown]]
    top: tuple[TopRow, ...]
    steps: Sequence[StepRow]
    states: Sequence[WorkerState]
    live: Sequence[WorkerState]

    @classmethod
    def read(cls, results: Results, spool: Spool, *, window_s: int, now_ns: int) -> "Overview":
        """Read the window that ends now."""
        since_ns = now_ns - window_s * 10**9
        every, *of_phase = (
            results.window(since_ns=since_ns, phase=phase, limit=MAX_STEPS, listed=0) for phase in (None, *Phase)
        )
        states = spool.states()
        return cls(
            window_s=window_s,
            num_steps=every.num_steps,
            total_by_phase={
                phase: (found.num_steps, found.breakdown.total)
                for phase, found in zip(Phase, of_phase, strict=True)
                if found.num_steps
            },
            top=every.breakdown.total.top[:_LISTED_OPS],
            steps=results.steps(limit=_LISTED_STEPS),
            states=states,
            live=live(states, now_ns=now_ns),
        )


def render(overview: Overview) -> tuple[str, dict[str, str]]:
    """Return the document and the headers it needs."""
    nonce = secrets.token_urlsafe(16)
    template = Template((files(__package__) / "static" / "page.html").read_text(encoding="utf-8"))
    policy = (
        f"default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; connect-src 'self'; img-src data:"
    )
    headers = {
        "Content-Security-Policy": f"{policy}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-store",
    }
    return template.substitute(nonce=nonce, main=_main(overview)), headers


def _main(overview: Overview) -> str:
    counted = f"{overview.num_steps} recorded steps of the last {overview.window_s} s"
    if overview.num_steps == MAX_STEPS:
        counted = f"the newest {counted}"
    return "".join(
        (
            _table(
                "Balance",
                f"Per step, mean of {counted}. HDBI: device time over device and host orchestration time,"
                " 0 host-bound, 1 device-bound. Exposed: what of the host's work the device waited for.",
                ("phase", "HDBI", "ΔFT", "ΔCT", "ΔKT", "exposed", "device active", "step", "steps"),
                (_phase_row(phase, *total) for phase, total in overview.total_by_phase.items()),
            ),
            _table(
                "Dearest ops",
                "Sums over the same steps.",
                ("op", "kernel", "family", "count", "ΔFT", "ΔCT", "ΔKT", "device active"),
                (_top_row(row) for row in overview.top),
            ),
            _table(
                "Newest steps",
                "",
                ("step", "phase", "graph mode", "HDBI", "orchestration", "device active", "step time", "model", "rank"),
                (_step_row(step) for step in overview.steps),
            ),
            _table(
                "Servers",
                "Workers that write, or once wrote, into this spool.",
                ("server", "rank", "model", "state", "steps", "samples", "dropped", "time taken"),
                (_worker_row(state, is_live=state in overview.live) for state in overview.states),
            ),
        )
    )


def _phase_row(phase: Phase, num_steps: int, total: StepBreakdown) -> tuple[str, ...]:
    exposed_ns = total.device.idle.host_ns
    times = (total.taxes.delta_ft_ns, total.taxes.delta_ct_ns, total.taxes.delta_kt_ns, exposed_ns)
    times_ns = (*times, total.device.active_ns, total.window_ns)
    return (phase, _balance(total.hdbi), *(_time(value, num_steps) for value in times_ns), str(num_steps))


def _top_row(row: TopRow) -> tuple[str, ...]:
    times_ns = (row.delta_ft_ns, row.delta_ct_ns, row.delta_kt_ns, row.active_ns)
    return (row.op, row.kernel, row.family, str(row.count), *map(_time, times_ns))


def _step_row(step: StepRow) -> tuple[str, ...]:
    link = f'<a href="v1/taxbreak/steps/{html.escape(step.step_id)}">{html.escape(step.step_id)}</a>'
    times_ns = (step.orchestration_ns, step.active_ns, step.window_ns)
    balance = _balance(step.hdbi)
    return (_Markup(link), step.phase, step.graph_mode, balance, *map(_time, times_ns), step.model_name, str(step.rank))


def _worker_row(state: WorkerState, *, is_live: bool) -> tuple[str, ...]:
    server = state.server
    num_steps = sum(histogram.num_steps for histogram in state.steps)
    taken = f"{state.overhead_ns / state.serving_ns:.2%}" if state.serving_ns else _UNKNOWN
    word = ("recording" if state.enabled else "timing only") if is_live else "stopped"
    counts = (str(num_steps), str(state.num_samples), str(sum(state.dropped.values())))
    return (server.server_id, str(server.rank), server.model_name, word, *counts, taken)


def _table(title: str, caption: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    heads = "".join(f'<th scope="col">{html.escape(column)}</th>' for column in columns)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    if not body:
        body = f'<tr><td colspan="{len(columns)}">nothing yet</td></tr>'
    name = html.escape(title)
    said = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    return (
        f'<h2>{name}</h2><div class="scroll" role="region" aria-label="{name}" tabindex="0"><table>{said}'
        f"<thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cell(text: str) -> str:
    if isinstance(text, _Markup):
        return f"<td>{text}</td>"
    return f'<td class="name" title="{html.escape(text)}">{html.escape(text)}</td>'


def _balance(hdbi: float | None) -> str:
    """Draw HDBI as a bar of device (left) and host, with its number."""
    if hdbi is None:
        return _UNKNOWN
    width = 60 * hdbi
    bar = f'<rect class="host" width="60" height="10"/><rect class="device" width="{width:.1f}" height="10"/>'
    return _Markup(f'<svg width="60" height="10" aria-hidden="true">{bar}</svg>{hdbi:.3f}')


def _time(duration_ns: int | None, num_steps: int = 1) -> str:
    if duration_ns is None:
        return _UNKNOWN
    mean_us = duration_ns / num_steps / 1000
    return f"{mean_us:,.1f} µs" if mean_us < 10_000 else f"{mean_us / 1000:,.1f} ms"
