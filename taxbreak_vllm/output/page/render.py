"""Turn articles into one HTML document that needs no other: style, script and charts inside, nothing fetched.

In: `Article`s. Out: the document and the Content-Security-Policy that lets only its own parts run. Jinja2 escapes
whatever came from a trace.
"""

import secrets
from collections.abc import Sequence
from functools import lru_cache
from importlib.resources import files

import msgspec
from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from taxbreak_vllm.model.step import Phase
from taxbreak_vllm.output.page.view import MAX_CHAINS, Article

UNKNOWN = "–"
_STYLES = ("uPlot.min.css", "page.css")
_SCRIPTS = ("words.js", "uPlot.iife.min.js", "charts.js", "timeline.js", "live.js", "page.js")


def render(articles: Sequence[Article]) -> tuple[str, str]:
    """Return the document and its policy, to be sent as a header where there are headers."""
    nonce = secrets.token_urlsafe(16)
    policy = (
        f"default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; connect-src 'self';"
        " img-src data:; base-uri 'none'; form-action 'none'"
    )
    document = _template().render(
        articles=articles,
        nonce=nonce,
        policy=policy,
        phases=[phase.value for phase in Phase if phase is not Phase.IDLE],
        max_chains=MAX_CHAINS,
    )
    return document, policy


@lru_cache(maxsize=1)
def _template() -> Template:
    static = files(__package__) / "static"
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"time": time, "ratio": ratio, "percent": percent, "json": _json, "per": per, "span": span}
    for name, parts in (("style", _STYLES), ("script", _SCRIPTS)):
        environment.globals[name] = Markup("\n".join((static / part).read_text(encoding="utf-8") for part in parts))
    return environment.from_string((static / "page.html").read_text(encoding="utf-8"))


def time(duration_ns: float | None) -> str:
    """Say a duration to a tenth of a µs, from 1 ms on in ms, from 10 s on in s; `words.js` says it alike."""
    if duration_ns is None:
        return UNKNOWN
    size = abs(duration_ns)
    if size < 1_000_000:
        return f"{duration_ns / 1e3:,.1f} µs"
    if size < 10_000_000_000:
        return f"{duration_ns / 1e6:,.{1 if size >= 100_000_000 else 2}f} ms"
    return f"{duration_ns / 1e9:,.1f} s"


def span(seconds: int) -> str:
    """Say a window in its largest whole unit."""
    unit, word = next(((u, w) for u, w in ((86400, "d"), (3600, "h"), (60, "min")) if seconds % u == 0), (1, "s"))
    return f"{seconds // unit} {word}"


def per(value: float | None, count: int) -> float | None:
    """Divide what is known."""
    return None if value is None or not count else value / count


def ratio(value: float | None) -> str:
    """Say a ratio of 0 to 1."""
    return UNKNOWN if value is None else f"{value:.3f}"


def percent(value: float | None) -> str:
    """Say a share."""
    return UNKNOWN if value is None else f"{value:.1%}"


def _json(value: object) -> Markup:
    """Encode for a script element of type application/json, where `<` alone could end it."""
    return Markup(msgspec.json.encode(value).decode().replace("<", "\\u003c"))
