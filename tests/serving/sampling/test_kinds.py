import pytest

from taxbreak_vllm.model.step import STEP_BUCKETS_NS, GraphMode, Phase
from taxbreak_vllm.serving.sampling.kinds import StepKinds
from taxbreak_vllm.serving.steps import GraphModes


@pytest.fixture
def kinds():
    return StepKinds(GraphModes(decode=GraphMode.FULL, mixed=GraphMode.NONE, max_tokens=64))


def test_a_step_falls_into_the_first_bucket_that_bounds_it(kinds):
    durations_ns = (1, STEP_BUCKETS_NS[0], STEP_BUCKETS_NS[0] + 1, STEP_BUCKETS_NS[-1], STEP_BUCKETS_NS[-1] + 1)
    for elapsed_ns in durations_ns:
        kinds.of(Phase.DECODE, 4).add(elapsed_ns)

    (histogram,) = kinds.histograms()

    assert histogram.bucket_counts == (2, 1, *[0] * (len(STEP_BUCKETS_NS) - 3), 1, 1)
    assert (histogram.num_steps, histogram.sum_ns) == (5, sum(durations_ns))


def test_histograms_are_told_apart_by_phase_and_graph_mode_not_by_size(kinds):
    for phase, num_tokens in [(Phase.DECODE, 1), (Phase.DECODE, 32), (Phase.DECODE, 300), (Phase.PREFILL, 300)]:
        kinds.of(phase, num_tokens).add(10)

    assert [(h.phase, h.graph_mode, h.num_steps) for h in kinds.histograms()] == [
        (Phase.DECODE, "full", 2),
        (Phase.DECODE, "none", 1),
        (Phase.PREFILL, "none", 1),
    ]


def test_the_plain_step_is_the_median_of_the_latest_of_its_kind(kinds):
    kind = kinds.of(Phase.DECODE, 5)
    for elapsed_ns in (*[900] * 64, *[10] * 31, 30, *[40] * 32):
        kind.add(elapsed_ns)
    kinds.of(Phase.DECODE, 8).add(7000)

    assert kinds.of(Phase.DECODE, 4).median() == (30, 64)
    assert kinds.of(Phase.DECODE, 15).median() == (7000, 1)
    assert kinds.of(Phase.DECODE, 100).median() == (None, 0)


def test_a_step_beside_which_a_recording_was_stored_counts_but_is_not_compared_with(kinds):
    kind = kinds.of(Phase.DECODE, 5)

    kind.add(10, is_quiet=False)

    assert kind.median() == (None, 0)
    assert [h.num_steps for h in kinds.histograms()] == [1]


def test_a_kind_is_a_phase_a_power_of_two_of_tokens_and_a_graph_mode(kinds, schedule):
    decodes = [
        kinds.of_step(schedule({str(i): 1 for i in range(n)}, cached=[(str(i), 3) for i in range(n)]))
        for n in (4, 7, 8, 64, 65, 127)
    ]

    assert [decodes[0] is other for other in decodes] == [True, True, False, False, False, False]
    assert decodes[3] is not decodes[4]  # both 64 to 127 tokens, but only one fits a graph
    assert decodes[4] is decodes[5]
    assert len({kind.name for kind in kinds}) == 4


def test_a_step_has_the_kind_that_its_classification_says(kinds, schedule, decode):
    steps = {
        Phase.DECODE: decode,
        Phase.IDLE: schedule({}),
        Phase.PREFILL: schedule({"a": 5}, new=[("a", 5, 0)]),
        Phase.MIXED: schedule({"a": 1, "b": 5}, cached=[("a", 3)], new=[("b", 5, 0)]),
        Phase.VERIFY: schedule({"a": 4}, cached=[("a", 3)], drafts={"a": 3}),
        Phase.ENCODE: schedule({"a": 5}, new=[("a", 5, 0)], encoder={"a": [0]}),
    }

    assert {phase: kinds.of_step(step).phase for phase, step in steps.items()} == {phase: phase for phase in steps}
