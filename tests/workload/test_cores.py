"""Each value comes to one answer, whoever dies over it, and no process is left behind."""

import os
from functools import partial

from dying_work import dies, fails, squared, squared_by_another

from taxbreak_vllm.workload.cores import MAX_TRIES, on_cores


def lost(value, reason):
    return f"{value}: {reason}"


def test_every_value_comes_to_one_answer_in_whatever_order():
    found = list(on_cores(squared, range(20), lost, num_workers=2))

    assert sorted((place, value) for place, (value, _) in found) == [(n, n * n) for n in range(20)]
    assert os.getpid() not in {pid for _, (_, pid) in found}


def test_what_a_process_dies_over_is_done_again_and_nothing_twice(tmp_path):
    found = list(on_cores(partial(squared_by_another, str(tmp_path)), range(6), lost, num_workers=2))

    assert sorted(found) == [(n, n * n) for n in range(6)]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("0-0", "1-0", "1-1", "2-0", "3-0", "3-1", "4-0", "5-0", "5-1")
    ]


def test_what_every_process_dies_over_is_said_to_be_lost_and_the_rest_is_not():
    found = dict(on_cores(dies, range(5), lost, num_workers=2))

    assert found == {0: 0, 1: 1, 2: 4, 3: f"3: the process that simulates it ended {MAX_TRIES} times", 4: 16}


def test_a_fault_over_a_value_is_told_in_its_place():
    found = dict(on_cores(fails, range(5), lost, num_workers=2))

    assert found == {0: 0, 1: 1, 2: 4, 3: "3: ValueError: three", 4: 16}


def test_no_process_is_left_of_what_is_broken_off():
    working = on_cores(squared, range(20), lost, num_workers=2)
    _, (_, pid) = next(working)
    working.close()

    assert not os.path.exists(f"/proc/{pid}")
