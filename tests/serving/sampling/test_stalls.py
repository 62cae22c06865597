import pytest

from taxbreak_vllm.model.step import GraphMode, Phase
from taxbreak_vllm.serving.sampling.kinds import StepKinds
from taxbreak_vllm.serving.sampling.stalls import Detail, Stalls
from taxbreak_vllm.serving.steps import GraphModes

BOTH = (Detail.SHAPES, Detail.TIMES)


@pytest.fixture
def kinds():
    return StepKinds(GraphModes(decode=GraphMode.FULL, mixed=GraphMode.NONE, max_tokens=64))


@pytest.fixture
def decode(kinds):
    return kinds.of(Phase.DECODE, 4)


@pytest.fixture
def stalls():
    """Stops may take 100 ns, of recordings of one step."""
    return Stalls(100, num_steps=1)


def test_what_was_never_recorded_may_be(stalls, decode):
    assert stalls.choose(decode, BOTH) is Detail.SHAPES


@pytest.mark.parametrize(("stop_ns", "chosen"), [(100, Detail.SHAPES), (101, Detail.TIMES)])
def test_shapes_are_left_out_where_the_last_stop_with_them_took_too_long(stalls, decode, stop_ns, chosen):
    stalls.learn(decode, Detail.SHAPES, stop_ns, 1)

    assert stalls.choose(decode, BOTH) is chosen


def test_nothing_is_recorded_where_a_stop_without_shapes_took_too_long_as_well(stalls, decode):
    stalls.learn(decode, Detail.SHAPES, 500, 1)
    stalls.learn(decode, Detail.TIMES, 101, 1)

    assert stalls.choose(decode, BOTH) is None
    assert stalls.choose(decode, (Detail.STACKS,)) is Detail.STACKS


def test_the_latest_stop_counts(stalls, decode):
    stalls.learn(decode, Detail.SHAPES, 500, 1)
    stalls.learn(decode, Detail.SHAPES, 50, 1)

    assert stalls.choose(decode, BOTH) is Detail.SHAPES


def test_a_kind_too_dear_is_tried_again_after_ever_more_picks(stalls, decode):
    waits = []
    for _ in range(9):
        stalls.learn(decode, Detail.TIMES, 500, 1)
        waits.append(next(num for num in range(2000) if stalls.choose(decode, (Detail.TIMES,))))

    assert waits == [32, 64, 128, 256, 512, 1024, 1024, 1024, 1024]


def test_one_slow_stop_is_forgotten_once_another_was_quick(stalls, decode):
    for stop_ns in (500, 50, 500):
        stalls.learn(decode, Detail.TIMES, stop_ns, 1)

    assert [stalls.choose(decode, (Detail.TIMES,)) for _ in range(33)] == [None] * 32 + [Detail.TIMES]


def test_what_is_asked_for_keeps_the_bound_however_often_it_comes(stalls, decode):
    stalls.learn(decode, Detail.STACKS, 500, 1)

    assert {stalls.choose(decode, (Detail.STACKS,), is_asked=True) for _ in range(5000)} == {None}


def test_a_kind_never_recorded_is_taken_for_the_nearest_of_its_graph_mode(stalls, kinds):
    stalls.learn(kinds.of(Phase.DECODE, 1), Detail.TIMES, 10, 1)  # in a graph: nothing like an eager step
    stalls.learn(kinds.of(Phase.PREFILL, 128), Detail.TIMES, 500, 1)
    stalls.learn(kinds.of(Phase.PREFILL, 4096), Detail.TIMES, 70, 1)
    stalls.learn(kinds.of(Phase.MIXED, 2048), Detail.TIMES, 90, 1)

    assert stalls.predict_ns(kinds.of(Phase.DECODE, 32), Detail.TIMES) == 10
    assert stalls.predict_ns(kinds.of(Phase.PREFILL, 2048), Detail.TIMES) == 70
    assert stalls.predict_ns(kinds.of(Phase.PREFILL, 256), Detail.TIMES) == 500
    assert stalls.predict_ns(kinds.of(Phase.PREFILL, 256), Detail.SHAPES) == 0


def test_a_recording_of_more_steps_than_most_is_no_measure_of_the_next_one(kinds):
    stalls = Stalls(100, num_steps=2)
    stalls.learn(kinds.of(Phase.DECODE, 4), Detail.SHAPES, 360, 9)

    assert stalls.predict_ns(kinds.of(Phase.DECODE, 4), Detail.SHAPES) == 80
