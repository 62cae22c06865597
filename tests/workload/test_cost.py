"""What steps cost is found where it was put, stalls or not, and the noise drawn about it is the noise there was."""

import random

import numpy as np
import pytest

from taxbreak_vllm.model.errors import WorkloadError
from taxbreak_vllm.workload.cost import (
    MIN_STEPS,
    WORK,
    Noise,
    check_delay,
    check_stalls,
    fit_cost,
    least_absolute_deviations,
)
from taxbreak_vllm.workload.steps import Steps

BEFORE, DEVICE, AFTER = [50e3, 0, 900, 40, 0], [2e6, 3000, 50e3, 20e3, 15], [80e3, 10, 0, 700, 0]
MS = 10**6


def made_up(num=4000, *, stalls=0, stall_ms=40, noise=0.0, modes=("none",)):
    """Steps of known cost: every third has a prompt, `stalls` of them take far longer."""
    draw = np.random.default_rng(7)
    prompts = np.where(np.arange(num) % 3 == 0, draw.integers(1, 5, num), 0)
    work = np.stack(
        [prompts * draw.integers(20, 200, num), prompts, draw.integers(1, 9, num), draw.integers(0, 5000, num)], axis=1
    )
    x = np.column_stack([np.ones(num), work])
    parts = np.stack([x @ np.array(beta) for beta in (BEFORE, DEVICE, AFTER)], axis=1)
    parts *= 1 + noise * draw.standard_normal(num)[:, None]
    parts[draw.choice(num, stalls, replace=False), 1] += stall_ms * MS
    parts = parts.astype(np.int64)
    end = np.cumsum(parts.sum(axis=1))
    return Steps(work, [modes[place % len(modes)] for place in range(num)], parts, end - parts.sum(axis=1), end)


def test_coefficients_are_found_and_stalls_do_not_bend_them():
    cost = fit_cost(made_up(stalls=60, noise=0.02))

    expected = np.array([BEFORE, DEVICE, AFTER])
    for work in ([0, 0, 8, 4000], [400, 4, 2, 100], [0, 0, 1, 0]):
        assert cost.parts_ns("none", *work) == pytest.approx(expected @ np.array([1, *work]), rel=0.03)
    assert cost.fit.stalls.num == pytest.approx(60, abs=3)
    assert cost.fit.stalls.median_ns == pytest.approx(40 * MS, rel=0.05)
    assert cost.fit.median_error_ratio < 0.03


def test_a_recording_that_grows_slower_says_by_how_much():
    steady, slower = made_up(noise=0.05), made_up(noise=0.05)
    slower.parts_ns[2000:] += slower.parts_ns[2000:] // 10

    assert fit_cost(steady).fit.drift_ratio < 0.005
    assert fit_cost(slower).fit.drift_ratio == pytest.approx(0.05, abs=0.01)


def test_nothing_costs_less_the_more_of_it_there_is():
    x = np.column_stack([np.ones(300), np.arange(300.0)])

    assert least_absolute_deviations(x, 1e6 - 1000 * np.arange(300.0)) == pytest.approx([850_500, 0], rel=0.01)


def test_what_grows_slower_or_faster_than_its_number_is_followed():
    steps = made_up(noise=0.02)
    decodes, prompts = steps.work[:, 2], steps.work[:, 0]
    took = 1e6 + 2e6 * decodes**0.6 + 9_000 * prompts**1.2
    steps.parts_ns[:, 1] = took * (1 + 0.02 * np.random.default_rng(2).standard_normal(len(steps)))

    cost = fit_cost(steps)

    for work in ([0, 0, 1, 0], [0, 0, 3, 0], [0, 0, 8, 0], [60, 1, 1, 0], [500, 3, 5, 0]):
        device = 1e6 + 2e6 * work[2] ** 0.6 + 9_000 * work[0] ** 1.2
        assert cost.parts_ns("none", *work)[1] == pytest.approx(device, rel=0.05), work
    assert {name.partition(">")[0] for name in cost.fit.terms[0].coefficients_ns} == {"step", *WORK}


