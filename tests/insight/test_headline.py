"""The first thing to know of a server: the rules, and the sentence that says it."""

from dataclasses import replace

import pytest
from live_states import MS, ahead, engine_state, waterfall

from taxbreak_vllm.insight.headline import headline
from taxbreak_vllm.insight.requests import typical
from taxbreak_vllm.insight.second import device_second
from taxbreak_vllm.model.breakdown import DeviceTime, ExposedTax, IdleTime, StepBreakdown
from taxbreak_vllm.model.engine import Between, EnginePart, IdleFrom
from taxbreak_vllm.model.frontend import Stage
from taxbreak_vllm.model.server import Concern, StepPart
from taxbreak_vllm.model.step import Phase
from taxbreak_vllm.output.text.headline import first_sentence

REQUEST = [waterfall(number) for number in range(20)]


def step(*, active=90, ft=4, ct=2, kt=2, calls=2):
    """Recorded decode steps; what the device's time went to, in whatever unit."""
    host = ft + ct + kt + calls
    return StepBreakdown(
        phase=Phase.DECODE,
        device=DeviceTime(
            window_ns=active + host, active_ns=active, idle_ns=host, idle=IdleTime(host_ns=host, edge_ns=0)
        ),
        exposed=ExposedTax(delta_ft_ns=ft, delta_ct_ns=ct, delta_kt_ns=kt, other_ns=calls),
    )


def first(*engines, requests=REQUEST, recorded=None, num_workers=1):
    steps = {Phase.DECODE: step() if recorded is None else recorded}
    seconds = [second for state in engines if (second := device_second(state, steps)) is not None]
    return headline(seconds, typical(requests, []), engines=engines, num_workers=num_workers)


def test_a_slow_tokenizer():
    requests = [waterfall(number, render=41, prefill=21) for number in range(20)]

    found = first(engine_state(between={Between.NO_WORK: 3}), requests=requests)

    assert first_sentence(found) == (
        "Requests wait 41.00 ms of the 62.90 ms to their first token in the tokenizer (render) of the API server,"
        " before the engine sees them."
    )
    assert (found.concern, found.part, found.ratio) == (Concern.FRONTEND, "render", pytest.approx(41 / 62.9))


def test_a_tokenizer_in_which_a_request_spends_most_of_its_time_goes_before_a_larger_share_of_the_device_s():
    host_bound = step(active=40, ft=52)
    longest = [waterfall(number, render=10, prefill=9, decode=9) for number in range(20)]
    shorter = [waterfall(number, render=8, prefill=9, decode=9) for number in range(20)]

    assert first(engine_state(), requests=longest, recorded=host_bound).part is Stage.RENDER
    assert first(engine_state(), requests=shorter, recorded=host_bound).concern is Concern.HOST


def test_a_slow_tokenizer_that_the_device_waits_for_is_named_though_the_wait_weighs_more():
    requests = [waterfall(number, render=7) for number in range(20)]
    state = engine_state(exposed={EnginePart.SCHEDULE: 2}, between={Between.FRONTEND: 12})

    found = first(state, requests=requests)

    assert found.ratio == pytest.approx(12 / 20)
    assert first_sentence(found).startswith("Requests wait 7.00 ms of the 27.90 ms to their first token in the")


def test_an_api_server_that_the_device_waits_for_where_no_request_is_known():
    found = first(engine_state(between={Between.FRONTEND: 4, Between.IPC_INPUT: 0.5}), requests=[])

    assert first_sentence(found) == (
        "The device waits 42.8% of the time for requests on their way to the engine: of each 10.51 ms from one step to"
        " the next, 4.00 ms of it in the API server (frontend)."
    )


def test_decoding_is_in_no_time_to_the_first_token_of_an_answer_that_is_not_streamed():
    whole = waterfall(render=41, decode=900)
    whole = replace(whole, ttft_ns=whole.total_ns, is_streamed=False)

    assert first(engine_state(), requests=[whole] * 20).of_ns == waterfall(render=41).ttft_ns


def test_a_slow_detokenizer_is_said_of_the_whole_answer():
    requests = [waterfall(number, detokenize=30, decode=20) for number in range(20)]

    assert first_sentence(first(engine_state(), requests=requests)) == (
        "Requests wait 30.00 ms of the 70.90 ms to their last byte in the detokenizer (detokenize) of the API server,"
        " after the engine has answered."
    )


def test_a_slow_scheduler():
    state = engine_state(exposed={EnginePart.SCHEDULE: 4.2, EnginePart.UPDATE: 0.3}, between={Between.IPC_RETURN: 0.5})

    found = first(state)

    assert first_sentence(found) == (
        "The device waits 45.5% of the time for the engine's loop: of each 11.00 ms from one step to the next, 4.20 ms"
        " of it in the scheduler (schedule)."
    )
    assert (found.concern, found.part, found.lost_ns) == (Concern.ENGINE, EnginePart.SCHEDULE, 4_200_000)


def test_times_without_a_request_are_in_no_share_of_it():
    state = engine_state(exposed={EnginePart.SCHEDULE: 4}, between={Between.NO_WORK: 7})

    assert first(state).ratio == pytest.approx(0.4)
    assert first(state).of_ns == 10 * MS


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        ("ft", "Python and the dispatch of ops (ΔFT)"),
        ("ct", "vendor libraries (ΔCT)"),
        ("kt", "launch calls (ΔKT)"),
        ("calls", "other runtime calls"),
    ],
)
def test_a_worker_s_host_work_by_its_largest_layer(layer, words):
    found = first(engine_state(worker_ms=10), recorded=step(active=40, **{layer: 52}))

    assert found.concern is Concern.HOST
    assert first_sentence(found).startswith("The device waits 59.")
    assert " of the time for its worker's host work: of each 10.01 ms from one step to the next, 5." in first_sentence(
        found
    )
    assert first_sentence(found).endswith(f" of it in {words}.")


