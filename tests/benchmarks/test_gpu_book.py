"""Results of a GPU host: what is known is not measured again, and what was injected is compared with what was seen."""

import json

import pytest
from gpu_book import Book, is_recovered, knee, rise, spread, table


@pytest.fixture
def book(tmp_path):
    """Open the book of this test; `now_s` are the readings of its clock."""

    def book(*now_s, seconds=10.0):
        readings = iter(now_s or (0.0,) * 100)
        return Book(tmp_path / "found.json", seconds=seconds, now_s=lambda: next(readings))

    return book


def test_a_second_run_goes_on_where_the_first_was_broken_off(book):
    book().case("floors", "run 0", lambda: {"median_ns": 4500})

    again = book()

    assert again.case("floors", "run 0", lambda: pytest.fail("measured again")) == {"median_ns": 4500}
    assert again.case("floors", "run 1", lambda: {"median_ns": 4600}) == {"median_ns": 4600}


def test_a_case_that_fails_is_named_and_the_others_go_on(book):
    found = book()

    assert found.case("taxes", "launch", lambda: 1 / 0) is None
    assert found.case("taxes", "python", lambda: {"rose_ns": 5}) == {"rose_ns": 5}
    assert json.loads(found.path.read_text())["taxes"]["launch"]["error"].startswith("ZeroDivisionError")


def test_what_failed_is_measured_again_only_when_asked(book):
    book().case("taxes", "launch", lambda: 1 / 0)
    again = book()

    assert again.case("taxes", "launch", lambda: {"rose_ns": 5}) is None
    again.forget_failures()
    assert again.case("taxes", "launch", lambda: {"rose_ns": 5}) == {"rose_ns": 5}


def test_no_case_begins_after_the_time_is_over(book):
    late = book(0.0, 11.0)

    assert late.case("graphs", "512 nodes", lambda: pytest.fail("begun")) is None
    assert late.left == ["graphs/512 nodes"]


@pytest.mark.parametrize(
    ("rise_ns", "injected_ns", "wanted"),
    [
        (5_900, 5_000, True),
        (6_100, 5_000, False),
        (109_000, 100_000, True),
        (111_000, 100_000, False),
        (0, 5_000, False),
    ],
)
def test_a_delay_is_recovered_within_a_tenth_or_a_microsecond(rise_ns, injected_ns, wanted):
    assert is_recovered(rise_ns, injected_ns) is wanted


def test_the_rise_is_taken_from_the_shortest_wait():
    assert rise({50: [60.0, 61.0, 90.0], 100: [111.0, 112.0, 113.0]}, 100) == 51.0


def test_the_spread_of_runs_is_their_range_over_the_median():
    assert spread([4.0, 5.0, 6.0]) == {"median": 5.0, "min": 4.0, "max": 6.0, "range_ratio": 0.4}


def test_the_knee_is_where_a_figure_has_left_its_plateau():
    assert knee([(1, 10.0), (2, 9.0), (4, 11.0), (8, 19.0), (16, 90.0)]) == 8
    assert knee([(1, 10.0), (2, 11.0)]) is None


def test_a_table_shows_microseconds_and_a_dash_for_what_is_missing(capsys):
    table("floors", [{"floor": "kernel", "median_ns": 4500, "ok": True}, {"floor": "graph", "median_ns": None}])

    shown = capsys.readouterr().out
    assert "median µs" in shown
    assert "4.50" in shown
    assert shown.count("–") == 2
