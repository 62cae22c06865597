"""Texts are broken where that reads best, and nothing of them is lost."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taxbreak_vllm.output.text.wrap import columns, shortened, wrapped

WORDS = st.lists(st.text("ab_:/,.<漢é", min_size=1, max_size=40), min_size=1, max_size=8).map(" ".join)


@given(WORDS, st.integers(4, 50))
def test_no_line_is_wider_and_no_character_is_lost(text, width):
    lines = list(wrapped(text, width))

    assert max(map(columns, lines)) <= width
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")


@given(st.text("ab漢é", min_size=1, max_size=80), st.integers(4, 50))
def test_a_name_that_is_too_long_keeps_its_front_and_its_back(name, width):
    short = shortened(name, width)

    front, _, back = short.partition("…")
    assert (short == name) == (columns(name) <= width)
    assert name.startswith(front)
    assert name.endswith(back)


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("1. give it more room", ["1. give it more", "   room"]),
        ("fail    it is off again", ["fail    it is", "        off", "        again"]),
        ("   why: it is so now", ["   why: it is so", "     now"]),
        ("vllm::unified_attention", ["vllm::unified_", "  attention"]),
        ("a moe_forward_of_it_0", ["a", "  moe_forward_", "  of_it_0"]),
        ("aaaaaaaaaaaaaaaaaaaa", ["aaaaaaaaaaaaaa", "  aaaaaa"]),
    ],
)
def test_further_lines_begin_below_what_the_first_one_says(text, lines):
    assert list(wrapped(text, 16)) == lines


def test_without_a_width_a_text_is_one_line():
    assert list(wrapped("word " * 100, None)) == ["word " * 100]
