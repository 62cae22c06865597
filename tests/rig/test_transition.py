"""The batch from which the device decides, as recorded steps tell it, against what was put into the servers."""

from dataclasses import replace
from random import Random

import pytest

from rig.batches import MIDDLE, Batches, in_graphs, neighbours
from rig.server import run
from rig.trace import middle_of_three, to_json
from taxbreak_vllm.insight.transition import transitions
from taxbreak_vllm.model.step import Batch
from taxbreak_vllm.model.transition import Sign, SizedStep

SIZES = (1, 2, 4, 8, 16, 32, 64)


@pytest.fixture(scope="module")
def recorded(analyze_sample):
    """Record a step of a server and say what of it the transition is read from."""

    def recorded(server, batch):
        trace, _ = middle_of_three(run(server), MIDDLE)
        (step,) = analyze_sample(to_json(trace), server, Batch(requests=batch, prompt_tokens=0)).steps
        return SizedStep.of(step)

    return recorded


def found_in(steps):
    (one,) = transitions(steps)
    return one


def is_within_one_bucket(between, sizes, knee):
    """Whether an interval is that of the knee, or the one beside it."""
    _, device = neighbours(sizes, knee)
    return between is not None and abs(sizes.index(between[1]) - sizes.index(device)) <= 1


SERVERS = {
    "a launch at a time, a step ahead": lambda batches, size: batches.server(size),
    "a launch at a time, each step waited for": lambda batches, size: replace(batches, steps_ahead=0).server(size),
    "in graphs, a step ahead": in_graphs,
}


@pytest.mark.parametrize("each_ns", [300, 5_000])
@pytest.mark.parametrize("kind", SERVERS)
def test_the_knee_lies_between_its_neighbours(recorded, kind, each_ns):
    batches = Batches(each_ns=each_ns)

    found = found_in([recorded(SERVERS[kind](batches, size), size) for size in SIZES])

    assert found.between == neighbours(SIZES, batches.knee)
    assert found.by is Sign.TKLQT
    assert [(bucket.least, bucket.num_steps) for bucket in found.buckets] == [(size, 1) for size in SIZES]


def test_hdbi_turns_where_the_device_works_as_long_as_the_host(recorded):
    batches = Batches(each_ns=1_200)

    found = found_in([recorded(batches.server(size), size) for size in SIZES])

    assert found.turns[Sign.HDBI].between == neighbours(SIZES, batches.balance) == (16, 32)


def test_among_all_batches_it_is_found_to_within_one(recorded):
    knee, sizes = 19, tuple(range(1, 27))
    batches = Batches(base_ns=19_000 - 500 * knee, each_ns=500)

    found = found_in([recorded(batches.server(size), size) for size in sizes])

    host, device = found.between
    assert host <= knee + 1
    assert device >= knee - 1 - knee // 8  # from 8 on a bucket holds several sizes


def test_a_load_that_does_not_reach_it_crosses_nothing(recorded):
    batches = Batches(each_ns=300)
    sizes = [size for size in SIZES if size < batches.knee]

    found = found_in([recorded(batches.server(size), size) for size in sizes])

    assert (found.between, found.by) == (None, None)
    assert found.reason == (
        "launches do not queue up at 32 requests, the largest batch recorded;"
        " the host still decides at 32 requests, the largest batch recorded"
    )


@pytest.mark.parametrize("kind", SERVERS)
def test_a_load_that_begins_beyond_it_crosses_nothing_though_its_tklqt_doubles(recorded, kind):
    batches = Batches(each_ns=20_000)
    sizes = [size for size in SIZES if size >= 2 * batches.knee]

    found = found_in([recorded(SERVERS[kind](batches, size), size) for size in sizes])

    waits_ns = [bucket.tklqt_per_launch_ns for bucket in found.buckets]
    assert waits_ns[-1] > 2 * waits_ns[0]
    assert found.between is None
    assert "launches queue up already at 2 requests, the smallest batch recorded" in found.reason


def test_one_batch_alone_crosses_nothing(recorded):
    batches = Batches()

    found = found_in([recorded(batches.server(8), 8) for _ in range(3)])

    assert found.between is None
    assert found.reason == "only one size of batch was recorded, 8 requests"


def test_where_batches_are_missing_the_interval_is_as_wide_as_what_is_missing(recorded):
    batches = Batches(each_ns=1_200)

    found = found_in([recorded(batches.server(size), size) for size in (1, 2, 96, 128)])

    assert found.between == (2, 96) == neighbours((1, 2, 96, 128), batches.knee)


@pytest.mark.parametrize("seeds", [range(2), pytest.param(range(2, 40), marks=pytest.mark.nightly)], ids=str)
def test_noise_moves_it_by_one_bucket_at_most(recorded, seeds):
    for seed in seeds:
        random = Random(seed)
        batches = Batches(each_ns=random.randint(400, 4_000), noise=0.3, steps_ahead=random.randint(0, 1))
        steps = [recorded(batches.server(size, random), size) for size in SIZES for _ in range(3)]

        found = found_in(steps)

        assert is_within_one_bucket(found.between, SIZES, batches.knee), (seed, batches.knee, found.between)


def test_a_server_of_another_knee_is_told_another(recorded):
    """A planted fault: a device four times as quick."""
    batches = Batches(each_ns=1_200)

    found = found_in([recorded(replace(batches, each_ns=300).server(size), size) for size in SIZES])

    assert not is_within_one_bucket(found.between, SIZES, batches.knee)


def test_batches_told_wrongly_are_noticed(recorded):
    batches = Batches(each_ns=1_200)
    steps = [recorded(batches.server(size), size) for size in SIZES] * 4

    for seed in range(20):
        Random(seed).shuffle(steps)

        found = found_in([step._replace(requests=SIZES[at % len(SIZES)]) for at, step in enumerate(steps)])

        assert found.between is None, seed
        assert "differ more than sizes do" in found.reason
