"""Iterations are cut to the nanosecond, and each part is where it was put."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trials import trials

from taxbreak_vllm.iterations.account import Turns
from taxbreak_vllm.iterations.rows import NUM_COLUMNS, UNKNOWN, Column
from taxbreak_vllm.model.engine import Between, EnginePart

US = 1000
BASE = 10**15


class Clock:
    """Rows of a made-up engine, written as its thread goes along."""

    def __init__(self) -> None:
        self.now = BASE
        self.rows: list[list[int]] = []
        self.number = 0

    def row(self) -> list[int]:
        row = [0] * NUM_COLUMNS
        row[Column.DEVICE_IDLE] = row[Column.DEVICE_IDLE_SAMPLE] = UNKNOWN
        self.rows.append(row)
        return row

    def span(self, row: list[int], first: Column, length: int, last: Column | None = None) -> None:
        row[first] = self.now
        self.now += length
        row[first + 1 if last is None else last] = self.now

    def wait(self, length: int) -> int:
        self.now += length
        return self.now

    def table(self) -> np.ndarray:
        return np.array(self.rows, dtype=np.int64)


def worker_elsewhere(clock: Clock, spans: dict[str, int]) -> None:
    """One turn of a synchronous engine whose worker is another process; `spans` in ns."""
    row = clock.row()
    clock.number += 1
    row[Column.SCHEDULED] = row[Column.UPDATED] = clock.number
    row[Column.INPUT0] = clock.now
    if spans["idle"]:
        clock.wait(spans["input"])
        clock.span(row, Column.IDLE0, spans["idle"])
    row[Column.INPUT1] = clock.wait(spans["input"])
    clock.wait(spans["loop"])
    clock.span(row, Column.SCHEDULE0, spans["schedule"])
    for call, sent, end, wait, begin in (
        (Column.EXECUTE0, Column.EXECUTE_SENT, Column.EXECUTE1, Column.WAIT0, Column.WORKER_EXECUTE0),
        (Column.SAMPLE0, Column.SAMPLE_SENT, Column.SAMPLE1, Column.WAIT_AGAIN0, Column.WORKER_SAMPLE0),
    ):
        row[call] = clock.now
        row[sent] = clock.wait(spans["dispatch"])
        is_async = call is Column.EXECUTE0
        if is_async:
            row[end] = clock.now
            clock.span(row, Column.GRAMMAR0, spans["grammar"])
        row[wait] = clock.now
        row[begin] = row[sent] + spans["grammar"] + spans["ipc_dispatch"]
        row[begin + 1] = row[begin] + spans["worker"]
        clock.now = row[begin + 1] + spans["ipc_return"]
        row[wait + 1] = clock.now
        if not is_async:
            row[end] = clock.now
    clock.span(row, Column.UPDATE0, spans["update"])
    row[Column.STEP1] = clock.now
    row[Column.END] = clock.wait(spans["post"])


def worker_in_the_thread(clock: Clock, spans: dict[str, int]) -> None:
    """One turn of a synchronous engine that runs its worker itself."""
    row = clock.row()
    clock.number += 1
    row[Column.SCHEDULED] = row[Column.UPDATED] = clock.number
    clock.span(row, Column.INPUT0, spans["input"], Column.INPUT1)
    clock.wait(spans["loop"])
    clock.span(row, Column.SCHEDULE0, spans["schedule"])
    for call, end, begin in (
        (Column.EXECUTE0, Column.EXECUTE1, Column.WORKER_EXECUTE0),
        (Column.SAMPLE0, Column.SAMPLE1, Column.WORKER_SAMPLE0),
    ):
        row[call] = clock.now
        clock.wait(spans["dispatch"])
        clock.span(row, begin, spans["worker"])
        row[end] = clock.wait(spans["dispatch"])
        if call is Column.EXECUTE0:
            clock.span(row, Column.GRAMMAR0, spans["grammar"])
    clock.span(row, Column.UPDATE0, spans["update"])
    row[Column.STEP1] = clock.now
    row[Column.END] = clock.wait(spans["post"])


SPANS = {
    "input": 3 * US,
    "idle": 0,
    "loop": 5 * US,
    "schedule": 50 * US,
    "dispatch": 40 * US,
    "grammar": 2 * US,
    "ipc_dispatch": 30 * US,
    "worker": 1000 * US,
    "ipc_return": 80 * US,
    "update": 35 * US,
    "post": 10 * US,
}


def test_a_worker_elsewhere_by_hand():
    clock = Clock()
    for _ in range(3):
        worker_elsewhere(clock, SPANS)

    found = Turns(clock.table()).iterations()

    assert found.step.tolist() == [1, 2]
    assert {label: parts.tolist() for label, parts in found.parts_ns.items()} == {
        EnginePart.INPUT: [3 * US] * 2,
        EnginePart.SCHEDULE: [50 * US] * 2,
        EnginePart.GRAMMAR: [0] * 2,  # the call was sent by then
        EnginePart.DISPATCH: [80 * US] * 2,
        EnginePart.UPDATE: [35 * US] * 2,
        EnginePart.POST: [10 * US] * 2,
        EnginePart.LOOP: [5 * US] * 2,
        Between.IPC_DISPATCH: [64 * US] * 2,  # that of two calls, a grammar of 2 µs among each
        Between.IPC_RETURN: [160 * US] * 2,
        Between.FRONTEND: [0] * 2,
        Between.IPC_INPUT: [0] * 2,
        Between.NO_WORK: [0] * 2,
    }
    assert found.worker_ns.tolist() == [2000 * US] * 2


def test_a_worker_in_the_engines_thread_by_hand():
    clock = Clock()
    for _ in range(2):
        worker_in_the_thread(clock, SPANS)

    found = Turns(clock.table()).iterations()

    assert {str(label): int(parts[0]) for label, parts in found.parts_ns.items() if parts[0]} == {
        "input": 3 * US,
        "schedule": 50 * US,
        "grammar": 2 * US,
        "dispatch": 160 * US,  # before and after each of two calls
        "update": 35 * US,
        "post": 10 * US,
        "loop": 5 * US,
    }


def test_what_an_engine_does_while_its_worker_computes_is_busy_and_not_exposed():
    clock = Clock()
    for _ in range(2):
        worker_elsewhere(clock, SPANS)
    rows = clock.table()

    busy = Turns(rows).busy_ns(int(rows[0, Column.INPUT0]), clock.now)

    assert busy[EnginePart.GRAMMAR] == 2 * 2 * US
    assert Turns(rows).iterations().parts_ns[EnginePart.GRAMMAR].tolist() == [0]


def test_waiting_for_requests_is_no_work():
    clock = Clock()
    worker_elsewhere(clock, SPANS)
    worker_elsewhere(clock, SPANS | {"idle": 10**9})

    found = Turns(clock.table()).iterations()

    assert found.parts_ns[Between.NO_WORK].tolist() == [10**9]
    assert found.parts_ns[EnginePart.INPUT].tolist() == [6 * US]


@pytest.mark.parametrize("turn", [worker_elsewhere, worker_in_the_thread])
@trials(60)
@given(data=st.data())
def test_the_parts_sum_to_the_iteration_and_none_is_negative(turn, data):
    lengths = st.integers(0, 3000 * US)
    clock = Clock()
    for _ in range(data.draw(st.integers(2, 6))):
        turn(clock, {name: data.draw(lengths) + (name == "worker") for name in SPANS})
        clock.wait(data.draw(lengths))
    rows = clock.table()
    for column in (Column.DEVICE_IDLE, Column.DEVICE_IDLE_SAMPLE):
        rows[:, column] = [data.draw(st.integers(UNKNOWN, 2**62)) for _ in rows]

    found = Turns(rows).iterations()

    assert len(found.step) == len(rows) - 1
    assert (sum(found.parts_ns.values()) + found.worker_ns == found.total_ns).all()
    assert all((parts >= 0).all() for parts in found.parts_ns.values())
    busy = Turns(rows).busy_ns(BASE, clock.now)
    assert min(busy.values()) >= 0


def test_while_its_device_works_on_nobody_waits():
    """The engine takes 237 µs between two steps, in the last 60 of which the device is idle."""
    clock = Clock()
    for _ in range(3):
        worker_elsewhere(clock, SPANS)
    rows = clock.table()
    rows[:, Column.DEVICE_IDLE] = 60 * US
    rows[:, Column.DEVICE_IDLE_SAMPLE] = 0

    found = Turns(rows).iterations()

    assert {str(label): parts.tolist() for label, parts in found.parts_ns.items() if parts.any()} == {
        "dispatch": [28 * US] * 2,  # of 40 before the call was sent
        "ipc_dispatch": [32 * US] * 2,
    }
    assert (found.worker_ns == found.total_ns - 60 * US).all()
    assert found.is_from_device.all()


def test_between_the_calls_of_a_step_a_device_may_wait_too():
    clock = Clock()
    for _ in range(2):
        worker_elsewhere(clock, SPANS | {"grammar": 300 * US})
    rows = clock.table()
    rows[:, Column.DEVICE_IDLE] = 0
    rows[:, Column.DEVICE_IDLE_SAMPLE] = 400 * US

    found = Turns(rows).iterations()

    assert found.worker_ns.tolist() == (found.total_ns - 400 * US).tolist()
    assert sum(int(parts[0]) for parts in found.parts_ns.values()) == 400 * US


def test_a_step_that_samples_nothing_has_no_time_between_its_calls():
    clock = Clock()
    for _ in range(2):
        worker_elsewhere(clock, SPANS)
    rows = clock.table()
    rows[:, [Column.WORKER_SAMPLE0, Column.WORKER_SAMPLE1]] = rows[:, [Column.WORKER_EXECUTE1]]
    rows[:, Column.DEVICE_IDLE] = 20 * US

    found = Turns(rows).iterations()

    assert found.is_from_device.all()
    assert found.worker_ns.tolist() == (found.total_ns - 20 * US).tolist()


def test_of_a_long_pause_a_slow_clock_of_the_device_leaves_its_worker_nothing():
    clock = Clock()
    worker_elsewhere(clock, SPANS)
    worker_elsewhere(clock, SPANS | {"idle": 3600 * 10**9})
    rows = clock.table()
    rows[:, Column.DEVICE_IDLE] = 3600 * 10**9 - 100 * 10**6
    rows[:, Column.DEVICE_IDLE_SAMPLE] = 0

    found = Turns(rows).iterations()

    assert found.parts_ns[Between.NO_WORK].tolist() == [3600 * 10**9]


@pytest.mark.parametrize("column", [Column.DEVICE_IDLE, Column.DEVICE_IDLE_SAMPLE])
def test_where_the_device_does_not_tell_the_calls_of_its_worker_do(column):
    clock = Clock()
    for _ in range(3):
        worker_elsewhere(clock, SPANS)
    from_calls = Turns(clock.table()).iterations()
    rows = clock.table()
    rows[:, Column.DEVICE_IDLE] = rows[:, Column.DEVICE_IDLE_SAMPLE] = 0
    rows[1, column] = UNKNOWN

    found = Turns(rows).iterations()

    is_told = [False, True] if column is Column.DEVICE_IDLE else [True, False]
    assert found.is_from_device.tolist() == is_told
    unknown = is_told.index(False)
    assert found.worker_ns[unknown] == from_calls.worker_ns[unknown]


@pytest.mark.parametrize("turn", [worker_elsewhere, worker_in_the_thread])
@pytest.mark.parametrize(
    ("name", "label"),
    [("input", "input"), ("schedule", "schedule"), ("update", "update"), ("post", "post"), ("loop", "loop")],
)
def test_a_delay_is_found_where_it_was_put(turn, name, label):
    clock, slow = Clock(), Clock()
    for _ in range(3):
        turn(clock, SPANS)
        turn(slow, SPANS | {name: SPANS[name] + 5000 * US})

    def parts(rows):
        return {str(key): int(value.sum()) for key, value in Turns(rows).iterations().parts_ns.items()}

    before, after = parts(clock.table()), parts(slow.table())

    assert {key: after[key] - before[key] for key in after if after[key] != before[key]} == {label: 2 * 5000 * US}


def test_a_step_without_tokens_lies_between_two_that_count():
    clock = Clock()
    for _ in range(3):
        worker_elsewhere(clock, SPANS)
    rows = clock.table()
    rows[1, [Column.WORKER_EXECUTE0, Column.WORKER_EXECUTE1, Column.WORKER_SAMPLE0, Column.WORKER_SAMPLE1]] = 0

    found = Turns(rows).iterations()

    assert found.step.tolist() == [1]
    assert (sum(found.parts_ns.values()) + found.worker_ns == found.total_ns).all()


def test_steps_with_a_lost_turn_between_them_are_not_joined():
    clock = Clock()
    for _ in range(4):
        worker_elsewhere(clock, SPANS)

    assert Turns(np.delete(clock.table(), 1, axis=0)).iterations().step.tolist() == [3]


def test_times_of_another_machines_clock_are_none_and_counted():
    clock = Clock()
    for _ in range(3):
        worker_elsewhere(clock, SPANS)
    rows = clock.table()
    rows[:, Column.WORKER_EXECUTE0 : Column.WORKER_PHASE] += 10**14

    turns = Turns(rows)
    assert turns.iterations().step.tolist() == []
    assert turns.is_unjoined.tolist() == [True] * 3


def test_a_step_whose_times_did_not_come_back_is_counted_and_one_without_tokens_is_not():
    clock = Clock()
    for _ in range(3):
        worker_elsewhere(clock, SPANS)
    rows = clock.table()
    rows[:2, Column.WORKER_EXECUTE0 :] = 0
    rows[0, Column.WORKER_EXECUTE0] = UNKNOWN

    assert Turns(rows).is_unjoined.tolist() == [True, False, False]


def test_no_rows_are_no_iterations():
    assert Turns(np.zeros((0, NUM_COLUMNS), dtype=np.int64)).iterations().step.tolist() == []
