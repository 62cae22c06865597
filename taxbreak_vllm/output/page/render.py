"""Turn articles into one HTML document that needs no other: style, script and charts inside, nothing fetched.

In: `Article`s. Out: the document and the Content-Security-Policy that lets only its own parts run. Jinja2 escapes
whatever came from a trace.
"""

import secrets
from collections.abc import Sequence
from functools import lru_cache
from importlib.resources import files

import msgspec
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from taxbreak_vllm.model.step import Phase
from taxbreak_vllm.model.whatif import HOST_CLASSES
from taxbreak_vllm.output.kernel_names import kernel_name
from taxbreak_vllm.output.page.server import legend_of
from taxbreak_vllm.output.page.view import MAX_CHAINS, Article
from taxbreak_vllm.output.page.workload import WorkloadView
from taxbreak_vllm.output.text.transition import sign_words, turn_words
from taxbreak_vllm.output.words import duration, one, percent, ratio, span

_STYLES = ("uPlot.min.css", "page.css")
_SCRIPTS = (
    "words.js",
    "uPlot.iife.min.js",
    "charts.js",
    "transition.js",
    "timeline.js",
    "flame.js",
    "whatif.js",
    "live.js",
    "page.js",
    "perfetto.js",
)


def render(articles: Sequence[Article], *, root: str = "", message: str = "") -> tuple[str, str]:
    """Return the document and its policy, to be sent as a header where there are headers.

    `root` leads from the document's address to that of the sidecar's first page; `message` stands on a page of no
    article.
    """
    nonce = secrets.token_urlsafe(16)
    forms = "'self'" if any(article.live for article in articles) else "'none'"
    policy = (
        f"default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; connect-src 'self';"
        f" img-src data:; base-uri 'none'; form-action {forms}"
    )
    document = (
        environment_with()
        .get_template("page.html")
        .render(
            articles=articles,
            root=root,
            message=message,
            nonce=nonce,
            policy=policy,
            phases=[phase.value for phase in Phase if phase is not Phase.IDLE],
            host_classes=HOST_CLASSES,
            max_chains=MAX_CHAINS,
        )
    )
    return document, policy


def render_workload(view: WorkloadView) -> str:
    """Return the document of a prediction or a sweep; it runs no script."""
    nonce = secrets.token_urlsafe(16)
    policy = f"default-src 'none'; style-src 'nonce-{nonce}'; img-src data:; base-uri 'none'; form-action 'none'"
    return environment_with().get_template("workload.html").render(view=view, nonce=nonce, policy=policy)


@lru_cache
def environment_with(styles: tuple[str, ...] = _STYLES, scripts: tuple[str, ...] = _SCRIPTS) -> Environment:
    """Return the templates of this folder, with these files of its `static` as their style and script."""
    static = files(__package__) / "static"
    environment = Environment(
        loader=PackageLoader(__package__, "static"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        optimized=False,  # there are next to no constants to fold, and looking takes a third of the compilation
    )
    environment.filters |= {
        "time": duration,
        "ratio": ratio,
        "percent": percent,
        "json": _json,
        "kernel": kernel_name,
        "legend": legend_of,
        "one": one,
        "per": per,
        "span": span,
        "turn": turn_words,
        "signs": sign_words,
    }
    for name, parts in (("style", styles), ("script", scripts)):
        environment.globals[name] = Markup("\n".join((static / part).read_text(encoding="utf-8") for part in parts))
    return environment


def per(value: float | None, count: int) -> float | None:
    """Divide what is known."""
    return None if value is None or not count else value / count


def _json(value: object) -> Markup:
    """Encode for a script element of type application/json, where `<` alone could end it."""
    return Markup(msgspec.json.encode(value).decode().replace("<", "\\u003c"))
