"""A band holds what it should as often as it should, on the side on which the checks were off."""

import random
from math import exp

import pytest

from taxbreak_vllm.model.workload import Validation
from taxbreak_vllm.workload.bands import BESIDES, KNOWN_STEPS, band_of, of_steps, spread_of_steps


def check(**off):
    return Validation(name="half predicts half", passed=True, said="", error_ratio=off)


def test_nine_of_ten_runs_lie_in_the_band_where_runs_vary_as_draws_do_and_besides():
    source, held = random.Random(3), 0
    for _ in range(2000):
        draws = [exp(source.gauss(0, 0.05)) for _ in range(20)]
        low, high = band_of("ttft_mean", draws, ())
        held += low <= exp(source.gauss(0, 0.05)) <= high

    assert 0.85 <= held / 2000 <= 0.93


def test_without_noise_a_band_is_what_servers_were_off_besides():
    low, high = band_of("tpot_p99", [2.0, 2.0, 2.0], ())

    assert (low, high) == pytest.approx((2 / (1 + 1.645 * BESIDES["p99"]), 2 * (1 + 1.645 * BESIDES["p99"])), rel=1e-3)


def test_what_a_check_told_too_little_the_band_reaches_up_to_and_not_the_other_way():
    plain = band_of("ttft_mean", [1.0, 1.0], ())
    low, high = band_of("ttft_mean", [1.0, 1.0], (check(ttft_mean=-0.2), check(ttft_mean=-0.1)))

    assert low == pytest.approx(plain[0])
    assert high == pytest.approx(plain[1] / 0.8)


def test_steps_are_known_as_well_as_the_checks_met_their_time():
    assert spread_of_steps((), 0.001) == KNOWN_STEPS
    assert spread_of_steps((check(tpot_mean=-0.03), check(tpot_mean=0.01)), 0.02) == pytest.approx(0.03)
    assert spread_of_steps((check(tpot_mean=-0.03),), 0.05) == 0.05
    times = [of_steps(seed, 5, 0.03) for seed in range(5)]
    assert times[2] == 1.0
    assert sum(times) == pytest.approx(5)
    assert (sum((each - 1) ** 2 for each in times) / 4) ** 0.5 == pytest.approx(0.03, rel=0.1)


def test_what_cannot_be_told_from_draws_is_as_they_are():
    assert band_of("ttft_mean", [0.0, 1.0], ()) == (0.0, 1.0)
    assert band_of("ttft_mean", [1.0], ()) == (1.0, 1.0)
