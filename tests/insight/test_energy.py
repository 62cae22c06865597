"""Energy per token between two states, of counters that are read at other times."""

import pytest

from taxbreak_vllm.insight.energy import Point, Reading, Window, energy_at, was_reset, window_of

S = 10**9


def test_energy_grows_evenly_between_two_readings():
    readings = [Reading(0, 100), Reading(2 * S, 300), Reading(3 * S, 300)]
    assert energy_at(readings, S // 2) == 150
    assert energy_at(readings, 2 * S) == 300
    assert energy_at(readings, 3 * S) == 300


@pytest.mark.parametrize("at_ns", [-1, 3 * S])
def test_outside_the_readings_it_is_not_known(at_ns):
    assert energy_at([Reading(0, 100), Reading(2 * S, 300)], at_ns) is None
    assert energy_at([Reading(at_ns, 100)], at_ns) is None


def test_a_counter_that_fell_was_reset():
    assert was_reset([Reading(0, 5), Reading(S, 4)])
    assert not was_reset([Reading(0, 5), Reading(S, 5), Reading(2 * S, 6)])


def test_a_window_is_the_shortest_of_ten_seconds():
    points = [Point(second * S, 700_000 * second, 50 * second) for second in (0, 4, 8, 12, 15)]
    window = window_of(points)
    assert window == Window(11 * S, 700.0 * 11, 50 * 11)
    assert window.joules_per_token == 14.0


@pytest.mark.parametrize("points", [[], [Point(0, 1, 1)], [Point(0, 1, 1), Point(10 * S - 1, 2, 2)]])
def test_below_ten_seconds_there_is_no_window(points):
    assert window_of(points) is None


def test_without_a_token_there_is_energy_and_none_of_a_token():
    window = window_of([Point(0, 0, 7), Point(10 * S, 500_000, 7)])
    assert (window.joules, window.joules_per_token) == (500.0, None)


def test_a_server_that_began_anew_has_no_window():
    assert window_of([Point(0, 0, 7), Point(10 * S, 500_000, 6)]) is None
