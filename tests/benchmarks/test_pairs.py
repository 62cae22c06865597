"""What a server costs is told from starts, not from rounds, and its interval holds the truth as often as it says."""

import random
from math import log

import pytest
from pairs import change, coverage, differences


def starts(num, *, seed, cost=0.0, spread=0.07, rounds=4):
    """Throughput of some starts of a server: each its own, rounds of one hardly differ."""
    source = random.Random(seed)
    return [
        [100 * own * source.lognormvariate(0, 0.005) for _ in range(rounds)]
        for own in ((1 - cost) * source.lognormvariate(0, spread) for _ in range(num))
    ]


def test_a_start_is_one_difference_however_many_rounds_it_had():
    found = differences([[90, 100, 110], [50, 50, 50]], [[100, 100, 100], [100, 100, 100]])

    assert found == [0.0, pytest.approx(log(0.5))]


def test_a_cost_well_above_what_starts_differ_by_is_found():
    found = change(differences(starts(12, seed=1, cost=0.3), starts(12, seed=2)))

    assert found.low < -0.3 < found.high < 0


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    held = [
        found.low <= 0 <= found.high
        for seed in range(300)
        for found in [change(differences(starts(12, seed=2 * seed), starts(12, seed=2 * seed + 1)), resamples=200)]
    ]

    assert 0.92 <= sum(held) / len(held) <= 1


def test_coverage_is_what_alike_servers_tell_of_it():
    alike = differences(starts(12, seed=5), starts(12, seed=6))

    assert 0.9 <= coverage(alike) <= 1
    assert coverage(alike) == coverage(alike)