def test_each_graph_mode_has_its_own():
    steps = made_up(modes=("full", "none"))
    slow = np.array([mode == "none" for mode in steps.graph_mode])
    steps.parts_ns[slow] *= 2

    cost = fit_cost(steps)

    assert sum(cost.parts_ns("none", 0, 0, 4, 0)) == pytest.approx(2 * sum(cost.parts_ns("full", 0, 0, 4, 0)), rel=0.02)


def test_drawn_stalls_take_the_share_of_time_that_they_took():
    cost = fit_cost(made_up(stalls=80))
    noise, busy, stalled = Noise(cost, seed=3), 0.0, 0.0
    for _ in range(40_000):
        busy += 2.2 * MS
        stalled += sum(noise.stall_ns(2.2 * MS))

    expected = cost.fit.stalls.time_ratio
    assert stalled / (busy + stalled) == pytest.approx(expected, rel=0.25)


@pytest.mark.parametrize("place", [3, 1000, 3990])
@pytest.mark.parametrize("num", [1, 2])
def test_few_stalls_are_as_rare_as_they_were_wherever_they_fell(place, num):
    steps = made_up()
    steps.parts_ns[place : place + num, 1] += 400 * MS
    cost = fit_cost(steps)
    assert cost.fit.stalls.num == num
    step_ns = sum(cost.parts_ns("none", 80, 1, 4, 2500))

    stalled, busy = 0.0, 0.0
    for seed in range(20):  # each sees some of a recording's length
        noise = Noise(cost, seed)
        for _ in range(1500):
            busy += step_ns
            stalled += sum(noise.stall_ns(step_ns))

    assert stalled / (busy + stalled) == pytest.approx(cost.fit.stalls.time_ratio, rel=0.6)


def test_drawn_noise_has_the_mean_of_what_was_seen_and_comes_in_runs():
    steps = made_up()
    slow = (np.arange(len(steps)) // 50) % 2 == 1  # a neighbour that comes and goes
    steps.parts_ns[slow] = (steps.parts_ns[slow] * 1.3).astype(np.int64)
    cost = fit_cost(steps)
    noise = Noise(cost, seed=1)

    drawn = np.array([np.mean(noise.factors(False)) for _ in range(8000)])
    took = steps.total_ns / np.array([sum(cost.parts_ns("none", *work)) for work in steps.work.tolist()])

    assert drawn.mean() == pytest.approx(took[steps.work[:, 1] == 0].mean(), rel=0.02)
    assert np.corrcoef(drawn[:-1], drawn[1:])[0, 1] > 0.5


def test_two_seeds_draw_otherwise_and_one_alike():
    cost = fit_cost(made_up(noise=0.1))

    def drawn(seed):
        noise = Noise(cost, seed)
        return [noise.factors(random.Random(5).random() < 0.5) for _ in range(50)]

    assert drawn(1) == drawn(1) != drawn(2)


def test_too_few_steps_and_too_many_stalls_are_refused():
    with pytest.raises(WorkloadError, match=f"{MIN_STEPS} are needed"):
        fit_cost(made_up(num=MIN_STEPS - 1))
    check_stalls(fit_cost(made_up(stalls=5)))
    with pytest.raises(WorkloadError, match="stalls take"):
        check_stalls(fit_cost(made_up(stalls=200)))


def test_no_more_is_taken_off_the_loop_than_it_takes():
    cost = fit_cost(made_up())  # 50 + 80 + 0.7 µs

    check_delay(cost, -130e3)
    check_delay(cost, +9 * MS)
    with pytest.raises(WorkloadError, match=r"loop takes 0\.131 ms"):
        check_delay(cost, -132e3)
    check_delay(cost, -132e3, times=1.1)
