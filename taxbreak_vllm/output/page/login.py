"""The form that asks for the key of the page, in the page's own style; it needs no other file."""

import secrets
from functools import lru_cache
from importlib.resources import files

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup


def render_login(wrong: str = "", *, is_from_elsewhere: bool = False) -> tuple[str, str]:
    """Return the document, with what was wrong about the last try, and the policy to be sent as a header.

    With `is_from_elsewhere` it first asks for its own address once more, which a browser then does with its cookies.
    """
    nonce = secrets.token_urlsafe(16)
    policy = (
        f"default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; img-src data:; base-uri 'none';"
        " form-action 'self'"
    )
    return _template().render(nonce=nonce, wrong=wrong, is_from_elsewhere=is_from_elsewhere), policy


@lru_cache(maxsize=1)
def _template() -> Template:
    static = files(__package__) / "static"
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.globals["style"] = Markup((static / "page.css").read_text(encoding="utf-8"))
    return environment.from_string((static / "login.html").read_text(encoding="utf-8"))
