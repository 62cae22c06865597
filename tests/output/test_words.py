"""Figures as people read them."""

import pytest

from taxbreak_vllm.output.words import duration, percent, ratio, span


@pytest.mark.parametrize(
    ("duration_ns", "said"),
    [
        (None, "–"),
        (0, "0.0 µs"),
        (999_949, "999.9 µs"),
        (1_000_000, "1.00 ms"),
        (99_994_999, "99.99 ms"),
        (123_456_789, "123.5 ms"),
        (12_345_678_901, "12.3 s"),
        (-2_500, "-2.5 µs"),
    ],
)
def test_a_duration_has_the_unit_that_suits_it(duration_ns, said):
    assert duration(duration_ns) == said


@pytest.mark.parametrize(("seconds", "said"), [(90, "90 s"), (900, "15 min"), (7200, "2 h"), (604800, "7 d")])
def test_a_window_has_its_largest_whole_unit(seconds, said):
    assert span(seconds) == said


def test_the_unknown_is_a_dash():
    assert (ratio(None), percent(None), duration(None)) == ("–", "–", "–")
    assert (ratio(0.12345), percent(0.5), duration(1500, sign="+")) == ("0.123", "50.0%", "+1.5 µs")
