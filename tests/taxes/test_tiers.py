"""Which baseline a row gets: its own, its likes' median, the trace's, or none."""

import numpy as np
import pytest

from taxbreak_vllm.baselines.store import Baselines
from taxbreak_vllm.model.baseline import Baseline, Environment, Outcome, Spread
from taxbreak_vllm.model.breakdown import Tier
from taxbreak_vllm.taxes.tiers import TIERS, ReplayedTimes, gather, shares
from taxbreak_vllm.trace.calls import Call, Kernel, signature
from taxbreak_vllm.trace.signatures import Signature

HERE = Environment(device_type="cuda", device_name="made up", torch="2")
KERNEL = Kernel("k", (1, 1, 1), (32, 1, 1), 0)


def signed(*ops):
    return Signature(tuple(Call(op) for op in ops), KERNEL)


def entry(op, dispatch_ns, launch_ns=None, outcome=Outcome.MEASURED):
    return Baseline(
        signature=signature(Call(op), KERNEL),
        op=op,
        outcome=outcome,
        dispatch=None if dispatch_ns is None else Spread(dispatch_ns, 0, 1),
        launch=None if launch_ns is None else Spread(launch_ns, 0, 1),
    )


@pytest.fixture
def look_up(tmp_path):
    """Gather the evidence of rows, one signature each, from these entries."""

    def look_up(entries, signatures, *likes, of_row=None):
        with Baselines(tmp_path / "store.sqlite3") as store:
            store.put(HERE, entries)
            of_row = np.arange(len(signatures)) if of_row is None else np.array(of_row)
            group = [np.array(own) for own in likes]
            return gather(store.view({}), signatures, of_row, group, rest=Tier.TRACE)

    return look_up


def tiers(evidence):
    return [TIERS[tier] for tier in evidence.tier]


def test_a_row_takes_its_own_signature_the_root_ops_before_the_leafs(look_up):
    found = look_up([entry("root", 10), entry("leaf", 20, 500)], [signed("root", "leaf"), signed("other", "leaf")])

    assert found.dispatch_ns.tolist() == [10, 20]
    assert found.launch_ns.tolist() == [-1, 500]
    assert found.library_ns.tolist() == [-1, -1]
    assert tiers(found) == [Tier.REPLAYED] * 2
    assert found.is_replayed.all()


def test_a_root_op_that_failed_leaves_it_to_the_leaf(look_up):
    found = look_up([entry("root", None, outcome=Outcome.FAILED), entry("leaf", 20)], [signed("root", "leaf")])

    assert found.dispatch_ns.tolist() == [20]


def test_a_row_not_replayed_takes_the_median_of_its_closest_likes(look_up):
    entries = [entry("a", 10), entry("b", 30), entry("c", 80)]
    signatures = [signed(op) for op in ("a", "b", "c", "x", "y", "z")]

    found = look_up(entries, signatures, [1, 1, 2, 1, -1, 3], [7, 7, 7, 7, 7, 8])

    assert found.dispatch_ns.tolist() == [10, 30, 80, 20, 30, -1]  # x: of a, b; y: of all three; z: alone
    assert tiers(found) == [Tier.REPLAYED] * 3 + [Tier.FAMILY, Tier.FAMILY, Tier.TRACE]


def test_what_stands_in_for_another_is_no_like_of_a_third(look_up):
    found = look_up([entry("a", 10)], [signed(op) for op in ("a", "x", "y")], [1, 1, 2], [5, 6, 6])

    assert tiers(found) == [Tier.REPLAYED, Tier.FAMILY, Tier.TRACE]


def test_a_median_counts_every_row_not_every_signature(look_up):
    entries, signatures = [entry("a", 10), entry("b", 30)], [signed(op) for op in ("a", "b", "x")]

    found = look_up(entries, signatures, [0, 0, 0, 0], of_row=[0, 0, 1, 2])

    assert found.dispatch_ns.tolist() == [10, 10, 30, 10]


def test_denied_rows_are_marked_whatever_tier_they_get(look_up):
    denied = entry("no", None, outcome=Outcome.DENIED)
    failed = entry("bad", None, outcome=Outcome.CRASHED)

    found = look_up([denied, failed, entry("a", 10)], [signed(op) for op in ("no", "bad", "a", "new")], [0, 1, 0, 2])

    assert found.is_denied.tolist() == [True, False, False, False]
    assert tiers(found) == [Tier.FAMILY, Tier.TRACE, Tier.REPLAYED, Tier.TRACE]


def test_rows_without_a_signature_know_nothing_and_can_be_put_on_the_floor(look_up):
    found = look_up([entry("a", 10)], [signed("a")], [0, -1], of_row=[0, -1])

    assert found.dispatch_ns.tolist() == [10, -1]
    assert tiers(found.floored(np.array([False, True]))) == [Tier.REPLAYED, Tier.FLOOR]
    assert found.of(np.array([1, 0])).dispatch_ns.tolist() == [-1, 10]


def test_no_rows_at_all(look_up):
    assert len(look_up([entry("a", 1)], [], [], of_row=np.empty(0, dtype=np.intp)).tier) == 0
    assert tiers(ReplayedTimes.none(2, Tier.FLOOR)) == [Tier.FLOOR] * 2


def test_shares_are_of_the_time_each_tier_carries():
    assert shares(np.array([30, 50, 0, 20])) == {Tier.REPLAYED: 0.3, Tier.FAMILY: 0.5, Tier.FLOOR: 0.2}
    assert shares(np.zeros(4, dtype=np.int64)) == {}
