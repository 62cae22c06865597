"""Tables that fit where they are shown. In: columns, each with its worth, and rows of words. Out: lines.

A figure is never cut and never wrapped: where not all columns fit, those of least worth are left out. Names and prose
share what width is left, and go on below. Without a bound of the width, as in a pipe, a row is one line.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from itertools import zip_longest

from taxbreak_vllm.output.text.names import visible
from taxbreak_vllm.output.text.wrap import columns, shortened, wrapped
from taxbreak_vllm.output.words import UNKNOWN

_GAP = "  "
_LEAST = 18  # columns that a name or prose is worth being shown in
_NAME_LINES = 2  # a longer name loses its middle


class Kind(Enum):
    """What a column holds: figures are aligned to the right, names are shortened where they are long, prose is not."""

    FIGURE = auto()
    NAME = auto()
    PROSE = auto()


@dataclass(frozen=True, slots=True)
class Column:
    """A column; those of equal worth are shown together or not at all."""

    title: str
    worth: int
    kind: Kind = Kind.FIGURE


@dataclass(slots=True)
class Table:
    """Rows below the titles of their columns, one cell each; a table whose columns have no titles has no head."""

    columns: Sequence[Column]
    title: str = ""
    rows: list[tuple[str, ...]] = field(default_factory=list)

    def add(self, *cells: str) -> None:
        """Add a row."""
        if len(cells) != len(self.columns):
            raise ValueError(f"{len(cells)} cells for {len(self.columns)} columns")
        self.rows.append(tuple(visible(cell) for cell in cells))

    def lines(self, width: int | None) -> Iterator[str]:
        """Lay the table out in this many columns of a terminal."""
        if self.title:
            yield from wrapped(visible(self.title), width)
        shown = self._fitting(width)
        widths = self._widths(shown, width)
        titles = [self.columns[at].title for at in shown]
        if any(titles):
            yield from self._row(shown, widths, [column.title for column in self.columns])
            yield _GAP.join("─" * size for size in widths)
        for row in self.rows:
            yield from self._row(shown, widths, row)

    def _fitting(self, width: int | None) -> list[int]:
        """Choose the columns that fit; one without a word in any row is none."""
        shown = [at for at in range(len(self.columns)) if any(row[at] for row in self.rows) or not self.rows]
        if width is None:
            return shown
        worth = {at: self._worth(at) for at in shown}
        while len(set(worth.values())) > 1 and _total(self._least(at) for at in worth) > width:
            least = min(worth.values())
            worth = {at: value for at, value in worth.items() if value > least}
        return list(worth)

    def _worth(self, at: int) -> int:
        """Return the worth of a column, less than any other's where it knows nothing."""
        column = self.columns[at]
        is_unknown = column.kind is Kind.FIGURE and self.rows and all(row[at] in ("", UNKNOWN) for row in self.rows)
        return column.worth - 1000 * bool(is_unknown)

    def _natural(self, at: int) -> int:
        return max(columns(text) for text in (self.columns[at].title, *(row[at] for row in self.rows)))

    def _least(self, at: int) -> int:
        natural = self._natural(at)
        return natural if self.columns[at].kind is Kind.FIGURE else min(natural, _LEAST)

    def _widths(self, shown: Sequence[int], width: int | None) -> list[int]:
        """Give figures what they take, and share the rest among the others so that none has more than it needs."""
        sizes = {at: self._natural(at) for at in shown}
        if width is not None:
            room = width - _total(sizes[at] if self.columns[at].kind is Kind.FIGURE else 0 for at in shown)
            texts = sorted((at for at in shown if self.columns[at].kind is not Kind.FIGURE), key=lambda at: sizes[at])
            for place, at in enumerate(texts):
                sizes[at] = max(1, min(sizes[at], room // (len(texts) - place)))
                room -= sizes[at]
        return [sizes[at] for at in shown]

    def _row(self, shown: Sequence[int], widths: Sequence[int], cells: Sequence[str]) -> Iterator[str]:
        parts = []
        for at, size in zip(shown, widths, strict=True):
            cell, kind = cells[at], self.columns[at].kind
            if kind is Kind.FIGURE:
                parts.append([" " * (size - columns(cell)) + cell])
                continue
            if kind is Kind.NAME:
                cell = shortened(cell, _NAME_LINES * size)
            parts.append(list(wrapped(cell, size, hanging=2 if kind is Kind.NAME and size > 8 else 0)))
        for line in zip_longest(*parts, fillvalue=""):
            yield _GAP.join(
                text + " " * (size - columns(text)) for text, size in zip(line, widths, strict=True)
            ).rstrip()


def _total(sizes: "Iterator[int]") -> int:
    found = list(sizes)
    return sum(found) + len(_GAP) * max(0, len(found) - 1)
