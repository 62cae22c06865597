"""Names out of a file as a terminal may show them: what is no visible character stands as its escape."""

import unicodedata

# Control characters, those that turn or hide text, lone surrogates, separators of lines.
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


def visible(text: str) -> str:
    """Return a text of which nothing moves the cursor, changes colors or turns what follows around."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        char.encode("unicode_escape").decode() if unicodedata.category(char) in _HIDDEN else char for char in text
    )
