"""A table fits where it is shown: it has fewer columns there, and a figure is whole or not there at all."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taxbreak_vllm.output.text.table import Column, Kind, Table
from taxbreak_vllm.output.text.wrap import columns

FIGURES = st.sampled_from(["1.00 ms", "0.5 µs", "–", "12", "+105,811.6%"])
NAMES = st.text("ab_:<漢", min_size=1, max_size=90)


def made(kinds, rows) -> Table:
    table = Table([Column(f"t{at}", at % 3, kind) for at, kind in enumerate(kinds)], title="a title")
    for row in rows:
        table.add(*row)
    return table


@st.composite
def tables(draw):
    kinds = draw(st.lists(st.sampled_from(Kind), min_size=1, max_size=9))
    row = st.tuples(*(FIGURES if kind is Kind.FIGURE else NAMES for kind in kinds))
    return made(kinds, draw(st.lists(row, min_size=1, max_size=4)))


@given(tables(), st.integers(60, 200))
def test_no_line_is_wider_than_the_terminal(table, width):
    least = sum(13 for column in table.columns if column.kind is Kind.FIGURE and column.worth == 2)
    assert all(columns(line) <= max(width, least) for line in table.lines(width))


@given(tables(), st.integers(20, 200))
def test_no_figure_is_cut(table, width):
    whole = {cell for row in table.rows for cell in row}
    words = [word for line in table.lines(width) for word in re.split(" {2,}", line.strip())]

    assert {word for word in words if word[:1] in tuple("0123456789+–")} <= whole


@given(tables())
def test_a_pipe_is_told_everything_a_row_a_line(table):
    *_, last = lines = list(table.lines(None))

    assert len(lines) == 3 + len(table.rows)
    assert all(cell in last for cell in table.rows[-1])


WIDE = made([Kind.NAME, Kind.FIGURE, Kind.FIGURE], [("a name that is long enough", "1.00 ms", "2.00 ms")])


@pytest.mark.parametrize(
    ("width", "titles"), [(None, ["t0", "t1", "t2"]), (50, ["t0", "t1", "t2"]), (20, ["t1", "t2"]), (9, ["t2"])]
)
def test_the_columns_of_least_worth_are_left_out_first(width, titles):
    assert list(WIDE.lines(width))[1].split() == titles


def test_columns_of_equal_worth_go_together():
    table = Table([Column("a", 2), Column("b", 1), Column("c", 1)])
    table.add("11 ms", "22 ms", "33 ms")

    assert [line.split()[0::2] for line in table.lines(16)][-1] == ["11"]


def test_a_column_that_knows_nothing_goes_before_any_other():
    table = Table([Column("a", 9), Column("b", 1)])
    table.add("–", "22 ms")

    assert list(table.lines(6))[-1] == "22 ms"
    assert list(table.lines(8))[-1] == "–  22 ms"


def test_a_column_without_a_word_in_it_is_not_shown():
    table = Table([Column("name", 2, Kind.NAME), Column("status", 1, Kind.NAME)])
    table.add("one", "")

    assert list(table.lines(80)) == ["name", "────", "one"]


def test_a_long_name_loses_its_middle_and_prose_nothing():
    table = Table([Column("name", 1, Kind.NAME), Column("prose", 1, Kind.PROSE)])
    table.add("a_front_" + "m" * 100 + "_the_back", "words " * 20)

    text = "\n".join(table.lines(40))

    assert "a_front_" in text
    assert "back" in text
    assert text.count("…") == 1
    assert text.count("words") == 20


def test_a_name_out_of_a_file_moves_no_cursor():
    table = Table([Column("name", 1, Kind.NAME)])
    table.add("\x1b[31mred\n")

    assert list(table.lines(80))[-1] == "\\x1b[31mred\\n"
