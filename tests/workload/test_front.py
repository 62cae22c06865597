"""A point is on the front where no other has as much throughput of a replica with latencies as low."""

from taxbreak_vllm.model.sweep import SweepPoint
from taxbreak_vllm.model.workload import Latencies
from taxbreak_vllm.workload.front import with_front


def point(tokens_per_s, ttft_s, tpot_s=0.01, replicas=1):
    spread = {"mean": 0.0, "p50": 0.0, "p99": 0.0}
    told = Latencies(
        num_requests=9, tokens_per_s=tokens_per_s, ttft_s=spread | {"p90": ttft_s}, tpot_s=spread | {"p90": tpot_s}
    )
    return SweepPoint(changes={}, load=1.0, replicas=replicas, predicted=told)


def on_front(*points, metrics=("ttft", "tpot")):
    return [each.is_on_front for each in with_front(points, metrics)]


def test_what_is_beaten_in_all_is_not_on_it_and_what_is_best_in_one_is():
    assert on_front(point(100, 0.1), point(90, 0.2), point(80, 0.05)) == [True, False, True]


def test_only_the_metrics_of_the_slo_count():
    assert on_front(point(100, 0.1, 0.03), point(90, 0.2, 0.01)) == [True, True]
    assert on_front(point(100, 0.1, 0.03), point(90, 0.2, 0.01), metrics=("ttft",)) == [True, False]


def test_replicas_cost():
    assert on_front(point(100, 0.1), point(110, 0.1, replicas=2)) == [True, False]


def test_two_that_are_alike_are_both_on_it_and_one_without_an_answer_is_not():
    refused = SweepPoint(changes={}, load=1.0, reason="not known")

    assert on_front(point(100, 0.1), point(100, 0.1), refused) == [True, True, False]
