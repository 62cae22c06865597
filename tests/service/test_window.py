from dataclasses import astuple, fields, replace
from typing import get_type_hints

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taxbreak_vllm.insight.shares import Shares
from taxbreak_vllm.model.breakdown import (
    Breakdown,
    Calibration,
    Coverage,
    DeviceTime,
    ExposedTax,
    FamilyShare,
    HostTime,
    IdleTime,
    Source,
    StepBreakdown,
    Tier,
)
from taxbreak_vllm.model.step import GraphMode, Phase, Server, StepInfo
from taxbreak_vllm.service.results.store import Results
from taxbreak_vllm.service.results.window import MAX_LISTED_STEPS, MAX_NOTES, STEP_SUMS, replay_shares
from taxbreak_vllm.taxes.add import add_steps


@pytest.fixture
def add(results, put, analyze, clock):
    def add(step_id, scale=1, *, change=lambda breakdown: breakdown, **fields):
        capture = put(step_id, scale, **fields)
        results.add_step(step_id, capture.read_info(), change(analyze(capture)), now_ns=clock())

    return add


def listed(window):
    return [step["name"] for step in msgspec.json.decode(msgspec.json.encode(window.to_builtins()))["steps"]]


def test_the_total_is_the_sum_and_steps_carry_their_ids(add, results):
    add("a", 1)
    add("b", 2)

    window = results.window()

    merged = window.breakdown
    assert listed(window) == ["b", "a"]
    assert window.num_steps == 2
    assert merged.total.taxes.delta_ft_ns == 180
    assert merged.total.device.active_ns == 330
    assert merged.total.hdbi == pytest.approx(330 / 600)
    assert merged.total.families["gemm"] == FamilyShare(kernels=6, active_ns=300, launches=4)
    assert merged.calibration.dilation == 1.5
    assert merged.coverage.kernels == 10
    assert merged.coverage.replay == {Tier.TRACE: 1.0}
    assert merged.source == Source(model_name="tiny", server_id="vllm-a")


def test_what_encodes_is_a_breakdown(add, results):
    add("a")

    data = msgspec.json.encode(results.window().to_builtins())

    assert Breakdown.from_json(data).steps[0].name == "a"
    assert "name" not in msgspec.json.decode(data)["total"]


def test_only_what_was_asked_for_is_added(add, results, clock):
    add("old", 100)
    clock.sleep_s(10)
    add("a", 1, capture_id="c")
    add("b", 2, phase=Phase.PREFILL)

    def tax_ns(**chosen):
        return results.window(**chosen).breakdown.total.taxes.delta_ft_ns

    assert tax_ns() == 60 * 103
    assert tax_ns(since_ns=clock()) == 60 * 3
    assert tax_ns(phase=Phase.PREFILL) == 60 * 2
    assert tax_ns(capture_id="c") == 60
    assert tax_ns(limit=1) == 60 * 2
    assert tax_ns(server_id="none") is None


def test_more_steps_than_are_listed_are_in_the_total(add, results):
    for index in range(3):
        add(f"s{index}")

    window = results.window(listed=2)

    assert listed(window) == ["s2", "s1"]
    assert window.breakdown.total.taxes.delta_ft_ns == 60 * 3
    assert "2 newest of 3 steps listed, all in total" in window.breakdown.notes
    assert MAX_LISTED_STEPS > 2


def test_what_differs_between_the_steps_is_left_out(add, results):
    add("a")
    add("b", phase=Phase.PREFILL, change=lambda b: replace(b, source=replace(b.source, model_name="other")))

    merged = results.window().breakdown

    assert merged.total.phase is None
    assert merged.total.graph_mode == GraphMode.NONE
    assert merged.source == Source(server_id="vllm-a")


def test_nothing_merges_to_nothing_known(results):
    window = results.window()

    assert listed(window) == []
    assert window.breakdown.total == StepBreakdown()
    assert window.breakdown.total.taxes.delta_ft_ns is None
    assert window.breakdown.calibration == Calibration()


def test_notes_that_name_figures_do_not_pile_up(add, results):
    for index in range(MAX_NOTES + 5):
        add(f"s{index}", change=lambda b, index=index: replace(b, notes=("of all", f"T_sys {index} ns")))

    notes = results.window().breakdown.notes

    assert notes.count("of all") == 1
    assert len(notes) == MAX_NOTES + 1
    assert notes[-1] == "6 more notes are with the single steps"