def test_a_device_that_works_is_well():
    found = first(engine_state(worker_ms=9.5, exposed={EnginePart.SCHEDULE: 0.5}))

    assert first_sentence(found) == (
        "All is well on the host: while there are requests, the device works 85.5% of the time."
    )


def test_where_nothing_weighs_enough_nothing_stands_out():
    state = engine_state(exposed={EnginePart.SCHEDULE: 0.7}, between={Between.IPC_RETURN: 0.7})

    found = first(state, recorded=step(active=80, ft=10, ct=2, kt=2, calls=0))

    assert found.concern is Concern.NOTHING
    assert "the device works 69.0% of the time" in first_sentence(found)


def test_requests_that_wait_for_a_place_are_said_where_no_part_of_the_host_is_why():
    requests = [waterfall(number, queue=80) for number in range(20)]

    assert first_sentence(first(engine_state(), requests=requests)).startswith("Requests wait 80.00 ms of the 100.9 ms")
    assert first(engine_state(exposed={EnginePart.SCHEDULE: 5}), requests=requests).concern is Concern.ENGINE


def test_what_requests_wait_for_in_the_queue_is_named():
    requests = [waterfall(number, queue=5, queue_kv=80) for number in range(20)]

    said = first_sentence(first(engine_state(), requests=requests))

    assert said.startswith("Requests wait 80.00 ms of the 105.")
    assert "for KV blocks (queue_kv): the KV cache is full" in said


@pytest.mark.parametrize("exposed_ms", [0.01, 5])
def test_an_idle_server_has_no_work_whatever_its_few_iterations_went_to(exposed_ms):
    state = engine_state(exposed={EnginePart.SCHEDULE: exposed_ms}, between={Between.NO_WORK: 1000})

    found = first(state)

    assert found.concern is Concern.NO_WORK
    assert first_sentence(found).startswith("Nothing is held up: the server had no request for 9")


def test_a_slow_tokenizer_is_said_of_an_idle_server_too():
    state = engine_state(between={Between.NO_WORK: 1000})

    assert first(state, requests=[waterfall(render=41)] * 20).concern is Concern.FRONTEND


def test_of_several_losses_the_largest_is_said_and_of_several_engines_which():
    fine = engine_state(engine="0")
    slow = engine_state(engine="1", exposed={EnginePart.SCHEDULE: 3, EnginePart.GRAMMAR: 5})
    requests = [waterfall(number, render=10) for number in range(20)]

    assert first(fine, slow, requests=requests).engine == "1"
    assert "of engine 1 waits" in first_sentence(first(fine, slow))
    assert first(fine, requests=requests).concern is Concern.FRONTEND


@pytest.mark.parametrize(
    ("engines", "num_workers", "why"),
    [
        ((), 0, "no server writes into this spool"),
        ((), 1, "no engine tells of its loop"),
        ((engine_state(num=12),), 1, "12 iterations so far, and it takes 100"),
        ((engine_state(num=0),), 1, "0 iterations so far, and it takes 100"),
        ((ahead(),), 1, "the engine works a step ahead, and no events on the device tell what it waited for"),
        ((replace(ahead(), off_reason="a hook failed"),), 1, "engine 0 is no longer followed: a hook failed"),
    ],
)
def test_what_is_not_known_is_said_with_the_reason(engines, num_workers, why):
    found = first(*engines, requests=[], num_workers=num_workers)

    assert found.concern is Concern.UNKNOWN
    assert first_sentence(found).startswith("Where the time goes is not known yet: ")
    assert first_sentence(found).endswith(f"{why}.")


def test_a_server_without_recorded_steps_is_not_called_well():
    found = first(engine_state(), recorded=StepBreakdown(device=DeviceTime(idle=IdleTime.unknown())))

    assert "too few steps were recorded" in first_sentence(found)


def test_a_slow_tokenizer_is_said_of_an_engine_that_is_not_known():
    assert first(ahead(), requests=[waterfall(render=41)] * 20).part == "render"
    assert first(requests=[waterfall(render=41)] * 20).part == "render"


def test_events_on_the_device_tell_of_an_engine_that_works_ahead():
    state = engine_state(exposed={EnginePart.UPDATE: 6}, works_ahead=True, idle_from=IdleFrom.DEVICE_EVENTS)

    assert first(state).part is EnginePart.UPDATE


def test_a_request_that_took_no_time_divides_nothing():
    nothing = waterfall(**dict.fromkeys([str(stage) for stage in REQUEST[0].stages_ns], 0))

    assert first(engine_state(), requests=[nothing] * 20).concern is Concern.DEVICE


def test_every_part_there_may_be_has_words():
    for part in (*EnginePart, Between.IPC_DISPATCH, Between.IPC_RETURN):
        fields = {"exposed": {part: 9}} if isinstance(part, EnginePart) else {"between": {part: 9}}
        assert f"({part})" in first_sentence(first(engine_state(**fields)))
    assert StepPart.DELTA_FT not in first_sentence(first(engine_state()))
