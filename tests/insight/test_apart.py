"""A slow host among like ones is found with what sets it apart; hosts that are alike are none, and few tell nothing."""

import numpy as np
import pytest

from taxbreak_vllm.insight.apart import MIN_LIKE, differences, host_levels, is_apart, scores, threshold


def levels(num, *, seed, spread=0.01):
    return spread * np.random.default_rng(seed).standard_normal(num)


@pytest.mark.parametrize("num", [8, 12, 20, 100])
def test_like_hosts_are_apart_once_in_a_thousand(num):
    apart = [is_apart(levels(num, seed=seed, spread=0.1)).mean() for seed in range(20_000 // num)]

    assert np.mean(apart) <= 2e-3


def test_the_fewer_hosts_the_farther_off_one_must_be():
    assert threshold(8) > threshold(12) > threshold(20) > threshold(60) > 3.29


def test_the_more_starts_tell_of_a_host_the_nearer_one_may_be():
    assert threshold(20, 1) > threshold(20, 2) == threshold(20, 50) > 3.29


@pytest.mark.parametrize(("more", "least"), [(0.05, 45), (0.10, 50)])
def test_a_slow_host_is_found_among_twenty(more, least):
    found = []
    for seed in range(50):
        level = levels(20, seed=seed, spread=0.006)
        level[3] = np.median(level) + more
        found.append(is_apart(level))

    assert sum(one[3] for one in found) >= least


def test_one_slow_host_in_five_hides_none_of_the_others():
    found = []
    for seed in range(50):
        level = levels(20, seed=seed, spread=0.006)
        level[:4] += 0.10
        found.append(is_apart(level)[:4].mean())

    assert np.mean(found) >= 0.8


def test_of_few_hosts_nothing_is_told():
    level = np.zeros(MIN_LIKE)
    level[-1] = np.nan

    assert np.isnan(scores(level)).all()
    assert not is_apart(level).any()


def test_hosts_that_are_all_the_same_leave_a_little_room():
    level = np.zeros(12)
    level[5] = 0.01

    assert not is_apart(level).any()


def test_a_host_of_few_captures_is_believed_less():
    level, error = levels(20, seed=4), np.full(20, 0.001)
    level[3] = 0.08
    sure = is_apart(level, error)[3]
    error[3] = 0.05

    assert sure
    assert not is_apart(level, error)[3]


def captures(starts, *, seed, num=30, spread=0.01, slow=None, odd=None):
    """Captures of hosts with so many starts each: value, size, kind, start and host; starts differ by `spread`."""
    draw = np.random.default_rng(seed)
    host = np.repeat(np.arange(len(starts)), np.array(starts) * num)
    start = np.repeat(np.arange(sum(starts)), num)
    level = spread * draw.standard_normal(sum(starts))
    value = level[start] + 0.02 * draw.standard_normal(len(start))
    for each, more in (slow or {}).items():
        value[host == each] += more
    for each, more in (odd or {}).items():
        value[start == each] += more
    return value, draw.uniform(2, 3, len(start)), np.zeros(len(start), dtype=int), start, host


@pytest.mark.parametrize(("num_starts", "least", "most"), [(1, 0, 20), (2, 30, 49), (4, 48, 50)])
def test_the_more_starts_a_host_has_the_surer_is_what_they_tell(num_starts, least, most):
    found = []
    for seed in range(50):
        found.append(is_apart(*host_levels(*captures([num_starts] * 20, seed=seed, slow={3: 0.05}), 20)))

    assert least <= sum(one[3] for one in found) <= most
    assert sum(one.sum() - one[3] for one in found) <= 4


@pytest.mark.parametrize("num_starts", [1, 2, 3, 4, 7])
def test_like_hosts_of_several_starts_are_apart_once_in_a_thousand(num_starts):
    apart = [
        is_apart(*host_levels(*captures([num_starts] * 12, seed=seed, spread=0.05), 12)).mean() for seed in range(1000)
    ]

    assert np.mean(apart) <= 2e-3


def test_one_odd_start_of_five_sets_no_host_apart():
    told = host_levels(*captures([5] * 12, seed=1, odd={0: 0.2}), 12)

    assert abs(told.level[0]) < 0.02
    assert not is_apart(*told).any()


def test_a_host_of_one_start_is_believed_less_than_those_of_many():
    _, error, num_starts = host_levels(*captures([1] + [6] * 11, seed=2), 12)

    assert num_starts.tolist() == [1] + [6] * 11
    assert error[0] == pytest.approx(0.01, rel=0.5)
    assert error[0] > 2 * error[1:].max()


def test_a_host_is_held_against_others_in_kinds_that_enough_of_them_have():
    value, size, kind, start, host = captures([1] * 12, seed=3)
    kind[host < MIN_LIKE - 1] = 1  # seven hosts have a kind, five the other

    level, error, num_starts = host_levels(value, size, kind, start, host, 13)

    assert np.isnan(level).all()
    assert np.isnan(error).all()
    assert not num_starts.any()


def test_what_sets_a_host_apart_is_what_others_do_not_have():
    facts = {"governor": ["performance"] * 9 + ["powersave"], "CPU": ["A"] * 5 + ["B"] * 5}
    numbers = {"run-queue wait": [0.01] * 9 + [0.3], "throttled": [None] * 10}

    found = list(differences(facts, numbers, 9))

    assert [(one.fact, one.own, one.others, one.num_others) for one in found] == [
        ("governor", "powersave", "performance", 9),
        ("run-queue wait", "0.3", "0.01", 9),
    ]
    assert list(differences(facts, numbers, 0)) == []
