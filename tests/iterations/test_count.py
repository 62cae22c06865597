"""Sums are those of all iterations, however their turns come in, and the totals are those of the phases."""

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taxbreak_vllm.iterations.account import Turns
from taxbreak_vllm.iterations.count import LoopCount, total_of
from taxbreak_vllm.iterations.rows import NUM_COLUMNS, UNASKED, UNKNOWN, Column
from taxbreak_vllm.model.engine import EngineState, IdleFrom
from taxbreak_vllm.model.step import PHASES, Phase
from taxbreak_vllm.serving.device_idle import ONE_IN, DeviceIdle
from tests.iterations.test_account import SPANS, US, Clock, worker_elsewhere

DECODE, PREFILL = PHASES.index(Phase.DECODE), PHASES.index(Phase.PREFILL)


def turns_of(*phases):
    """Rows of a loop whose steps are of these phases, each longer than the one before."""
    clock = Clock()
    for number, phase in enumerate(phases):
        worker_elsewhere(clock, SPANS | {"worker": (1000 + number) * US})
        clock.rows[-1][Column.WORKER_PHASE] = phase
    return clock.table()


def counted(batches, **options):
    count = LoopCount(**options)
    for rows in batches:
        count.add(rows)
    count.add(np.zeros((0, NUM_COLUMNS), dtype=np.int64))  # nothing more came: those held back count too
    return count


def test_an_iteration_belongs_to_the_phase_of_its_first_step():
    rows = turns_of(PREFILL, DECODE, DECODE, PREFILL, DECODE)
    found = Turns(rows).iterations()

    phases = counted([rows]).phases

    assert {phase: sums.num for phase, sums in phases.items()} == {Phase.PREFILL: 2, Phase.DECODE: 2}
    assert phases[Phase.PREFILL].total_ns == found.total_ns[0] + found.total_ns[3]
    assert phases[Phase.PREFILL].worker_ns == (2000 + 2006) * US


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_the_totals_are_the_sums_of_the_phases_and_close_however_turns_come_in(data):
    steps = data.draw(st.lists(st.sampled_from(range(len(PHASES))), min_size=2, max_size=60))
    rows = turns_of(*steps)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(rows)), max_size=5)))

    state = counted(np.split(rows, cuts)).told(EngineState(engine="0"))

    assert state == counted([rows]).told(EngineState(engine="0"))
    assert state.num_iterations == len(rows) - 1
    total = total_of(state.phases.values())
    assert (total.num, total.total_ns, total.worker_ns) == (
        state.num_iterations,
        state.iterations_ns,
        state.worker_ns,
    )
    assert (total.exposed_ns, total.between_ns) == (state.exposed_ns, state.between_ns)
    for sums in (total, *state.phases.values()):
        assert sums.worker_ns + sum(sums.exposed_ns.values()) + sum(sums.between_ns.values()) == sums.total_ns


def test_where_a_workers_times_do_not_tell_what_was_waited_for_there_are_no_parts():
    rows = turns_of(DECODE, DECODE, DECODE)

    sums = counted([rows], works_ahead=True).phases[Phase.DECODE]

    assert sums == replace(counted([rows]).phases[Phase.DECODE], exposed_ns={}, between_ns={})


def test_a_step_of_no_known_phase_is_not_joined_and_counted_as_such():
    count = counted([turns_of(DECODE, DECODE, UNKNOWN, DECODE, DECODE, len(PHASES))])

    assert {phase: sums.num for phase, sums in count.phases.items()} == {Phase.DECODE: 2}  # 1 and 4
    assert count.num_unjoined == 2


def test_no_turns_are_no_sums():
    assert counted([]).told(EngineState(engine="0")) == EngineState(engine="0", idle_from=IdleFrom.WORKER_CALLS)


