"""A change at a deploy is found within hosts; levels of hosts, restarts, load and time of day are none."""

import numpy as np
import pytest

from taxbreak_vllm.insight.changes import Observations, medians, move_over_time, moves_at_deploys
from taxbreak_vllm.insight.shifts import is_change

DAY_NS = 86_400 * 10**9


def fleet(*, change=0.0, num_hosts=20, num=30, seed=0, between=0.3, restart=0.01, noise=0.06, at=0.5, load=None):
    """Captures over a week of hosts that go from version 0 to 1 at a time each; logarithms of a figure.

    Hosts differ by `between`, starts of one host by `restart`, captures by `noise`, with a tail.
    """
    draw = np.random.default_rng(seed)
    host = np.repeat(np.arange(num_hosts), num)
    when = np.tile(np.linspace(0, 1, num, endpoint=False), num_hosts) + draw.uniform(0, 0.5 / num, num_hosts * num)
    version = (when >= np.repeat(at + draw.uniform(-0.1, 0.1, num_hosts), num)).astype(np.int64)
    size = np.full(len(host), 4.0) if load is None else load(when, draw)
    level = (between * draw.standard_normal(num_hosts))[host]
    start = restart * draw.standard_normal((num_hosts, 2))[host, version]
    value = level + start + change * version + noise * draw.standard_t(4, len(host)) + 0.5 * (size - 4.0)
    return Observations(host, host, version, (when * 7 * DAY_NS).astype(np.int64), size, value)


def only(seen):
    (move,) = moves_at_deploys(seen)
    return move


@pytest.mark.parametrize("change", [0.03, 0.05, -0.10])
def test_a_change_at_a_deploy_is_found_over_twenty_hosts(change):
    found = [only(fleet(change=change, num=120, seed=seed)) for seed in range(30)]

    assert sum(is_change(move.shift) for move in found) >= (27 if abs(change) < 0.04 else 30)
    assert np.median([move.shift.change for move in found]) == pytest.approx(np.expm1(change), abs=0.004)
    assert {(move.before, move.after) for move in found} == {(0, 1)}


def test_noise_is_none():
    assert sum(is_change(only(fleet(seed=seed)).shift) for seed in range(400)) <= 2


def test_its_time_is_from_the_last_of_the_old_to_the_first_of_the_new():
    move = only(fleet(change=0.05))

    assert 0.35 < move.from_ns / (7 * DAY_NS) < 0.5 < move.to_ns / (7 * DAY_NS) < 0.65


def test_more_load_within_a_bucket_is_no_change():
    busier = [
        only(fleet(seed=seed, load=lambda when, draw: 3.8 + 0.4 * when + draw.uniform(0, 0.4, len(when))))
        for seed in range(20)
    ]

    assert sum(is_change(move.shift) for move in busier) == 0
    assert np.median([abs(move.shift.change) for move in busier]) < 0.01


def test_a_way_back_is_a_change_of_its_own():
    there = fleet(change=0.1, at=0.3)
    is_back = there.at_ns > 0.7 * 7 * DAY_NS
    value = np.where(is_back & (there.version == 1), there.value - 0.1, there.value)
    seen = Observations(there.host, there.place, np.where(is_back, 0, there.version), there.at_ns, there.size, value)

    moves = {(move.before, move.after): move.shift.change for move in moves_at_deploys(seen)}

    assert moves[0, 1] == pytest.approx(0.105, abs=0.02)
    assert moves[1, 0] == pytest.approx(-0.095, abs=0.02)


def test_gpus_of_one_host_count_as_one():
    seen = fleet(change=0.1, num_hosts=16)
    same = Observations(seen.host // 8, seen.place, seen.version, seen.at_ns, seen.size, seen.value)

    shift = only(same).shift

    assert (shift.num_hosts, shift.change) == (2, None)


def test_a_change_that_no_version_explains_is_found_with_its_time():
    found = [fleet(seed=seed, at=2.0) for seed in range(20)]
    slower = [
        Observations(f.host, f.place, f.version, f.at_ns, f.size, f.value + 0.05 * (f.at_ns > 4 * DAY_NS))
        for f in found
    ]

    moves = [move_over_time(seen) for seen in slower]

    assert sum(move is not None and is_change(move.shift) for move in moves) >= 17
    assert np.median([move.to_ns for move in moves if move]) == pytest.approx(4 * DAY_NS, abs=DAY_NS / 2)


def test_no_time_is_found_in_noise_nor_in_what_a_version_explains():
    drawn = [move_over_time(fleet(seed=seed, at=2.0, num=20)) for seed in range(100)]
    deployed = [move_over_time(fleet(seed=seed, change=0.2, num=20)) for seed in range(50)]

    assert sum(move is not None and is_change(move.shift) for move in [*drawn, *deployed]) <= 1


def test_days_and_nights_that_all_hosts_share_are_no_change():
    found = []
    for seed in range(40):
        seen = fleet(seed=seed, at=2.0, num=48)
        wave = 0.05 * np.sin(2 * np.pi * seen.at_ns / DAY_NS)
        found.append(
            move_over_time(Observations(seen.host, seen.place, seen.version, seen.at_ns, seen.size, seen.value + wave))
        )

    assert sum(move is not None and is_change(move.shift) for move in found) <= 1


def test_figures_that_are_not_known_are_left_out():
    seen = fleet(num_hosts=5)
    unknown = Observations(seen.host, seen.place, seen.version, seen.at_ns, seen.size, np.full(len(seen.host), np.nan))

    assert list(moves_at_deploys(unknown)) == []
    assert move_over_time(unknown) is None


def test_medians_of_groups():
    level, count = medians(np.array([2, 0, 2, 2, 0]), np.array([5.0, 1.0, 7.0, 9.0, 2.0]), 4)

    assert level[[0, 2]].tolist() == [1.5, 7.0]
    assert np.isnan(level[[1, 3]]).all()
    assert count.tolist() == [2, 0, 3, 0]
