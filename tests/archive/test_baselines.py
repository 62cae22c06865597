"""Baselines by way of an archive: what one host measured no other measures again, and no order of hosts matters."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taxbreak_vllm.archive.baselines import sync
from taxbreak_vllm.archive.layout import BASELINES
from taxbreak_vllm.archive.store import Store
from taxbreak_vllm.baselines.records import Records
from taxbreak_vllm.baselines.store import Baselines
from taxbreak_vllm.model.baseline import Baseline, Environment, Floor, FloorKind, Floors, Outcome, Spread
from taxbreak_vllm.model.ceilings import MeasuredCeilings, Rate

H100 = Environment(device_type="cuda", device_name="NVIDIA H100", torch="2.13", driver="12090")
L4 = replace(H100, device_name="NVIDIA L4")
RATES = st.builds(Rate, per_s=st.integers(1, 3).map(float), by=st.sampled_from("ab"))
ENTRIES = st.builds(
    Baseline,
    signature=st.sampled_from("xyz"),
    op=st.just("aten::mm"),
    outcome=st.sampled_from([Outcome.MEASURED, Outcome.TIMED_OUT]),
    reason=st.sampled_from(["", "slow"]),
    launch=st.none() | st.integers(1, 3).map(lambda ns: Spread(ns, 0, 1)),
    measured_unix_ns=st.integers(0, 2),
)
RECORDS = st.builds(
    Records,
    environment=st.just(H100),
    floors=st.none()
    | st.builds(
        Floors,
        floors=st.integers(1, 3).map(lambda ns: (Floor(kind=FloorKind.KERNEL, spread=Spread(ns, 0, 1)),)),
        measured_unix_ns=st.integers(0, 2),
    ),
    ceilings=st.none()
    | st.builds(
        MeasuredCeilings,
        flops_per_s=st.dictionaries(st.sampled_from(["bf16", "fp8"]), RATES),
        bytes_per_s=st.dictionaries(st.integers(1, 2), RATES),
        shortest_kernel_ns=st.none() | st.integers(1, 3),
        missing=st.dictionaries(st.sampled_from(["fp4", "fp6"]), st.sampled_from(["no", "nope"])),
        measured_unix_ns=st.integers(0, 2),
    ),
    entries=st.lists(ENTRIES, max_size=3).map(lambda found: {entry.signature: entry for entry in found}),
)


@given(RECORDS, RECORDS, RECORDS)
def test_records_merge_to_the_same_in_any_order_and_however_often(first, second, third):
    assert first.merged(second) == second.merged(first)
    assert first.merged(second).merged(third) == first.merged(second.merged(third))
    assert first.merged(first) == first
    assert first.merged(second).merged(second) == first.merged(second)


@given(RECORDS, RECORDS)
def test_what_is_beyond_others_is_all_that_they_lack(first, second):
    fresh = first.beyond(second)

    assert second.merged(fresh) == second.merged(first)
    assert not fresh.beyond(second.merged(first))


def entry(signature, *, ns=1000, at=1, outcome=Outcome.MEASURED):
    return Baseline(
        signature=signature, op="aten::mm", outcome=outcome, launch=Spread(ns, 1, 3), measured_unix_ns=at * 10**9
    )


@pytest.fixture
def archive(tmp_path):
    (tmp_path / "share").mkdir()
    return Store(f"file://{tmp_path}/share")


@pytest.fixture
def hosts(tmp_path):
    """The stores of three hosts."""
    stores = [Baselines(tmp_path / f"host-{number}.sqlite3") for number in range(3)]
    yield stores
    for store in stores:
        with store:
            pass


def test_what_one_host_measured_every_other_has(archive, hosts):
    first, second, third = hosts
    first.put(H100, [entry("a"), entry("b")])
    first.put_floors(H100, Floors(measured_unix_ns=5))
    second.put(H100, [entry("b", at=2), entry("c")])
    second.put(L4, [entry("a")])

    counts = [(sync(store, archive).taken, sync(store, archive).given) for store in hosts]
    assert sync(first, archive).taken == 3

    assert counts == [(0, 0), (1, 0), (4, 0)]
    assert [store.records(H100) for store in hosts] == [third.records(H100)] * 3
    assert third.records(H100).entries == {"a": entry("a"), "b": entry("b", at=2), "c": entry("c")}
    assert [store.records(L4).entries for store in hosts] == [{"a": entry("a")}] * 3
    assert third.floors(H100) == Floors(measured_unix_ns=5)


def test_a_host_gives_only_what_the_archive_lacks(archive, hosts):
    first, second, _ = hosts
    first.put(H100, [entry("a"), entry("b")])
    sync(first, archive)
    second.put(H100, [entry("a", at=0), entry("b", at=3, outcome=Outcome.TIMED_OUT), entry("c")])

    assert sync(second, archive).given == 1
    assert len(list(archive.list(BASELINES))) == 2
    for store in hosts:
        sync(store, archive)
    assert len(list(archive.list(BASELINES))) == 2


def test_a_damaged_object_is_named_and_the_others_are_taken(archive, hosts, tmp_path):
    first, second, _ = hosts
    first.put(H100, [entry("a")])
    sync(first, archive)
    first.put(H100, [entry("b")])
    sync(first, archive)
    damaged = min(tmp_path.glob("share/baselines/**/*.jsonl"))
    damaged.write_text("junk")

    synced = sync(second, archive)

    assert synced.taken == 1
    assert [damaged.name in message for message in synced.damaged] == [True]
