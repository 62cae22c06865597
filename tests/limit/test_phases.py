"""The bar of each phase: its parts sum to the time it cuts up, whatever the trace holds."""

from dataclasses import replace
from pathlib import Path

import pytest

from taxbreak_vllm.limit.phases import by_phase, phase_limit, step_bar
from taxbreak_vllm.model.breakdown import DeviceTime, ExposedTax, IdleTime, StepBreakdown
from taxbreak_vllm.model.errors import TaxbreakError
from taxbreak_vllm.model.limit import Bar, Bound, StepLimit
from taxbreak_vllm.model.step import Phase
from taxbreak_vllm.taxes.analyze import analyze

CASES = sorted((Path(__file__).parents[3] / "shared" / "cases").glob("*.json*"))

STEP = StepBreakdown(
    phase=Phase.DECODE,
    window_ns=100,
    device=DeviceTime(
        window_ns=100,
        active_ns=60,
        idle_ns=40,
        idle=IdleTime(host_ns=30, blocked_ns=5, queue_ns=3, edge_ns=2),
    ),
    exposed=ExposedTax(delta_ft_ns=20, delta_ct_ns=6, delta_kt_ns=3, other_ns=1),
)
LIMIT = StepLimit(
    flops=1000,
    bytes=500,
    most_bytes=600,
    compute_ns=10,
    memory_ns=20,
    floor_ns=(20, 24),
    bound=Bound.MEMORY,
    mfu=0.1,
    mbu=0.2,
    bar=Bar(
        window_ns=100,
        limit_ns=20,
        above_ns=40,
        exposed_ns={"delta_ft": 20, "delta_ct": 6, "delta_kt": 3, "other": 1},
        other_idle_ns=10,
    ),
)


def assert_whole(bar, window_ns):
    assert sum(bar.parts_ns().values()) == bar.window_ns == window_ns
    assert min(bar.parts_ns().values()) >= 0


def test_phases_are_summed_part_by_part_and_told_apart():
    steps = [replace(STEP, limit=LIMIT), replace(STEP, limit=LIMIT), replace(STEP, phase=Phase.PREFILL, limit=LIMIT)]

    found = by_phase(steps)

    assert list(found) == [Phase.PREFILL, Phase.DECODE]
    decode = found[Phase.DECODE]
    assert_whole(decode.bar, 200)
    assert (decode.bar.limit_ns, decode.bar.above_ns, decode.bar.exposed_ns["delta_ft"]) == (40, 80, 40)
    assert (decode.flops, decode.bytes, decode.most_bytes) == (2000, 1000, 1200)
    assert (decode.mfu, decode.mbu, decode.bound) == (0.1, 0.2, Bound.MEMORY)
    assert (decode.floor_ns, decode.bound_ns) == ((40, 48), {Bound.MEMORY: 40})


def test_a_step_without_a_limit_is_unknown_for_its_device_time_alone_and_in_no_share():
    step = replace(STEP, limit_reason="its worker says nothing of its model")

    alone, beside = (
        phase_limit([step_bar(each) for each in steps]) for steps in ([step], [step, replace(STEP, limit=LIMIT)])
    )

    assert_whole(alone.bar, 100)
    assert (alone.bar.unknown_ns, alone.bar.exposed_ns["delta_ft"], alone.bar.other_idle_ns) == (60, 20, 10)
    assert (alone.flops, alone.mfu, alone.mbu, alone.floor_ns, alone.bound) == (None, None, None, None, None)
    assert alone.reasons == ("its worker says nothing of its model",)
    assert_whole(beside.bar, 200)
    assert (beside.num_steps, beside.num_counted, beside.mfu, beside.mbu) == (2, 1, 0.1, 0.2)


def test_a_step_that_was_faster_than_its_limit_is_in_no_share():
    impossible = replace(LIMIT, mfu=None, mbu=None, bar=Bar(window_ns=100, unknown_ns=100))

    found = phase_limit([step_bar(replace(STEP, limit=each)) for each in (LIMIT, impossible)])

    assert_whole(found.bar, 200)
    assert (found.num_counted, found.num_bounded) == (2, 1)
    assert (found.flops, found.floor_ns, found.mfu) == (2000, (20, 24), 0.1)


def test_the_bar_of_every_step_of_every_trace_is_whole(trace_path):
    assert_bars(analyze(trace_path))


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.name)
def test_the_bar_of_every_step_of_every_case_is_whole(case):
    try:
        breakdown = analyze(case)
    except TaxbreakError:
        pytest.skip("refused whole")
    assert_bars(breakdown)


def assert_bars(breakdown):
    steps = [*breakdown.steps, breakdown.total]
    for step in steps:
        device = step.iteration or step.device
        assert_whole(step_bar(step).bar, device.window_ns)
    found = by_phase(breakdown.steps)
    assert sum(each.bar.window_ns for each in found.values()) == sum(s.device.window_ns for s in breakdown.steps)
