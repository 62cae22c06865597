"""Bounds are of the plain step: never above it, and no less for more that was waited or a longer plain step."""

from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from taxbreak_vllm.insight.advice import advise
from taxbreak_vllm.insight.evidence import with_plain_step
from taxbreak_vllm.insight.plain import MIN_STEPS, PlainTime, Spent, interval
from taxbreak_vllm.model.advice import Per
from taxbreak_vllm.model.breakdown import (
    Breakdown,
    Coverage,
    DeviceTime,
    ExposedTax,
    FamilyShare,
    IdleTime,
    Source,
    StepBreakdown,
)
from taxbreak_vllm.model.step import Batch, GraphMode, Phase

parts = st.integers(min_value=0, max_value=10**7)


@st.composite
def steps(draw):
    """A recorded step: what its device did and waited for, with a part of the host's time that nobody waited for."""
    active, other, host, blocked, queue, tail = (draw(parts) for _ in range(6))
    window = active + other + host + blocked + queue
    assume(window > 1000)
    return StepBreakdown(
        name="step",
        phase=draw(st.sampled_from((Phase.DECODE, Phase.PREFILL, Phase.MIXED))),
        graph_mode=draw(st.sampled_from(GraphMode)),
        batch=Batch(requests=draw(st.integers(1, 32)), prompt_tokens=draw(st.integers(0, 4096)), output_tokens=4),
        window_ns=max(1000, window - min(tail, window // 2)),  # the device may go on after the host's step
        device=DeviceTime(
            window_ns=window,
            active_ns=active,
            other_active_ns=other,
            idle_ns=window - active - other,
            idle=IdleTime(host_ns=host, blocked_ns=blocked, queue_ns=queue),
        ),
        exposed=ExposedTax(delta_ft_ns=host // 2, delta_ct_ns=host - host // 2),
        tklqt_ns=1,
        launches=100,
        kernels=100,
        families={"gemm": FamilyShare(active_ns=active // 2), "norm": FamilyShare(active_ns=active - active // 2)},
    )


def recorded(several):
    return Breakdown(
        source=Source(device_type="cuda"),
        coverage=Coverage(kernels=100, linked=100, events=200),
        steps=tuple(several),
        total=several[0],
    )


@given(st.lists(steps(), min_size=1, max_size=4), st.floats(min_value=0.51, max_value=1.99))
def test_no_bound_exceeds_the_plain_step(several, share):
    mean_ns = sum(step.device.window_ns for step in several) / len(several)
    plain_ns = max(1, round(share * mean_ns))

    report = advise([with_plain_step(recorded(several), plain_ns)])

    for one in report.advice:
        assert 0 <= one.at_most_ratio <= 1
        assert one.per is not Per.STEP or one.at_most_ns <= plain_ns + 1
        for phase in one.phases:
            own = [step.device.window_ns for step in several if step.phase is phase.phase]
            assert phase.at_most_ns <= plain_ns * sum(own) / len(own) / mean_ns + 1
            assert 0 <= phase.at_most_ratio <= 1
    for served in report.serving.phases:
        assert 0 <= served.host_ratio <= 1


@given(steps(), st.floats(min_value=0.51, max_value=1.9), st.floats(min_value=1.0, max_value=1.05))
def test_a_longer_plain_step_lowers_no_bound(step, share, longer):
    plains = [max(1, round(share * factor * step.device.window_ns)) for factor in (1, longer)]

    short, long = (advise([with_plain_step(recorded([step]), plain_ns)]) for plain_ns in plains)

    least = {one.rule: one.at_most_ns for one in short.advice if one.per is Per.STEP}
    assert all(one.at_most_ns >= least.get(one.rule, 0) for one in long.advice)


@given(st.builds(PlainTime, parts, parts, parts, st.integers(-(10**7), 10**7)), parts, parts, st.sampled_from(Spent))
def test_a_bound_grows_with_what_was_waited_and_holds_what_there_is_at_least(plain, amount, more, spent):
    most, of_more = plain.at_most_ns(amount, spent), plain.at_most_ns(amount + more, spent)

    assert 0 <= most <= of_more <= (plain.window_ns if spent is Spent.TOKEN else plain.step_ns)
    assert most <= max(0, plain.window_ns - plain.active_ns) or spent is not Spent.HOST


def test_host_time_shrinks_by_what_the_profiler_added_and_the_devices_does_not():
    step = StepBreakdown(
        name="step",
        phase=Phase.DECODE,
        graph_mode=GraphMode.NONE,
        window_ns=1000,
        device=DeviceTime(window_ns=1000, active_ns=300, idle_ns=700, idle=IdleTime(host_ns=650, queue_ns=50)),
        exposed=ExposedTax(delta_ft_ns=650, delta_ct_ns=0),
        tklqt_ns=1,
        launches=100,
        kernels=100,
    )

    report = advise([with_plain_step(recorded([step]), 600)])
    (graphs,) = [one for one in report.advice if one.rule == "cuda-graphs"]

    assert (graphs.at_most_ns, graphs.at_most_ratio) == (300, 0.5)  # what 300 ns of work leave of 600
    assert "for up to 50% of the step" in graphs.finding


def test_an_interval_takes_six_steps_and_holds_the_bound():
    part = PlainTime(window_ns=100, step_ns=100, active_ns=0, doubt_ns=0)
    amounts = [10, 20, 30, 40, 50, 60]

    few, enough = interval([part] * 5, amounts[:5], Spent.HOST), interval([part] * 6, amounts, Spent.HOST)

    assert 2 ** (1 - MIN_STEPS) < 0.05 < 2 ** (2 - MIN_STEPS)
    assert few is None
    assert 0.10 <= enough[0] < 0.35 < enough[1] <= 0.60


def test_steps_that_are_alike_leave_no_doubt_and_more_steps_leave_less():
    part = PlainTime(window_ns=100, step_ns=100, active_ns=0, doubt_ns=0)

    alike = interval([part] * 300, [30] * 300, Spent.HOST)
    few, many = (interval([part] * num, [10, 50] * (num // 2), Spent.HOST) for num in (6, 48))

    assert alike == (0.3, 0.3)
    assert many[1] - many[0] < few[1] - few[0]


@pytest.mark.parametrize("spent", [Spent.HOST, Spent.DEVICE])
def test_a_recording_quicker_than_plain_steps_bounds_the_longer_plain_step(spent):
    quick = PlainTime(window_ns=1200, step_ns=1200, active_ns=600, doubt_ns=-200)

    assert quick.at_most_ns(400, spent) == (600 if spent is Spent.HOST else 400)
    assert replace(quick, doubt_ns=0).at_most_ns(400, spent) == 400


def test_tokens_share_all_the_time_to_the_next_step_not_the_workers_part_alone():
    part = PlainTime(window_ns=1200, step_ns=1000, active_ns=0, doubt_ns=0)

    assert part.at_most_ns(1100, Spent.TOKEN) == 1100
    assert part.at_most_ns(1100, Spent.HOST) == 1000
