"""Records that a live recording lacks, or that cannot be true: what they may have moved is not shown.

The server: each step launches four kernels of 100 µs, one every 250 µs, that begin 5 µs after their call of 10 µs.
"""

import pytest

from taxbreak_vllm.model.evidence import Figure
from taxbreak_vllm.model.step import Batch, GraphMode, Phase, Server, StepInfo
from taxbreak_vllm.taxes.recording import Recording
from taxbreak_vllm.taxes.terms import Terms

US = 1000
STEP = 1_000 * US
INFO = StepInfo(
    step_id="m",
    step_index=2,
    server=Server(server_id="s", device_type="cuda"),
    phase=Phase.DECODE,
    batch=Batch(),
    graph_mode=GraphMode.NONE,
    started_unix_ns=0,
    window_ns=STEP,
    async_output=True,
)


@pytest.fixture
def record(read, rules, reference):
    """Decompose the server's recording once `change` was made to its kernels, and with `more` events."""

    def record(change=lambda kernels: kernels, more=()):
        t, host, kernels = reference, [], []
        for number in range(12):
            at = number * 250 * US
            host += [
                t.op("aten::mm", at, at + 40 * US),
                t.call("cudaLaunchKernel", at + 30 * US, at + 40 * US, number + 1),
            ]
            kernels.append(t.kernel("k", at + 45 * US, at + 145 * US, number + 1))
        marks = [
            t.neighbour("before", 0, STEP - 50 * US),
            t.step("m", STEP, 2 * STEP - 50 * US),
            t.neighbour("after", 2 * STEP, 3 * STEP),
        ]
        events = [*marks, *host, *change(kernels), *more]
        return Recording(read(events), Terms(rules=rules, floor_ns=15 * US), info=INFO).breakdown

    return record


def without(*places):
    return lambda kernels: [kernel for place, kernel in enumerate(kernels) if place not in places]


def moved(place, *, by=0, longer=0):
    def change(kernels):
        one = kernels[place]
        changed = one | {"start": one["start"] + by, "end": one["end"] + by + longer}
        return [*kernels[:place], changed, *kernels[place + 1 :]]

    return change


def test_a_whole_recording_is_in_no_doubt(record):
    found = record()

    assert (found.evidence.withheld, found.evidence.doubtful_ns) == ({}, 0)
    assert (found.steps[0].iteration.idle_ns, found.steps[0].device.idle_ns) == (600 * US, 600 * US)


def test_one_lost_kernel_may_have_filled_the_time_until_the_next(record):
    found = record(without(5))

    # From its call at 1,280 µs to the next kernel at 1,545 µs; up to 1,295 µs no kernel ran either way.
    assert found.evidence.unanswered == 1
    assert found.evidence.doubtful_ns == 265 * US
    assert (found.steps[0].device.idle_ns, found.steps[0].hdbi) == (None, None)
    assert set(found.evidence.withheld) == set(Figure)  # one of four launches of the step
    assert "0.27 ms of 1.00 ms may have been otherwise (1 launches and 0 copies" in found.steps[0].notes[-1]


@pytest.mark.parametrize(("lost", "missing_head"), [((0,), 1), ((0, 1, 2), 3), ((1,), 0)])
def test_records_missing_at_the_head_are_counted_by_themselves(record, lost, missing_head):
    assert record(without(*lost)).evidence.missing_head == missing_head


def test_a_loss_in_the_step_before_is_in_doubt_only_as_far_as_it_reaches(record):
    assert record(without(1)).evidence.doubtful_ns == 0
    assert record(without(3)).evidence.doubtful_ns == 45 * US


def test_a_loss_after_the_iteration_costs_nothing_and_is_told(record):
    found = record(without(10))

    assert found.steps[0].iteration.idle_ns == 600 * US
    assert "1 launches and 0 copies left no activity" in found.notes[-1]


def test_a_lost_copy_is_told_from_its_call(record, reference):
    copy = reference.call("cudaMemcpyAsync", STEP + 60 * US, STEP + 70 * US, 99)

    found = record(more=[copy])

    assert found.evidence.lost_copies == 1
    assert found.steps[0].device.idle_ns is None


@pytest.mark.parametrize(
    "change",
    [moved(5, by=-200 * US), moved(5, by=260 * US), moved(5, longer=260 * US)],
    ids=["before its launch", "after its successor", "over its successor"],
)
def test_a_kernel_that_cannot_have_been_then_is_misplaced(record, change):
    found = record(change)

    assert found.evidence.misplaced == 1
    assert (found.steps[0].device.idle_ns, found.steps[0].hdbi) == (None, None)
    assert "1 activities cannot have been when they say" in found.steps[0].notes[-1]


def test_a_kernel_has_ended_when_the_host_has_waited_for_its_device(record, reference):
    wait = reference.call("cudaDeviceSynchronize", STEP + 50 * US, STEP + 150 * US)

    assert record(more=[wait]).evidence.misplaced == 0
    assert record(moved(4, longer=10 * US), more=[wait]).evidence.misplaced == 1


def test_an_idle_device_begins_what_it_is_given_at_once_or_something_is_missing(record):
    found = record(moved(5, by=60 * US))

    # 65 µs after its call returned, at a floor of 15 µs.
    assert found.evidence.unexplained_ns == found.evidence.doubtful_ns == 65 * US
    assert "for 0.07 ms the device stood idle, work launched and nothing recorded" in found.steps[0].notes[-1]
    assert record(moved(5, by=10 * US)).evidence.unexplained_ns == 0
