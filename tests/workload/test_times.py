"""What whatif says of captured steps becomes factors of a worker's steps, the engine's loop taken out of iterations."""

import numpy as np
import pytest

from taxbreak_vllm.workload.steps import Steps
from taxbreak_vllm.workload.task import DECODE, PREFILL, Change, Worker, WorkerStep
from taxbreak_vllm.workload.times import Times, drawn, worker_times

MS = 10**6
WORK = np.array([[0, 0, 4, 100], [0, 0, 2, 50], [64, 1, 0, 0]])
PARTS = np.array([[1, 8, 1], [1, 6, 1], [2, 30, 2]]) * MS
STEPS = Steps(WORK, ["none"] * 3, PARTS, np.arange(3) * 50 * MS, np.arange(3) * 50 * MS + 40 * MS)


def told(kind, plain, predicted, low=None, high=None, *, is_iteration=False):
    ends = (predicted if low is None else low, predicted if high is None else high)
    plain, predicted, low, high = (int(ms * MS) for ms in (plain, predicted, *ends))
    return WorkerStep(
        kind=kind, is_iteration=is_iteration, plain_ns=plain, predicted_ns=predicted, low_ns=low, high_ns=high
    )


def times(*steps, **change):
    return worker_times(STEPS, Change(worker=Worker(steps=steps), **change))


def test_a_workers_own_step_takes_what_is_predicted_of_it():
    found = times(told(DECODE, 8, 10, 9, 12), told(DECODE, 8, 11, 10, 11.5), told(DECODE, 8, 9), host=1.3)

    assert found[DECODE] == Times(pytest.approx(9 / 8), pytest.approx(10 / 8), pytest.approx(12 / 8))
    assert found[PREFILL] is None


def test_of_an_iteration_the_engines_loop_is_scaled_by_itself():
    """Of 10 ms 2 are the loop's, which take 3 with the host at 1.5 times; of the other 8 half are the host's."""
    found = times(told(DECODE, 10, 3 + 4 * 1.5 + 4, is_iteration=True), host=1.5)

    assert found[DECODE].middle == pytest.approx(10 / 8)


def test_a_graph_scales_no_loop_and_no_change_asks_for_nothing():
    assert times(told(DECODE, 10, 6, is_iteration=True), graph="full")[DECODE].middle == pytest.approx(0.5)
    assert times(told(DECODE, 10, 6)) == {}


def test_draws_lie_evenly_between_the_ends():
    found = [drawn(Times(0.8, 1.0, 1.4), seed, 5) for seed in range(5)]

    assert found == pytest.approx([0.84, 0.92, 1.0, 1.16, 1.32])
    assert drawn(None, 3, 5) == 1.0
