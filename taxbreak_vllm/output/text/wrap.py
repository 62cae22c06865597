"""Texts in a given width. In: a text and a number of columns, None for no bound. Out: lines that fit.

Lines break at spaces, longer words after a mark (`_ :: / , < …`) and only then anywhere; nothing is left out. Wide
characters take two columns.
"""

import re
import unicodedata
from collections.abc import Iterator

_PARTS = re.compile(r"[^_:/,.<>()=|-]*[_:/,.<>()=|-]+|.+")
_HEAD = re.compile(r" *(\S+ {2,}|\d+\. )?")
NO_BREAK = "\u00a0"


def columns(text: str) -> int:
    """Return how many columns of a terminal a text takes."""
    if text.isascii():
        return len(text)
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else not unicodedata.combining(char) for char in text)


def wrapped(text: str, width: int | None, *, hanging: int | None = None) -> Iterator[str]:
    """Break a text into lines; those after the first are indented by `hanging`, by default to where the first begins.

    A no-break space is printed as a space.
    """
    if width is None:
        yield text.replace(NO_BREAK, " ")
        return
    indent = " " * (_hanging(text) if hanging is None else hanging)
    if 2 * len(indent) > width:
        indent = ""
    line = text[: len(text) - len(text.lstrip(" "))]
    room = width - max(len(line), len(indent))
    is_empty = True
    for word in text.lstrip(" ").split(" "):
        spaced = word if is_empty else f" {word}"
        if columns(line + spaced) <= width:
            line += spaced
            is_empty = False
            continue
        if not is_empty:
            yield line.replace(NO_BREAK, " ")
            line = indent
        for part in _parts(word, room):
            if columns(line + part) > width and line.strip(" "):
                yield line.replace(NO_BREAK, " ")
                line = indent
            line += part
        is_empty = False
    yield line.replace(NO_BREAK, " ")


def shortened(text: str, width: int) -> str:
    """Leave out the middle of a name that is longer: its front says what it is, its back which one."""
    if columns(text) <= width:
        return text
    back = (width - 1) // 3
    return f"{text[: width - 1 - back]}…{text[len(text) - back :]}"


def _hanging(text: str) -> int:
    head = _HEAD.match(text)
    assert head is not None
    return head.end() + (0 if head[1] else 2)


def _parts(word: str, room: int) -> Iterator[str]:
    """Cut a word after its marks, and where that is not enough anywhere."""
    if columns(word) <= room:
        yield word
        return
    for part in _PARTS.findall(word):
        while columns(part) > room:
            size = max(1, room)
            while size > 1 and columns(part[:size]) > room:
                size -= 1
            yield part[:size]
            part = part[size:]
        yield part
