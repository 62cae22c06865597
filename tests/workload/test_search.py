"""A search finds where an SLO ends, tells what is beyond it, and asks few questions."""

import pytest

from taxbreak_vllm.model.sweep import Aim, Limit, SweepPoint
from taxbreak_vllm.model.workload import Latencies
from taxbreak_vllm.workload.search import NEAR, fewest_replicas, greatest_load
from taxbreak_vllm.workload.task import Search

LOADS = Search(Aim.THROUGHPUT, 1 / 16, 16.0)
REPLICAS = Search(Aim.REPLICAS, 1, 64)


def point(*, load=1.0, replicas=1, ratio=None):
    told = None if ratio is None else Latencies(num_requests=9, tokens_per_s=1.0, slo_ratio=ratio)
    meets, reason = (None, "not known") if ratio is None else (ratio >= 0.9, None)
    return SweepPoint(changes={}, load=load, replicas=replicas, predicted=told, meets_slo=meets, reason=reason)


@pytest.mark.parametrize("end", [0.07, 0.5, 0.9, 1.0, 1.7, 5.3, 15.9])
def test_the_greatest_load_is_found_from_below(end):
    found = greatest_load(lambda load: point(load=load, ratio=1.0 if load <= end else 0.5), LOADS)

    assert end / NEAR <= found.load <= end
    assert (found.limit, found.meets_slo) == (Limit.SLO, True)
    assert found.ended_by.endswith("x: 50.0% keep to the SLO")
    assert found.num_answers <= 11


def test_what_is_refused_bounds_a_load_from_above_and_is_said_to_be_no_fault_of_the_slo():
    found = greatest_load(lambda load: point(load=load, ratio=1.0 if load < 3 else None), LOADS)

    assert 3 / NEAR <= found.load < 3
    assert found.limit is Limit.UNKNOWN
    assert found.ended_by.endswith("x: not known")


def test_a_load_that_always_keeps_it_ends_at_what_was_asked():
    found = greatest_load(lambda load: point(load=load, ratio=1.0), LOADS)

    assert (found.load, found.limit, found.num_answers) == (16.0, Limit.ASKED, 5)


def test_a_load_that_never_keeps_it_is_told_with_the_least():
    found = greatest_load(lambda load: point(load=load, ratio=0.1), LOADS)

    assert (found.load, found.meets_slo, found.limit) == (1 / 16, False, Limit.SLO)


@pytest.mark.parametrize("needed", [1, 2, 3, 7, 33, 64])
def test_the_fewest_replicas_are_found(needed):
    found = fewest_replicas(lambda num: point(replicas=num, ratio=1.0 if num >= needed else 0.5), REPLICAS)

    assert (found.replicas, found.meets_slo) == (needed, True)
    assert found.limit is (Limit.ASKED if needed == 1 else Limit.SLO)
    assert found.num_answers <= 13


def test_more_replicas_than_asked_for_are_not_named():
    found = fewest_replicas(lambda num: point(replicas=num, ratio=0.5), REPLICAS)

    assert (found.replicas, found.meets_slo) == (64, False)
