"""One second in which steps run earns the ratio of it: 5 ms at the default 0.5 %."""

import random

import pytest

from taxbreak_vllm.serving.sampling.budget import Budget

S = 10**9
MS = 10**6


class Account:
    """A budget with a clock and what was spent."""

    def __init__(self, ratio=0.005):
        self.budget = Budget(ratio, now_ns=0)
        self.now_ns = self.spent_ns = self.asked_ns = 0

    def go(self, seconds, *, spent_ms=0, asked_ms=0):
        self.now_ns += round(seconds * S)
        self.asked_ns += asked_ms * MS
        self.spent_ns += (spent_ms + asked_ms) * MS
        self.budget.update(spent_ns=self.spent_ns, asked_ns=self.asked_ns, now_ns=self.now_ns)
        return self.budget

    def idle(self, seconds, *, spent_ms=0):
        self.now_ns += round(seconds * S)
        self.spent_ns += spent_ms * MS
        self.budget.pass_by(spent_ns=self.spent_ns, asked_ns=self.asked_ns, now_ns=self.now_ns)
        return self.budget


def test_a_recording_is_paid_for_with_the_share_of_the_time_that_it_may_take():
    account = Account()
    assert account.budget.is_open

    assert not account.go(0, spent_ms=20).is_open
    assert not account.go(3.9).is_open
    assert account.go(0.1).is_open


def test_a_time_without_steps_neither_earns_nor_costs():
    """So that the requests after it do not pay for what it has saved up."""
    account = Account()

    account.idle(3600, spent_ms=500)
    assert account.budget.is_open

    assert not account.go(0, spent_ms=20).is_open
    assert not account.idle(3600).is_open
    assert account.go(4).is_open


def test_no_more_than_a_minute_is_saved_up():
    account = Account()
    account.go(3600)

    assert account.go(0, spent_ms=299).is_open
    assert not account.go(0, spent_ms=2).is_open


@pytest.mark.parametrize(("cost_ms", "ratio"), [(5, 0.005), (40, 0.005), (200, 0.005), (40, 0.0005), (40, 0.1)])
def test_whatever_a_recording_costs_the_share_is_kept(cost_ms, ratio):
    """An hour of steps of 3 ms, one in a thousand picked, or one in 2^level thousands."""
    account, source = Account(ratio), random.Random(7)
    while account.now_ns < 3600 * S:
        account.go(3 * 2**account.budget.level)
        if account.budget.is_open:
            account.go(0, spent_ms=source.randint(cost_ms // 2, cost_ms * 3 // 2))
        else:
            account.budget.refuse()

    assert account.spent_ns / account.now_ns <= ratio * 1.02
    assert account.spent_ns / account.now_ns >= min(ratio / 4, cost_ms * MS / (4 * 3 * S))
    assert not account.budget.is_exhausted


def test_the_rate_is_halved_while_steps_are_refused_and_doubled_once_a_minute_was_left_unspent():
    account, levels = Account(), []
    for _ in range(3):
        account.budget.refuse()
        levels.append(account.go(11, spent_ms=200).level)
    for _ in range(8):
        levels.append(account.go(30).level)

    assert levels[:3] == [1, 2, 3]
    assert levels[-1] == 0
    assert sorted(levels[3:], reverse=True) == levels[3:]


def test_the_rate_is_left_alone_for_a_while_after_it_was_changed():
    account = Account()
    for _ in range(9):
        account.budget.refuse()
        account.go(2)

    assert account.budget.level == 1


def test_recordings_that_each_cost_more_than_ten_minutes_of_the_budget_end_recording():
    account = Account()
    for _ in range(2):
        assert not account.go(0, spent_ms=5000).is_exhausted
        assert account.go(600).is_open  # no debt is longer than the slowest rate

    assert account.go(0, spent_ms=5000).is_exhausted


def test_a_single_stall_of_the_machine_does_not():
    account = Account()
    for _ in range(5):
        account.go(0, spent_ms=5000)
        account.go(600)
        assert not account.go(61).is_exhausted


def test_a_budget_that_not_even_waiting_can_keep_ends_recording():
    account = Account(ratio=0.001)

    for _ in range(10 * 60):
        account.go(1, spent_ms=5)

    assert account.budget.is_exhausted


def test_recordings_asked_for_hold_back_the_others_for_ten_minutes_at_most_and_end_nothing():
    account = Account()
    for _ in range(9):
        account.go(1, asked_ms=60_000)

    assert not account.budget.is_open
    assert not account.budget.is_exhausted
    assert account.go(600).is_open


def test_a_change_starts_anew():
    account = Account()
    for _ in range(3):
        account.go(0, spent_ms=60_000)
    assert account.budget.is_exhausted

    account.budget.set(0.01)

    assert account.budget.is_open
    assert not account.go(1).is_exhausted
    assert (account.budget.ratio, account.budget.level) == (0.01, 0)
