"""A fleet's report as one HTML document in the page's own style; it needs no other file and fetches nothing.

In: a `FleetReport`. Out: the document.
"""

import secrets
from functools import lru_cache
from pathlib import Path

from jinja2 import Template

from taxbreak_vllm.model.fleet import Change, FleetReport
from taxbreak_vllm.output.files import replacing
from taxbreak_vllm.output.page.render import environment_with
from taxbreak_vllm.output.text import fleet as text

_LEAST_REACH = 0.02  # of the axis of changes, either way


def write_fleet_html(found: FleetReport, target: str | Path) -> None:
    """Write the document; raises TaxbreakError where the disk refuses."""
    document = render_fleet(found)
    with replacing(target) as temporary:
        temporary.write_text(document, encoding="utf-8")


def render_fleet(found: FleetReport) -> str:
    """Return the document."""
    nonce = secrets.token_urlsafe(16)
    policy = (
        f"default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; img-src data:; base-uri 'none';"
        " form-action 'none'"
    )
    changes = [change for change in found.changes if change.is_found]
    ends = [abs(end) for change in changes for end in (change.shift.low, change.shift.high) if end is not None]
    return _template().render(
        r=found,
        changes=changes,
        reach=max([_LEAST_REACH, *ends]),
        words=text,
        nonce=nonce,
        policy=policy,
    )


def whisker(change: Change, reach: float) -> dict[str, str]:
    """Return where the interval of a change and its centre lie on an axis of 120, whose middle is no change."""
    low, centre, high = (
        60 + 58 * (end or 0.0) / reach for end in (change.shift.low, change.shift.change, change.shift.high)
    )
    return {name: f"{place:.1f}" for name, place in (("low", low), ("centre", centre), ("high", high))}


@lru_cache(maxsize=1)
def _template() -> Template:
    environment = environment_with(("page.css",), ("words.js",))
    environment.filters["whisker"] = whisker
    return environment.get_template("fleet.html")
