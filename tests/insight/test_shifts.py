"""A change over hosts has an interval that holds it, and chance is called a change once in a thousand at most."""

import math

import numpy as np
import pytest

from taxbreak_vllm.insight import shifts
from taxbreak_vllm.insight.shifts import is_change, shift_of


def test_ten_percent_more_on_every_host_is_ten_percent_more():
    shift = shift_of(np.full(12, math.log(1.1)))

    assert shift.change == pytest.approx(0.1)
    assert shift.p_value == pytest.approx(2 * 0.5**12)
    assert is_change(shift)


def test_of_an_hdbi_it_is_the_difference():
    assert shift_of(np.array([-0.2, -0.1, -0.3]), is_ratio=False).change == pytest.approx(-0.2)


def test_two_hosts_prove_nothing_and_the_reason_says_so():
    shift = shift_of(np.array([0.1, 0.1, np.nan]))

    assert (shift.change, shift.p_value, shift.num_hosts) == (None, None, 2)
    assert "2 hosts" in shift.reason
    assert not is_change(shift)


@pytest.mark.parametrize(("t", "freedom", "beyond"), [(6.314, 1, 0.10), (8.610, 4, 0.001), (4.781, 9, 0.001)])
def test_students_t_is_as_tables_have_it(t, freedom, beyond):
    assert 1 - shifts._within_t(t, freedom) == pytest.approx(beyond, rel=2e-3)


@pytest.mark.parametrize(("num", "outside"), [(11, 13), (20, 60), (30, 151)])
def test_the_interval_of_ranks_is_as_tables_have_it(num, outside):
    """Critical values of the signed-rank sum, one-sided 5 %: 13, 60, 151 (Wilcoxon and Wilcox 1964)."""
    assert shifts._num_outside(num) == outside


@pytest.mark.parametrize("deviations", [1.645, 3.29])
def test_exact_and_normal_ranks_agree_where_one_takes_over(deviations):
    exact, normal = (
        shifts._upper_tail(
            num, round(num * (num + 1) / 4 + deviations * math.sqrt(num * (num + 1) * (2 * num + 1) / 24))
        )
        for num in (shifts._MAX_EXACT, shifts._MAX_EXACT + 1)
    )

    assert exact == pytest.approx(normal, rel=0.35)
    assert shifts._num_outside(61) - shifts._num_outside(60) in range(10, 40)


@pytest.mark.parametrize("num", [3, 11, 20, 70])
@pytest.mark.parametrize("tails", ["normal", "long"])
def test_intervals_hold_the_change_nine_times_of_ten(num, tails):
    draw = np.random.default_rng(num)
    noise = draw.standard_normal((800, num)) if tails == "normal" else draw.standard_t(3, (800, num))

    found = [shift_of(0.03 + 0.01 * row, is_ratio=False) for row in noise]

    held = sum(one.low <= 0.03 <= one.high for one in found) / len(found)
    assert 0.87 <= held <= (0.94 if tails == "normal" else 0.96)


@pytest.mark.parametrize("num", [4, 12, 20])
def test_chance_is_called_a_change_once_in_a_thousand(num):
    noise = 0.02 * np.random.default_rng(num).standard_t(4, (1500, num))

    assert sum(is_change(shift_of(row)) for row in noise) <= 4


def test_a_host_in_another_mood_moves_a_change_over_twenty_hosts_little():
    differences = 0.03 + 0.005 * np.random.default_rng(1).standard_normal(20)
    differences[7] = 2.0

    shift = shift_of(differences)

    assert is_change(shift)
    assert shift.high < 0.04
