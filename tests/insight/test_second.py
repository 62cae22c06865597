"""Where the second of a device went: every nanosecond of an engine's iterations, from client to kernel."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from live_states import MS, ahead, engine_state

from taxbreak_vllm.insight.second import device_second
from taxbreak_vllm.model.breakdown import DeviceTime, ExposedTax, IdleTime, StepBreakdown
from taxbreak_vllm.model.engine import Between, EnginePart
from taxbreak_vllm.model.server import DEVICE_PARTS, StepPart
from taxbreak_vllm.model.step import Phase

STEP = StepBreakdown(
    phase=Phase.DECODE,
    device=DeviceTime(
        window_ns=130,
        active_ns=50,
        other_active_ns=10,
        idle_ns=70,
        idle=IdleTime(host_ns=25, blocked_ns=5, queue_ns=10, edge_ns=30),
    ),
    exposed=ExposedTax(delta_ft_ns=15, delta_ct_ns=4, delta_kt_ns=3, other_ns=3),
)
STATE = engine_state(
    num=1000,
    worker_ms=6,
    exposed={EnginePart.SCHEDULE: 1, EnginePart.LOOP: 0.1},
    between={Between.IPC_DISPATCH: 0.2, Between.IPC_RETURN: 0.3, Between.FRONTEND: 0.4, Between.NO_WORK: 2},
)


def test_a_worker_s_steps_are_divided_as_the_recorded_ones_of_their_phase():
    second = device_second(STATE, {Phase.DECODE: STEP, Phase.PREFILL: replace(STEP, device=DeviceTime())})

    assert {part: ns // 1000 for part, ns in second.parts_ns.items()} == {
        Between.NO_WORK: 2_000_000,
        Between.FRONTEND: 400_000,
        EnginePart.SCHEDULE: 1_000_000,
        EnginePart.LOOP: 100_000,
        Between.IPC_RETURN: 300_000,
        Between.IPC_DISPATCH: 200_000,
        StepPart.DELTA_FT: 900_000,  # of 6 ms: 15 of 100, the engine's 30 left out
        StepPart.DELTA_CT: 240_000,
        StepPart.DELTA_KT: 180_000,
        StepPart.CALLS: 180_000,
        StepPart.BLOCKED: 300_000,
        StepPart.LAUNCHED: 600_000,
        StepPart.ACTIVE: 3_600_000,
    }
    assert list(second.parts_ns) == [part for part in DEVICE_PARTS if part in second.parts_ns]
    assert (second.total_ns, second.working_ns) == (STATE.iterations_ns, STATE.iterations_ns - 2000 * MS)


@given(st.integers(0, 2**62), st.lists(st.integers(0, 2**62), min_size=7, max_size=7))
def test_parts_sum_to_the_iterations_to_the_nanosecond(worker_ns, parts):
    ft, ct, kt, calls, blocked, queue, active = parts
    host = ft + ct + kt + calls
    step = replace(
        STEP,
        device=DeviceTime(active_ns=active, idle=IdleTime(host_ns=host, blocked_ns=blocked, queue_ns=queue)),
        exposed=ExposedTax(delta_ft_ns=ft, delta_ct_ns=ct, delta_kt_ns=kt, other_ns=calls),
    )
    sums = replace(STATE.phases[Phase.DECODE], worker_ns=worker_ns)
    state = replace(STATE, worker_ns=worker_ns, phases={Phase.DECODE: sums})

    assert device_second(state, {Phase.DECODE: step}).total_ns == STATE.iterations_ns - STATE.worker_ns + worker_ns


@pytest.mark.parametrize(
    "recorded",
    [
        {},
        {Phase.PREFILL: STEP},
        {Phase.DECODE: replace(STEP, device=replace(STEP.device, idle=IdleTime.unknown()))},
        {Phase.DECODE: replace(STEP, exposed=ExposedTax(delta_ft_ns=99))},
        {Phase.DECODE: StepBreakdown()},
    ],
)
def test_a_phase_of_which_no_recorded_step_tells_stays_whole(recorded):
    second = device_second(STATE, recorded)

    assert second.parts_ns[StepPart.STEP] == STATE.worker_ns
    assert second.total_ns == STATE.iterations_ns


def test_steps_that_no_phase_claims_stay_whole_and_a_phase_that_claims_too_many_is_not_believed():
    sums = STATE.phases[Phase.DECODE]

    part = device_second(replace(STATE, phases={Phase.DECODE: replace(sums, worker_ns=10)}), {Phase.DECODE: STEP})
    many = device_second(replace(STATE, phases={Phase.DECODE: replace(sums, worker_ns=10**12)}), {Phase.DECODE: STEP})

    assert part.parts_ns[StepPart.STEP] == STATE.worker_ns - 10
    assert many.parts_ns[StepPart.STEP] == STATE.worker_ns
    assert part.total_ns == many.total_ns == STATE.iterations_ns


@pytest.mark.parametrize(
    "state", [ahead(), replace(STATE, worker_ns=-1), replace(STATE, between_ns={Between.NO_WORK: -5})]
)
def test_an_account_that_does_not_tell_or_cannot_be_is_not_shown(state):
    assert device_second(state, {Phase.DECODE: STEP}) is None
