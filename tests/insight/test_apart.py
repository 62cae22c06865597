"""A slow host among like ones is found with what sets it apart; hosts that are alike are none, and few tell nothing."""

import numpy as np
import pytest

from taxbreak_vllm.insight.apart import MIN_LIKE, differences, is_apart, scores, threshold


def levels(num, *, seed, spread=0.01):
    return spread * np.random.default_rng(seed).standard_normal(num)


@pytest.mark.parametrize("num", [8, 12, 20, 100])
def test_like_hosts_are_apart_once_in_a_thousand(num):
    apart = [is_apart(levels(num, seed=seed, spread=0.1)).mean() for seed in range(20_000 // num)]

    assert np.mean(apart) <= 2e-3


def test_the_fewer_hosts_the_farther_off_one_must_be():
    assert threshold(8) > threshold(12) > threshold(20) > threshold(60) > 3.29


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


def test_what_sets_a_host_apart_is_what_others_do_not_have():
    facts = {"governor": ["performance"] * 9 + ["powersave"], "CPU": ["A"] * 5 + ["B"] * 5}
    numbers = {"run-queue wait": [0.01] * 9 + [0.3], "throttled": [None] * 10}

    found = list(differences(facts, numbers, 9))

    assert [(one.fact, one.own, one.others, one.num_others) for one in found] == [
        ("governor", "powersave", "performance", 9),
        ("run-queue wait", "0.3", "0.01", 9),
    ]
    assert list(differences(facts, numbers, 0)) == []
