"""What a step took is cut at the stamps of its turn; hand-built turns, every number to be checked by eye."""

import numpy as np
import pytest

from taxbreak_vllm.iterations.rows import NUM_COLUMNS, Column
from taxbreak_vllm.model.errors import WorkloadError
from taxbreak_vllm.traffic.rows import Scheduled, Setup, stamped
from taxbreak_vllm.workload.recording import Recorded
from taxbreak_vllm.workload.steps import steps_of

INSTANTS = tuple(
    int(c)
    for c in Column
    if c not in {Column.SCHEDULED, Column.UPDATED, Column.WORKER_PHASE, Column.DEVICE_IDLE, Column.DEVICE_IDLE_SAMPLE}
)
AT = 10**12


def turn(**stamps):
    row = np.zeros(NUM_COLUMNS, dtype=np.int64)
    for name, value in stamps.items():
        column = Column[name.upper()]
        row[column] = value + (AT if int(column) in INSTANTS else 0)
    return row


def recorded(turns, *, scheduler="Scheduler", num=None):
    setup = Setup(
        server_id="s",
        source="engine-0",
        scheduler=scheduler,
        columns=tuple(column.name.lower() for column in Column),
        instants=INSTANTS,
    )
    steps = [
        Scheduled(number, 10 * number, 1, 2, 100, 0, "none", False, 0) for number in range(1, (num or len(turns)) + 1)
    ]
    return Recorded(setup, [*steps, *stamped(np.array(turns), INSTANTS)])


def test_a_step_that_is_waited_for_is_cut_where_its_worker_is_called():
    turns = [
        turn(scheduled=1, updated=1, input0=0, idle0=1, idle1=5, execute0=9, end=40,
             worker_execute0=10, worker_execute1=25, worker_sample0=26, worker_sample1=30),
        turn(scheduled=2, updated=2, input0=43, execute0=50, end=80,
             worker_execute0=51, worker_execute1=60, worker_sample0=62, worker_sample1=72),
    ]  # fmt: skip

    steps = steps_of(recorded(turns))

    # from the request that woke the engine, and from the end of the turn before
    assert steps.parts_ns.tolist() == [[4, 19, 12], [10, 19, 11]]
    assert (steps.begin_ns - AT).tolist() == [5, 40]
    assert steps.work.tolist() == [[10, 1, 2, 100], [20, 1, 2, 100]]
    assert steps.total_ns.tolist() == [35, 40]


def test_a_step_whose_worker_does_not_tell_is_left_out():
    known = dict(input0=0, execute0=9, end=40, worker_execute0=10, worker_execute1=25, worker_sample0=26)
    turns = [
        turn(scheduled=1, updated=1, **known, worker_sample1=30),
        turn(scheduled=2, updated=2, input0=43, execute0=50, end=80),
    ]

    assert steps_of(recorded(turns)).work.tolist() == [[10, 1, 2, 100]]
    with pytest.raises(WorkloadError, match="no step"):
        steps_of(recorded(turns[1:]))


def test_of_an_engine_that_works_ahead_the_device_begins_when_the_step_before_is_done():
    turns = [
        turn(scheduled=1, updated=0, input0=0, execute0=3, execute1=5, end=6),
        turn(scheduled=2, updated=1, input0=6, execute0=8, execute1=10, update0=30, end=34),
        turn(scheduled=3, updated=2, input0=34, execute0=37, execute1=40, update0=55, end=60),
        turn(scheduled=0, updated=3, input0=60, update0=90, end=95),
    ]

    steps = steps_of(recorded(turns, scheduler="AsyncScheduler", num=3))

    # called at 5, 10, 40; done at 30, 55, 90
    assert steps.parts_ns.tolist() == [[5, 25, 4], [4, 25, 5], [6, 35, 5]]
