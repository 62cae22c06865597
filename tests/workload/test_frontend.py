"""What an API server costs is what its stamps say, and clients that wait for their answers are told from others."""

import numpy as np
import pytest

from taxbreak_vllm.stages.rows import Column
from taxbreak_vllm.workload.frontend import MIN_REQUESTS, fit_frontend, is_closed_loop

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


def test_costs_are_the_lower_quartile_and_few_requests_tell_none():
    rows = table(np.arange(40) * 100 * MS + 10**12, np.arange(40) * 100 * MS + 10**12 + 50 * MS)
    rows[:, Column.SENT] = rows[:, Column.ARRIVED] + np.where(np.arange(40) % 2, 9, 2) * MS
    rows[:, Column.FIRST_TAKEN] = rows[:, Column.ARRIVED] + 20 * MS
    rows[:, Column.FIRST_PUT] = rows[:, Column.ARRIVED] + 21 * MS
    rows[:, Column.LAST_PUT] = rows[:, Column.END] - 3 * MS

    fit = fit_frontend(rows)

    assert (fit.request_ns, fit.output_ns, fit.end_ns) == (2 * MS, 1 * MS, 3 * MS)
    assert fit_frontend(rows[: MIN_REQUESTS - 1]) is None
