"""HDBI of a whole server: the device's time over itself, the host's work, and what it waits for between steps."""

from dataclasses import replace

import pytest
from live_states import MS, ahead, engine_state

from taxbreak_vllm.model.engine import Between, EnginePart, IdleFrom
from taxbreak_vllm.model.server import PhaseBalance
from taxbreak_vllm.model.step import Phase
from taxbreak_vllm.taxes.server import MIN_ITERATIONS, server_hdbi

DECODE = {Phase.DECODE: PhaseBalance(num_steps=4, active_ns=4 * 5 * MS, orchestration_ns=4 * 2 * MS)}
ENGINE = engine_state(
    exposed={EnginePart.SCHEDULE: 1, EnginePart.LOOP: 0.5},
    between={Between.IPC_RETURN: 0.5, Between.FRONTEND: 0.7, Between.IPC_INPUT: 0.3, Between.NO_WORK: 40},
)


def test_orchestration_also_holds_engine_messages_and_api_server_and_no_time_without_a_request():
    found = server_hdbi(DECODE, [ENGINE])

    assert found.phases == {Phase.DECODE: pytest.approx(5 / (5 + 2 + 3))}
    assert found.total == pytest.approx(0.5)
    assert found.reasons == {}


def test_engines_of_one_model_count_by_their_iterations():
    other = engine_state(num=3000, engine="1", exposed={EnginePart.SCHEDULE: 7})

    assert server_hdbi(DECODE, [ENGINE, other]).total == pytest.approx(5 / (5 + 2 + (3 + 3 * 7) / 4))


def test_the_total_weighs_phases_as_they_ran_not_as_they_were_recorded():
    prefill = PhaseBalance(num_steps=100, active_ns=100 * 50 * MS, orchestration_ns=0)
    engine = replace(ENGINE, phases=ENGINE.phases | engine_state(num=100, phase=Phase.PREFILL).phases)

    found = server_hdbi(DECODE | {Phase.PREFILL: prefill}, [engine])

    assert found.phases[Phase.PREFILL] == pytest.approx(50 / 50.01)
    assert found.total == pytest.approx((5000 + 5000) / (10_000 + 5001))


def test_too_few_iterations_give_no_figure_and_a_reason():
    few = engine_state(num=MIN_ITERATIONS - 1, phase=Phase.PREFILL)
    engine = replace(ENGINE, phases=ENGINE.phases | few.phases)
    prefill = PhaseBalance(num_steps=1, active_ns=1, orchestration_ns=1)

    found = server_hdbi(DECODE | {Phase.PREFILL: prefill}, [engine])

    assert found.phases[Phase.PREFILL] is None
    assert found.reasons == {"prefill": "the engine tells of 99 iterations, and it takes 100"}
    assert found.total == pytest.approx(0.5)
    assert server_hdbi({Phase.PREFILL: prefill}, [few]).total is None


def test_without_most_iterations_there_is_no_total():
    engine = replace(ENGINE, phases=ENGINE.phases | engine_state(num=200, phase=Phase.PREFILL).phases)

    found = server_hdbi(DECODE, [engine])

    assert found.phases == {Phase.PREFILL: None, Phase.DECODE: pytest.approx(0.5)}
    assert found.total is None
    assert found.reasons == {
        "prefill": "none of its recorded steps has an HDBI",
        "total": "its phases are known of 1000 of 1200 iterations",
    }
    assert server_hdbi(DECODE, [engine], only=Phase.DECODE).total == pytest.approx(0.5)


def test_dummy_batches_are_no_phase_that_is_missed():
    engine = replace(ENGINE, phases=ENGINE.phases | engine_state(num=9000, phase=Phase.IDLE).phases)

    assert server_hdbi(DECODE, [engine]).reasons == {}


@pytest.mark.parametrize(
    ("engines", "why"),
    [
        ([], "no engine of this model runs that tells of its loop"),
        ([ENGINE, ahead(engine="1")], "works a step ahead, and no events on the device tell when it was idle"),
        ([replace(ENGINE, phases={})], "tells nothing of single phases yet"),
    ],
)
def test_where_an_engine_does_not_tell_every_figure_is_unknown_with_the_reason(engines, why):
    found = server_hdbi(DECODE, engines)

    assert (found.total, found.phases) == (None, {Phase.DECODE: None})
    assert set(found.reasons) == {"total", "decode"}
    assert all(reason.endswith(why) for reason in found.reasons.values())


def test_with_events_on_the_device_an_engine_that_works_ahead_has_it():
    engine = replace(ENGINE, works_ahead=True, idle_from=IdleFrom.DEVICE_EVENTS)

    assert server_hdbi(DECODE, [engine]).total == pytest.approx(0.5)


def test_steps_without_an_hdbi_have_none_here_and_times_that_cannot_be_leave_it_a_ratio():
    unknown = {Phase.DECODE: PhaseBalance(num_steps=0, active_ns=0, orchestration_ns=0)}
    nothing = {Phase.DECODE: PhaseBalance(num_steps=1, active_ns=0, orchestration_ns=0)}
    odd = engine_state(between={Between.IPC_RETURN: -500}, exposed={EnginePart.LOOP: 0})

    assert server_hdbi(unknown, [ENGINE]).reasons["decode"] == "none of its recorded steps has an HDBI"
    assert server_hdbi(DECODE, [odd]).total == pytest.approx(5 / 7)
    assert server_hdbi(nothing, [odd]).reasons["decode"] == "neither device nor host took any time"
