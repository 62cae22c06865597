"""Text for people on standard output. In: lines and tables. Out: what fits where it is read.

`COLUMNS` says how wide that is, else a terminal does. A pipe has no bound then: a row, a note, a sentence is one line
and nothing is shortened, so that `grep` finds it whole. There are no colors anywhere.
"""

import os
import sys

from taxbreak_vllm.output.text.names import visible
from taxbreak_vllm.output.text.table import Table
from taxbreak_vllm.output.text.wrap import wrapped

_MAX_PROSE = 100  # longer lines are hard to read, however wide the terminal


def print_text(*shown: str | Table) -> None:
    """Print lines and tables, an empty line around each table."""
    width = output_width()
    prose = width and min(width, _MAX_PROSE)
    lines: list[str] = []
    for place, each in enumerate(shown):
        if place and (isinstance(each, Table) or isinstance(shown[place - 1], Table)):
            lines.append("")
        lines += each.lines(width) if isinstance(each, Table) else wrapped(visible(each), prose)
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()


def output_width() -> int | None:
    """Return how many columns the output has, None where nothing bounds them."""
    told = os.environ.get("COLUMNS", "")
    if told.isdecimal() and int(told) > 0:
        return int(told)
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or None
    except (OSError, ValueError):  # no terminal, or no file
        return None
