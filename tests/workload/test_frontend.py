"""What an API server costs is what its stamps say, and clients that wait for their answers are told from others."""

import numpy as np
import pytest

from taxbreak_vllm.iterations.rows import NUM_COLUMNS
from taxbreak_vllm.iterations.rows import Column as Turn
from taxbreak_vllm.serving.frontend.kept import INSTANTS
from taxbreak_vllm.stages.rows import Column
from taxbreak_vllm.traffic.rows import Setup, stamped
from taxbreak_vllm.workload.frontend import MIN_REQUESTS, busiest, fit_frontend, is_closed_loop
from taxbreak_vllm.workload.recording import Recorded

MS = 10**6


def table(arrived, ended):
    rows = np.zeros((len(arrived), len(Column)), dtype=np.int64)
    rows[:, Column.ARRIVED], rows[:, Column.END] = arrived, ended
    return rows


def closed(num_clients, *, think_ms=0.0, num=400):
    draw = np.random.default_rng(3)
    free, rows = np.zeros(num_clients), []
    for _ in range(num):
        client = int(free.argmin())
        begin = free[client] + draw.exponential(think_ms * MS)
        end = begin + draw.uniform(20, 200) * MS
        free[client] = end
        rows.append((begin, end))
    return table(*np.array(rows).T.astype(np.int64) + 10**12)


def opened(rate, *, num=400):
    draw = np.random.default_rng(4)
    arrived = 10**12 + np.cumsum(draw.exponential(1e9 / rate, num)).astype(np.int64)
    return table(arrived, arrived + (draw.uniform(20, 200, num) * MS).astype(np.int64))


@pytest.mark.parametrize("num_clients", [1, 2, 8, 32])
def test_clients_that_ask_again_at_once_are_found(num_clients):
    assert is_closed_loop(closed(num_clients))


def test_of_many_clients_some_may_be_on_their_way():
    assert is_closed_loop(closed(16, think_ms=1))


@pytest.mark.parametrize("rate", [0.5, 5, 20, 100])
def test_requests_that_come_by_themselves_are_no_such_clients(rate):
    assert not is_closed_loop(opened(rate))
    assert not is_closed_loop(closed(8, think_ms=300))


NO_TURNS = np.zeros((0, NUM_COLUMNS), dtype=np.int64)


def served(num=400, *, request=2.0, message=0.4, output=0.25, send=0.5, end=3.0, seed=5):
    """Requests of a server without an engine's turns: messages of so many outputs, each with one first output in it."""
    draw = np.random.default_rng(seed)
    at = 10**12 + np.arange(num) * 100 * MS
    rows = np.zeros((num, len(Column)), dtype=np.int64)
    num_open = np.arange(num) % 6 + 1  # six after one another end together
    rows[:, Column.ARRIVED], rows[:, Column.SENT] = at, at + int(request * MS)
    is_second = (draw.random(num) < 0.5) & (
        np.arange(num) % 2 == 1
    )  # comes while one is on its way in, and waits for it
    rows[is_second, Column.ARRIVED] = rows[np.flatnonzero(is_second) - 1, Column.ARRIVED] + MS
    rows[is_second, Column.SENT] = rows[is_second, Column.ARRIVED] + int((2 * request - 1) * MS)
    rows[:, Column.QUEUED] = rows[:, Column.SENT] + MS
    first = at + 20 * MS
    rows[:, Column.FIRST_TOKEN], rows[:, Column.FIRST_TAKEN] = first, first + MS
    rows[:, Column.FIRST_PUT] = rows[:, Column.FIRST_TAKEN] + ((message + output * num_open) * MS).astype(np.int64)
    rows[:, Column.FIRST_SEND1] = rows[:, Column.FIRST_PUT] + (send * num_open * MS).astype(np.int64)
    last = first[np.minimum(np.arange(num) // 6 * 6 + 5, num - 1)] + 10 * MS
    rows[:, Column.LAST_TOKEN] = last
    rows[:, Column.LAST_TAKEN] = last + MS
    rows[:, Column.LAST_PUT] = rows[:, Column.LAST_SEND0] = last + 2 * MS
    rows[:, Column.END] = rows[:, Column.LAST_SEND0] + int((send + end) * MS)
    rows[:, Column.IS_STREAMED] = 1
    return rows


def test_costs_of_one_are_told_from_messages_of_many_and_waiting_is_none_of_them():
    rows = served()

    fit = fit_frontend(rows, NO_TURNS)

    assert fit.request_ns == 2 * MS
    assert (fit.message_ns, fit.output_ns) == pytest.approx((0.4 * MS, 0.25 * MS), rel=0.01)
    assert (fit.send_ns, fit.end_ns) == pytest.approx((0.5 * MS, 3 * MS), rel=0.01)
    assert (fit.to_engine_ns, fit.from_engine_ns) == (0, 0)
    assert fit_frontend(rows[: MIN_REQUESTS - 1], NO_TURNS) is None


def test_ways_are_told_where_the_engine_waits_and_from_the_end_of_its_turn():
    rows = served()
    turns = np.zeros((len(rows), NUM_COLUMNS), dtype=np.int64)
    sent = rows[:, Column.SENT]
    turns[:, Turn.IDLE0] = np.where(np.arange(len(rows)) % 2, sent - 5 * MS, sent + MS // 10)
    turns[:, Turn.IDLE1] = sent + MS // 2
    rows[:, Column.QUEUED] = sent + MS
    turns[:, Turn.UPDATED] = np.arange(len(rows)) + 1
    last = np.sort(rows[:, Column.LAST_TOKEN])
    turns[:, Turn.UPDATE0] = last - MS // 100
    turns[:, Turn.END] = last + MS // 5

    fit = fit_frontend(rows, turns)

    assert (fit.to_engine_ns, fit.from_engine_ns) == (MS // 2, MS - MS // 5)


def test_what_is_not_streamed_is_not_sent_piece_by_piece():
    rows = served()
    rows[::2, Column.IS_STREAMED] = 0

    assert fit_frontend(rows, NO_TURNS).send_ns == pytest.approx(0.25 * MS, rel=0.02)


def test_of_several_api_servers_the_busiest_stands_for_all():
    setup = Setup(
        server_id="s", source="api-0", columns=tuple(column.name.lower() for column in Column), instants=INSTANTS
    )
    few, many = served(30, request=9.0), served(90)
    for rows in (few, many):
        rows[:, Column.NUM_OUTPUT_TOKENS] = 2

    rows = busiest([Recorded(setup, stamped(rows, INSTANTS)) for rows in (few, many, few[:0])])

    assert np.array_equal(rows, many)
    assert len(busiest([])) == 0
