"""What clients of a load saw, as figures."""

import pytest
from gpu_servers import Heard, Load

LOAD = Load("decode", 2, 2, 8, 4)


def test_tokens_are_counted_by_what_was_asked_for_as_a_message_may_hold_several():
    heard = Heard(0, ended_ns=2_000_000_000, arrivals_ns=[[0, 30, 60, 90], [0, 90]])

    found = heard.figures(LOAD)

    assert found["tokens"] == 8
    assert found["tokens_per_s"] == pytest.approx(4.0)
    assert found["tpot_ns"] == 30
    assert found["itl_max_ns"] == 90


def test_a_request_that_failed_brought_no_tokens():
    heard = Heard(0, ended_ns=1_000_000_000, arrivals_ns=[[0, 10, 20, 30]], failed=["reset"])

    assert heard.figures(LOAD)["tokens"] == 4
    assert heard.figures(LOAD)["failed"] == 1