counts = st.integers(0, 10**12)
device_times = st.builds(
    lambda active_ns, other_ns, causes, knows: DeviceTime(
        window_ns=active_ns + other_ns + sum(causes),
        active_ns=active_ns,
        other_active_ns=other_ns,
        kernel_sum_ns=active_ns,
        idle_ns=sum(causes) if knows else None,
        idle=IdleTime(**dict(zip(IdleTime.__slots__, causes, strict=True)))
        if knows == "causes"
        else IdleTime.unknown(),
    ),
    counts,
    counts,
    st.lists(counts, min_size=4, max_size=4),
    st.sampled_from(["causes", "idle", ""]),
)
steps = st.builds(
    StepBreakdown,
    phase=st.sampled_from(Phase),
    graph_mode=st.sampled_from([GraphMode.NONE, GraphMode.FULL]),
    hdbi=st.none() | st.floats(0, 1),
    tklqt_ns=st.none() | counts,
    launches=st.none() | counts,
    families=st.dictionaries(
        st.sampled_from(["gemm", "norm", "copy"]),
        st.builds(FamilyShare, kernels=counts, active_ns=counts, launches=counts),
    ),
    host=st.builds(HostTime, **{field.name: counts for field in fields(HostTime)}),
    device=device_times,
    exposed=st.just(ExposedTax.unknown()) | st.builds(ExposedTax, **dict.fromkeys(ExposedTax.__slots__, counts)),
    **{
        name: st.builds(hint, **{field.name: st.none() | counts for field in fields(hint)})
        for name, hint in get_type_hints(StepBreakdown).items()
        if name in ("batch", "taxes")
    },
    kernels=counts,
    unique_kernels=counts,
    notes=st.lists(st.sampled_from("abc"), max_size=2).map(tuple),
)


@settings(max_examples=30)  # each one is a results file
@given(parts=st.lists(steps, min_size=1, max_size=5))
def test_the_sums_are_those_of_the_model(parts, tmp_path_factory):
    with Results(tmp_path_factory.mktemp("results") / "db") as results:
        for index, step in enumerate(parts):
            info = StepInfo(
                step_id=f"s{index}",
                step_index=index,
                server=Server(server_id="s"),
                phase=step.phase,
                batch=step.batch,
                graph_mode=step.graph_mode,
                started_unix_ns=index,
                window_ns=1,
            )
            results.add_step(info.step_id, info, Breakdown(source=Source(), steps=(step,)), now_ns=0)

        total = results.window().breakdown.total

    expected = add_steps(parts)
    assert replace(total, notes=()) == replace(expected, notes=())
    assert set(total.notes) == set(expected.notes)
    device = total.device
    assert device.idle_ns in (None, device.window_ns - device.active_ns - device.other_active_ns)
    assert device.idle.host_ns is None or device.idle_ns == sum(astuple(device.idle))


def test_shares_of_a_sum_are_of_the_steps_that_know_their_parts(make_step):
    known, other = make_step(1), make_step(1000)
    other = replace(
        other,
        hdbi=None,
        device=replace(other.device, idle_ns=None, idle=IdleTime.unknown()),
        exposed=ExposedTax.unknown(),
    )

    total = add_steps([known, other])

    assert (Shares.of(total), total.hdbi) == (Shares.of(known), known.hdbi)
    assert (total.kernels, total.window_ns) == (10, 200_200)


def test_every_integer_of_a_step_has_a_column():
    assert {"window_ns", "host.python_ns", "device.idle.host_ns", "taxes.delta_ct_ns", "batch.requests"} < set(
        STEP_SUMS
    )
    assert not any(name in path for path in STEP_SUMS for name in ("akd", "hdbi", "unique"))
    assert {field.name for field in fields(Coverage)} - {"replay"}


def test_a_tiers_share_is_weighted_by_orchestration_time(add, results):
    add("a", 3, change=lambda b: replace(b, coverage=Coverage(replay={Tier.TRACE: 1.0})))
    add("b", 1, change=lambda b: replace(b, coverage=Coverage(replay={Tier.REPLAYED: 1.0})))
    add("c", 5, change=lambda b: replace(b, coverage=Coverage()))

    assert results.window().breakdown.coverage.replay == {Tier.REPLAYED: 0.25, Tier.TRACE: 0.75}


def test_without_any_time_no_tier_has_a_share():
    assert replay_shares([None] * len(Tier)) == {}
    assert replay_shares([0.0] * len(Tier)) == {}