def test_a_device_that_tells_when_it_was_idle_is_believed_where_its_engine_works_ahead():
    """The iterations around one that it does not tell of count as ever, and those from before it told of any do not."""
    rows = turns_of(*[DECODE] * 8)
    rows[3:, [Column.DEVICE_IDLE, Column.DEVICE_IDLE_SAMPLE]] = 40 * US
    rows[6, Column.DEVICE_IDLE] = UNKNOWN

    state = counted(np.split(rows, [3]), works_ahead=True).told(EngineState(engine="0", works_ahead=True))

    assert state.idle_from is IdleFrom.DEVICE_EVENTS
    assert state.num_iterations == 3  # from step 4 to 5, to 6, and from 7 to 8
    assert sum(state.exposed_ns.values()) + sum(state.between_ns.values()) == 3 * 80 * US
    assert state.iterations_ns == state.worker_ns + 3 * 80 * US


def test_where_the_engine_waits_for_its_worker_iterations_count_whether_the_device_tells_or_not():
    rows = turns_of(*[DECODE] * 5)
    assert counted([rows]).idle_from is IdleFrom.WORKER_CALLS
    rows[3:, [Column.DEVICE_IDLE, Column.DEVICE_IDLE_SAMPLE]] = 40 * US

    state = counted([rows]).told(EngineState(engine="0"))

    assert state.idle_from is IdleFrom.DEVICE_EVENTS
    assert state.num_iterations == 4
    assert state.iterations_ns == state.worker_ns + sum(state.exposed_ns.values()) + sum(state.between_ns.values())


def asked_in(rows, *bursts):
    """Leave the device's answers in these steps, the first of a burst not told of before its first call."""
    idle = rows[:, [Column.DEVICE_IDLE, Column.DEVICE_IDLE_SAMPLE]]
    kept = np.full_like(idle, UNASKED)
    for first, last in bursts:
        kept[first:last] = idle[first:last]
        kept[last, 0] = idle[last, 0]
        kept[first, 0] = UNASKED
    rows = rows.copy()
    rows[:, [Column.DEVICE_IDLE, Column.DEVICE_IDLE_SAMPLE]] = kept
    return rows


@pytest.mark.parametrize("works_ahead", [True, False])
def test_of_a_device_that_is_asked_in_bursts_only_the_iterations_in_these_count(works_ahead):
    rows = turns_of(*[DECODE] * 20)
    rows[:, [Column.DEVICE_IDLE, Column.DEVICE_IDLE_SAMPLE]] = 40 * US
    asked = asked_in(rows, (3, 7), (12, 14))

    state = counted(np.split(asked, [5]), works_ahead=works_ahead).told(EngineState(engine="0"))

    assert state.idle_from is IdleFrom.DEVICE_EVENTS
    assert (state.num_iterations, state.num_left_out) == (6, 13)
    assert state.iterations_ns == int(Turns(rows).iterations().total_ns[[3, 4, 5, 6, 12, 13]].sum())
    assert sum(state.exposed_ns.values()) + sum(state.between_ns.values()) == 6 * 80 * US
    assert state.worker_ns == state.iterations_ns - 6 * 80 * US


def test_before_the_first_burst_nothing_counts_and_nothing_is_lost():
    rows = asked_in(turns_of(*[DECODE] * 6))

    state = counted([rows], works_ahead=True).told(EngineState(engine="0"))

    assert (state.num_iterations, state.num_left_out, state.idle_from) == (0, 5, None)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_what_bursts_tell_is_what_all_iterations_are(seed):
    """Idle times that drift, and every 128th of which is long: no period of ours meets the engine's."""
    random.seed(seed)
    num = 30_000
    idle_ns = 1000 * (100 + np.arange(num) // 300) + np.where(np.arange(num) % 128 == 0, 3_000_000, 0)
    bursts = DeviceIdle(lambda: None)
    is_framed = np.array([bursts.begin_step() for _ in range(num)])
    is_asked = is_framed[:-1] & is_framed[1:]

    assert is_asked.mean() == pytest.approx(1 / ONE_IN, rel=0.25)
    assert idle_ns[:-1][is_asked].mean() == pytest.approx(idle_ns.mean(), rel=0.25)
