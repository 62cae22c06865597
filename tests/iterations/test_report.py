"""Windows of an engine's turns are told phase by phase, as its sums are."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from taxbreak_vllm.iterations.count import LoopCount
from taxbreak_vllm.iterations.report import report
from taxbreak_vllm.iterations.rows import UNKNOWN, Column
from taxbreak_vllm.iterations.waits import Arrivals
from taxbreak_vllm.model.engine import Between, EngineState, unexplained_ratio
from taxbreak_vllm.model.errors import SpoolError
from taxbreak_vllm.model.step import PHASES, Phase
from tests.iterations.test_account import SPANS, US, Clock, worker_elsewhere
from tests.iterations.test_window import window

PATH = Path("engine-3")
DECODE, PREFILL = PHASES.index(Phase.DECODE), PHASES.index(Phase.PREFILL)


def with_phases(plain, *phases):
    rows = plain.rows.copy()
    rows[:, [Column.DEVICE_IDLE, Column.DEVICE_IDLE_SAMPLE]] = UNKNOWN
    rows[:, Column.WORKER_PHASE] = phases
    return replace(plain, rows=rows)


@pytest.fixture
def one():
    return with_phases(window(6), PREFILL, DECODE, DECODE, DECODE, PREFILL, DECODE)


def test_a_report_tells_what_the_sums_of_the_same_turns_tell(one):
    one = replace(one, slots=np.array([[one.rows[2, Column.IDLE0] + 20 * US, one.rows[2, Column.IDLE1], 3, 0]]))
    count = LoopCount()
    count.add(one.rows, Arrivals.of(one.slots, 3))
    state = count.told(EngineState(engine="3"))

    found = report([one], path=PATH)

    assert {phase: each.num for phase, each in found.phases.items()} == {Phase.PREFILL: 2, Phase.DECODE: 3}
    for phase, each in found.phases.items():
        sums = state.phases[phase]
        working_ns = sums.total_ns - sums.between_ns[Between.NO_WORK]
        assert each.worker.share == sums.worker_ns / working_ns
        shares = {**sums.exposed_ns, **sums.between_ns}
        assert {name: part.share for name, part in each.parts.items()} == {
            str(label): None if label is Between.NO_WORK else ns / working_ns for label, ns in shares.items()
        }
        alone = EngineState(
            engine="3", iterations_ns=sums.total_ns, exposed_ns=sums.exposed_ns, between_ns=sums.between_ns
        )
        assert each.unexplained_ratio == unexplained_ratio(alone)
    assert found.phases[Phase.DECODE].parts["frontend"].p90_ns == 80 * US


def test_medians_and_ninetieth_percentiles_are_durations_that_were():
    clock = Clock()
    for number in range(1, 12):
        worker_elsewhere(clock, SPANS | {"schedule": number * 10 * US})
    ten = with_phases(replace(window(), rows=clock.table()), *[DECODE] * 11)

    found = report([ten], path=PATH).phases[Phase.DECODE]

    assert (found.num, found.parts["schedule"].median_ns, found.parts["schedule"].p90_ns) == (10, 60 * US, 100 * US)
    assert found.total.p90_ns - found.total.median_ns == 40 * US


def test_no_iteration_spans_two_windows(one):
    later = with_phases(window(3, begin=10**9), *[DECODE] * 3)

    found = report([one, later], path=PATH)

    assert (found.num_windows, found.num_turns) == (2, 9)
    assert sum(each.num for each in found.phases.values()) == 5 + 2


def test_a_phase_alone(one):
    assert report([one], path=PATH, phase=Phase.PREFILL).phases.keys() == {Phase.PREFILL}
    with pytest.raises(SpoolError, match=r"engine-3: no iteration of phase 'mixed' among those of prefill, decode"):
        report([one], path=PATH, phase=Phase.MIXED)


def test_windows_of_two_engines_are_not_one_account(one):
    with pytest.raises(SpoolError, match="of several engines"):
        report([one, replace(one, engine="4")], path=PATH)


def test_where_an_engine_works_ahead_only_iterations_of_which_its_device_tells_have_parts(one):
    ahead = replace(one, works_ahead=True)
    untold = report([ahead], path=PATH).phases
    rows = one.rows.copy()
    rows[1:3, [Column.DEVICE_IDLE, Column.DEVICE_IDLE_SAMPLE]] = 10 * US
    told = report([replace(ahead, rows=rows)], path=PATH).phases

    assert {phase: each.num for phase, each in untold.items()} == {Phase.PREFILL: 2, Phase.DECODE: 3}
    assert all(not each.parts and each.unexplained_ratio is None for each in untold.values())
    assert {phase: each.num for phase, each in told.items()} == {Phase.DECODE: 1}
    assert told[Phase.DECODE].parts


def test_the_threads_cpu_time_is_compared_with_the_time_it_waited_for_nothing(one):
    rows = one.rows.copy()
    wall_ns = int(rows[1, Column.END] - rows[0, Column.END])
    waits = ((Column.IDLE0, Column.IDLE1), (Column.WAIT0, Column.WAIT1), (Column.WAIT_AGAIN0, Column.WAIT_AGAIN1))
    busy_ns = wall_ns - sum(int(rows[1, last] - rows[1, first]) for first, last in waits)

    def ratio(cpu_ns):
        rows[:, Column.THREAD_CPU] = [0, *(10**9 + number * cpu_ns for number in range(5))]
        return report([replace(one, rows=rows)], path=PATH).thread_cpu_ratio

    assert ratio(busy_ns // 4) == pytest.approx(0.25)
    assert ratio(busy_ns * 2) == 1.0
    assert report([one], path=PATH).thread_cpu_ratio is None


def test_a_report_is_one_json_object(one):
    found = json.loads(report([one], path=PATH).to_json())

    assert found["schema"] == "taxbreak.iterations-report/1"
    assert (
        found["phases"]["decode"]["total"]["median_ns"] == report([one], path=PATH).phases[Phase.DECODE].total.median_ns
    )
