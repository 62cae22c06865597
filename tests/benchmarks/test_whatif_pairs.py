"""What a change makes of a step is told from runs beside each other, whatever the machine does meanwhile."""

import random
from dataclasses import replace
from math import exp, sin

import pytest
from turned import Turn
from whatif_pairs import ALIKE, Pair, Trial, _sum_up

from taxbreak_vllm.whatif.on_host import MISSED


def trial(num, *, seed, ratio=1.0, drift=0.5, spread=0.02):
    """Runs in the order ABBAABBA on a machine whose speed drifts by as much up and down, and that is noisy besides."""
    source, runs = random.Random(seed), []
    for number in range(num):
        at = [2 * number, 2 * number + 1]
        before, after = (
            1e6 * exp(drift * sin(place / 9)) * source.lognormvariate(0, spread)
            for place in (at if number % 2 == 0 else at[::-1])
        )
        runs.append((round(before), round(ratio * after), round((ratio - 1) * after)))
    return Trial(turn=Turn(), runs=runs)


def test_a_ratio_is_found_on_a_machine_that_drifts_by_more():
    found = trial(60, seed=1, ratio=1.1)

    assert found.ratio == pytest.approx(1.1, rel=0.02)
    assert max(before for before, _, _ in found.runs) > 2 * min(before for before, _, _ in found.runs)


def test_a_ratio_is_off_by_its_noise_at_most_nine_times_of_ten():
    held = [abs(found.ratio - 1) <= found.noise for seed in range(400) for found in [trial(40, seed=seed, drift=0.0)]]

    assert 0.85 <= sum(held) / len(held) <= 0.95


def pair(change="linear", *, measured, predicted=None, wide=0.1, refused=None, noise=0.0):
    low, high = (None, None) if predicted is None else (predicted - wide, predicted + wide)
    said = {"predicted": predicted, "low": low, "high": high, "refused": refused}
    return Pair(model="m", change=change, asked="", step_ms=1.0, measured=measured, noise=noise, **said)


def test_what_is_summed_up_are_changes_that_were_answered():
    alike = pair(ALIKE, measured=1.3, predicted=1.0)
    found = _sum_up([alike, pair(measured=2.0, predicted=1.5, wide=0.4), pair(measured=1.0, predicted=1.02)])

    assert found["num_pairs"] == 2
    assert found["median_error"] == pytest.approx((0.25 + 0.02) / 2)
    assert found["coverage"] == 0.5
    assert (found["wrong_signs"], found["refused"]) == (0, 0)
    assert found["alike_most"] == pytest.approx(0.3)


def test_a_large_change_predicted_the_wrong_way_is_counted_and_a_small_one_is_not():
    alike = pair(ALIKE, measured=1.0, predicted=1.0)
    found = _sum_up([alike, pair(measured=0.8, predicted=1.1), pair(measured=0.95, predicted=1.1)])

    assert found["wrong_signs"] == 1


def test_a_refusal_is_no_answer():
    alike = pair(ALIKE, measured=1.0, predicted=1.0)
    found = _sum_up([alike, pair(measured=2.0, refused="calibration")])

    assert (found["num_pairs"], found["refused"], found["median_error"], found["coverage"]) == (0, 1, None, None)


def test_what_an_answer_missed_by_is_told_in_what_widens_it():
    wide = MISSED.ns(1, 1.5)
    found = pair(measured=1.5 + 2 * wide, predicted=1.5, wide=wide)

    assert found.missed == pytest.approx(2)
    assert not found.is_inside
    assert pair(measured=1.5, predicted=1.5, wide=wide).missed == 0


def test_answers_of_a_model_are_held_against_what_those_of_the_others_missed_by():
    wide = MISSED.ns(1, 1.5)
    missed = {"a": (1.0, 1.0), "b": (2.0, 3.0), "c": (0.5, 0.5)}
    pairs = [
        replace(pair(measured=1.5 + by * wide, predicted=1.5, wide=wide), model=model)
        for model, each in missed.items()
        for by in each
    ]

    assert _sum_up([*pairs, pair(ALIKE, measured=1.0, predicted=1.0)])["held_out"] == pytest.approx(4 / 6)
    assert _sum_up([pairs[0], pair(ALIKE, measured=1.0, predicted=1.0)])["held_out"] is None


def test_an_interval_is_missed_for_sure_only_beyond_the_noise_of_measuring():
    for noise, is_near in (0.0, False), (0.04, False), (0.06, True):
        found = pair(measured=2.0, predicted=1.8, wide=0.1, noise=noise)

        assert (found.is_inside, found.is_near) == (False, is_near)
