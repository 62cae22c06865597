"""The request that stands for many, and the slow ones."""

from live_states import MS, frontend_state, waterfall

from taxbreak_vllm.insight.requests import NUM_SLOW, newest, slow, typical
from taxbreak_vllm.model.frontend import NUM_WATERFALLS, Stage


def test_the_typical_request_has_the_median_of_each_stage():
    waterfalls = [waterfall(render=1, decode=50), waterfall(render=9, decode=20), waterfall(render=5, decode=30)]

    found = typical(waterfalls * 7, [])

    assert (found.num, found.is_median) == (21, True)
    assert (found.stages_ns[Stage.RENDER], found.stages_ns[Stage.DECODE]) == (5 * MS, 30 * MS)
    assert found.total_ns == waterfalls[2].total_ns
    assert found.ttft_ns == waterfalls[2].ttft_ns


def test_of_no_request_none_stands_for_the_others_and_none_is_slow():
    assert typical([], []) is None
    assert slow([]) == []


def test_the_newest_are_those_that_ended_last():
    early = waterfall(1, started_unix_ns=0, decode=1)
    long = waterfall(2, started_unix_ns=0, decode=900)
    late = waterfall(3, started_unix_ns=100 * MS, decode=1)

    assert [w.number for w in newest([early, late, long])] == [2, 3, 1]
    assert len(newest([early] * 600)) == NUM_WATERFALLS


def test_slow_requests_are_the_slowest_twentieth_in_the_order_given():
    waterfalls = [waterfall(number, decode=100 + number % 20) for number in range(40)]

    assert [w.number for w in slow(waterfalls)] == [19, 39]
    assert [w.number for w in slow([waterfall(1), waterfall(2, decode=90)])] == [2]
    assert len(slow([waterfall(number) for number in range(50)])) == NUM_SLOW


def test_a_stage_that_a_request_does_not_tell_took_no_time():
    bare = waterfall()
    bare.stages_ns.pop(Stage.RENDER)

    assert typical([bare] * 20, []).stages_ns[Stage.RENDER] == 0


def test_while_few_requests_are_followed_the_means_of_all_stand_for_them():
    cold = waterfall(render=270)
    states = [frontend_state(*[waterfall(render=4)] * 15), frontend_state(*[waterfall(render=8)] * 5, api="1")]

    found = typical([cold], states)

    assert (found.num, found.is_median) == (20, False)
    assert found.stages_ns[Stage.RENDER] == 5 * MS
    assert found.total_ns == sum(found.stages_ns.values())
    assert found.first_token_ns == found.ttft_ns == found.total_ns - found.stages_ns[Stage.DECODE]


def test_too_few_requests_stand_for_none():
    assert typical([waterfall()] * 19, [frontend_state(*[waterfall()] * 19)]) is None
    assert typical([], [frontend_state(*[waterfall()] * 20, stages={})]).stages_ns[Stage.RENDER] == 0
