"""Over sizes of batches: how steps are put together, which sign turns, and why none does; by hand."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trials import trials

from taxbreak_vllm.insight.transition import transition, transitions
from taxbreak_vllm.model.step import GraphMode, Phase
from taxbreak_vllm.model.transition import Sign, SizedStep, SizeUnit

US = 1_000


def step(requests, *, tklqt_us=None, hdbi=None, **fields):
    """A decode step of 100 launches whose floor is 10 µs each."""
    known = {"phase": Phase.DECODE, "requests": requests, "hdbi": hdbi, "window_ns": 1_000_000, "floor_ns": 1_000 * US}
    queued = {} if tklqt_us is None else {"launches": 100, "tklqt_ns": 100 * tklqt_us * US}
    return SizedStep(**known | queued | fields)


def curve(**signs):
    """A step of each batch: 1, 2, 4, 8 …"""
    (length,) = {len(values) for values in signs.values()}
    return [step(2**place, **{name: values[place] for name, values in signs.items()}) for place in range(length)]


def test_a_climb_of_tklqt_is_taken_before_hdbi_and_both_are_told():
    found = transition(curve(tklqt_us=[10, 11, 19, 40], hdbi=[0.1, 0.6, 0.7, 0.8]), Phase.DECODE)

    assert (found.between, found.by) == ((4, 8), Sign.TKLQT)
    assert {sign: turn.between for sign, turn in found.turns.items()} == {Sign.TKLQT: (4, 8), Sign.HDBI: (1, 2)}


def test_without_a_climb_hdbi_says_it():
    found = transition(curve(tklqt_us=[10, 11, 12, 13], hdbi=[0.1, 0.4, 0.6, 0.8]), Phase.DECODE)

    assert (found.between, found.by) == ((2, 4), Sign.HDBI)
    assert found.turns[Sign.TKLQT].reason == "launches do not queue up at 8 requests, the largest batch recorded"


def test_on_the_cpu_there_is_hdbi_alone():
    found = transition(curve(hdbi=[0.1, 0.4, 0.6, 0.8]), Phase.DECODE)

    assert (found.between, found.by, [*found.turns]) == ((2, 4), Sign.HDBI, [Sign.HDBI])


@pytest.mark.parametrize(
    ("hdbi", "reason"),
    [
        ([0.1, 0.2, 0.3], "the host still decides at 4 requests, the largest batch recorded"),
        ([0.6, 0.7, 0.8], "the device decides already at 1 request, the smallest batch recorded"),
        ([None, None, None], "no recorded step has an HDBI"),
        ([0.2], "only one size of batch was recorded, 1 request"),
    ],
    ids=["host", "device", "unknown", "one"],
)
def test_a_load_on_one_side_has_a_reason_and_no_turn(hdbi, reason):
    found = transition(curve(hdbi=hdbi), Phase.DECODE)

    assert (found.between, found.by, found.reason) == (None, None, reason)


@pytest.mark.parametrize("busy", [{"floor_ns": None}, {"floor_ns": 1_000 * US}], ids=["no floor known", "a floor"])
def test_twice_the_tklqt_of_a_busy_device_is_no_climb(busy):
    steps = [each._replace(**busy) for each in curve(tklqt_us=[400, 900, 2_000], hdbi=[0.7, 0.8, 0.9])]

    found = transition(steps, Phase.DECODE)

    assert found.between is None
    assert found.turns[Sign.TKLQT].reason == "launches queue up already at 1 request, the smallest batch recorded"


def test_a_device_that_waits_for_an_engine_has_launches_at_their_floor_whatever_hdbi_says():
    found = transition(curve(tklqt_us=[12, 13, 300], hdbi=[0.7, 0.8, 0.9]), Phase.DECODE)

    assert (found.between, found.by) == ((2, 4), Sign.TKLQT)


def test_a_bucket_out_of_line_is_pooled_with_its_neighbours():
    steps = [step(size, hdbi=hdbi) for size, values in ((1, 5), (2, 1), (4, 5), (8, 5)) for hdbi in _near(size, values)]

    found = transition(steps, Phase.DECODE)

    assert found.between == (4, 8)


def _near(size, num):
    return [{1: 0.2, 2: 0.55, 4: 0.3, 8: 0.8}[size] + 0.01 * place for place in range(num)]


def test_where_more_than_a_quarter_of_a_side_disagree_nothing_is_said():
    steps = [step(1, hdbi=0.2)] * 3 + [step(8, hdbi=0.8)] * 2 + [step(8, hdbi=0.1)]

    found = transition(steps, Phase.DECODE)

    assert found.between is None
    assert found.reason == "steps of one size differ more than sizes do: 33% on the device's side say the opposite"
    assert found.turns[Sign.HDBI].dissent_ratio == pytest.approx(1 / 3)


def test_sizes_up_to_8_stand_alone_and_larger_ones_in_four_buckets_for_each_doubling():
    found = transition([step(size, hdbi=0.1) for size in (*range(1, 34), 64)], Phase.DECODE)

    buckets = [(bucket.least, bucket.most) for bucket in found.buckets]
    assert buckets[:8] == [(size, size) for size in range(1, 9)]
    assert buckets[8:] == [
        *[(9, 10), (11, 12), (13, 14), (15, 16)],
        *[(17, 20), (21, 24), (25, 28), (29, 32)],
        *[(33, 33), (64, 64)],
    ]


def test_phases_that_work_on_prompts_are_sized_by_their_tokens():
    steps = [
        step(1, hdbi=hdbi)._replace(phase=Phase.PREFILL, prompt_tokens=tokens)
        for tokens, hdbi in ((64, 0.2), (512, 0.4), (2048, 0.9))
    ]

    (found,) = transitions([*steps, SizedStep(phase=Phase.IDLE)])

    assert (found.phase, found.unit, found.between) == (Phase.PREFILL, SizeUnit.PROMPT_TOKENS, (512, 2048))


def test_what_is_left_out_and_what_recording_did_is_noted():
    steps = [each._replace(graph_mode=GraphMode.FULL, dilation=1.4) for each in curve(hdbi=[0.2, 0.4, 0.9])]
    others = [step(2, hdbi=0.9)._replace(graph_mode=GraphMode.NONE), step(None)]

    found = transition([*steps, *others], Phase.DECODE)

    assert found.between == (2, 4)
    assert found.notes == (
        "steps in graph mode none left out, as their launches are others: 1",
        "steps that do not tell the size of their batch: 1",
        "recording made these steps 1.40 times as long, most of it the host's part: without it the device decides from"
        " no more than that on",
    )


def test_no_step_with_a_size_is_told():
    found = transition([step(None)], Phase.DECODE)

    assert (found.between, found.reason, found.buckets) == (None, "no recorded step tells its requests", ())


_maybe_ns = st.none() | st.integers(0, 10**9)
_steps = st.builds(
    SizedStep,
    phase=st.none() | st.sampled_from(Phase),
    graph_mode=st.none() | st.sampled_from(GraphMode),
    requests=st.none() | st.integers(0, 300),
    prompt_tokens=st.none() | st.integers(0, 9000),
    window_ns=st.integers(0, 10**9),
    device_window_ns=st.integers(0, 10**9),
    launches=st.none() | st.integers(0, 2000),
    tklqt_ns=_maybe_ns,
    floor_ns=_maybe_ns,
    hdbi=st.none() | st.floats(0, 1),
    exposed_ns=_maybe_ns,
    limit_ns=_maybe_ns,
    dilation=st.none() | st.floats(0.1, 10),
)


@trials(100)
@given(st.lists(_steps, max_size=30))
def test_of_any_steps_there_is_a_turn_between_neighbours_or_a_reason(steps):
    for found in transitions(steps):
        assert (found.between is None) == (found.by is None) == (found.reason is not None)
        assert found.phase is not Phase.IDLE
        sizes = [(before.most, after.least) for before, after in pairwise(found.buckets)]
        assert all(most < least for most, least in sizes)
        if found.between is not None:
            host, device = found.between
            assert host in [most for most, _ in sizes]
            assert device in [least for _, least in sizes]
            assert host < device
            assert found.turns[found.by].between == found.between
