"""Launch calls that wait for room in the device's queue, told from those that are slow by themselves."""

import numpy as np

from taxbreak_vllm.trace.queue import FullQueue

USUAL_NS, KERNEL_NS, LIMIT = 4_000, 20_000, 1_000


def launches(count, limit):
    """A host that launches every 5 µs until so many wait, then whenever a kernel begins."""
    launch, back, begin = [], [], []
    now = 0
    for number in range(count):
        launch.append(now)
        if number >= limit:
            now = max(now, begin[number - limit])
        now += USUAL_NS
        back.append(now)
        begin.append(max(now, begin[-1] + KERNEL_NS if begin else 0))
        now += 1_000
    columns = (np.array(column, dtype=np.int64) for column in (launch, back, begin))
    return *columns, np.zeros(count, dtype=np.int32), np.zeros(count, dtype=np.int64)


def test_calls_that_wait_for_room_waited_for_all_but_their_usual_length():
    found = FullQueue.of(*(columns := launches(2_000, LIMIT)))

    launch, back = columns[0], columns[1]
    assert len(found.dispatch) > 100
    assert (launch[found.dispatch] + found.wait_ns + USUAL_NS == back[found.dispatch]).all()
    assert (found.dispatch - found.awaited == LIMIT).all()


def test_a_queue_that_never_fills_holds_nobody():
    launch, back, begin, name, device = launches(1_400, 5_000)
    back[700] += 1_000_000  # slow by itself

    assert len(FullQueue.of(launch, back, begin, name, device).dispatch) == 0


def test_few_launches_fill_no_queue():
    assert len(FullQueue.of(*launches(500, 100)).dispatch) == 0
