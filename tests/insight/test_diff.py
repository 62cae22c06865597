"""What moved between two breakdowns, worked out by hand on made-up steps."""

import dataclasses
import json
from pathlib import Path

import pytest

from taxbreak_vllm import analyze
from taxbreak_vllm.insight.diff import Change, Quartiles, diff
from taxbreak_vllm.model.breakdown import Breakdown, DeviceTime, FamilyShare, Source, StepBreakdown, Taxes, Tier, TopRow
from taxbreak_vllm.model.step import Phase

SERVING = Path(__file__).parents[1] / "data" / "serving.json"


def row(kernel, *, count=1, ft=10, ct=0, active=100, op="aten::mm"):
    return TopRow(
        op=op,
        kernel=kernel,
        family="gemm",
        i_lib=False,
        count=count,
        delta_ft_ns=ft,
        delta_ct_ns=ct,
        delta_kt_ns=4,
        active_ns=active,
        tier=Tier.TRACE,
    )


def step(window_ns, *rows, phase=Phase.DECODE, hdbi=0.5, families=None):
    return StepBreakdown(
        name="step", phase=phase, window_ns=window_ns, hdbi=hdbi, top=tuple(rows), families=families or {}
    )


def breakdown(*steps, **source):
    return Breakdown(source=Source(**source), steps=steps)


def figures(section):
    return {figure.name: figure for figure in section.figures}


def only_section(a, b):
    (section,) = diff(a, b).sections
    return section


def test_a_headline_figure_is_the_median_over_steps_with_its_quartiles():
    a = breakdown(*(step(window) for window in (100, 200, 300, 400, 1000)))
    b = breakdown(*(step(window) for window in (500, 600, 700)))

    window = figures(only_section(a, b))["window_ns"]

    assert window.a == Quartiles(median=300, low=200, high=400)
    assert window.b == Quartiles(median=600, low=550, high=650)
    assert (window.absolute, window.relative, window.is_clear) == (300, 1.0, True)


def test_a_move_within_the_spread_is_not_clear_and_one_of_two_steps_says_nothing():
    wide = breakdown(*(step(window) for window in (100, 300, 500)))
    moved = breakdown(*(step(window) for window in (200, 400, 600)))

    assert figures(only_section(wide, moved))["window_ns"].is_clear is False
    assert figures(only_section(wide, breakdown(step(900))))["window_ns"].is_clear is None


def test_what_one_side_does_not_know_is_no_zero():
    a, b = breakdown(step(100, hdbi=None)), breakdown(step(100, hdbi=0.25))

    hdbi = figures(only_section(a, b))["hdbi"]

    assert (hdbi.a, hdbi.b.median) == (None, 0.25)
    assert (hdbi.absolute, hdbi.relative, hdbi.is_clear) == (None, None, None)


def test_a_median_over_some_of_the_steps_would_stand_for_others_so_it_is_unknown():
    a = breakdown(step(100, hdbi=0.5), step(100, hdbi=None))

    assert figures(only_section(a, a))["hdbi"].a is None


def test_nested_figures_are_named_as_in_the_json():
    before, after = (
        breakdown(StepBreakdown(taxes=Taxes(delta_ft_ns=ft), device=DeviceTime(window_ns=ft * 10), window_ns=1))
        for ft in (40, 30)
    )

    found = figures(only_section(before, after))

    assert (found["taxes.delta_ft_ns"].absolute, found["taxes.delta_ft_ns"].relative) == (-10, -0.25)
    assert found["device.window_ns"].absolute == -100
    assert found["taxes.delta_ct_ns"].a is None
    assert {"host.python_ns", "device.idle.queue_ns", "exposed.other_ns", "tklqt_ns"} <= set(found)


def test_rows_are_averages_over_all_steps_those_without_the_row_included():
    a = breakdown(step(1, row("k", count=2, ft=30, active=100)), step(1, row("k", count=4, ft=50, active=300)))
    b = breakdown(step(1, row("k", count=4, ft=40, active=300)), step(1))

    (moved,) = only_section(a, b).rows

    assert moved.status == "both"
    assert moved.count == Change(a=3.0, b=2.0, absolute=-1.0, relative=-1 / 3)
    assert moved.delta_ft_ns == Change(a=40, b=20, absolute=-20, relative=-0.5)
    assert moved.active_ns == Change(a=200, b=150, absolute=-50, relative=-0.25)


def test_new_and_vanished_kernels_are_named_and_what_moved_most_comes_first():
    a = breakdown(step(1, row("old", active=500), row("kept", active=100)))
    b = breakdown(step(1, row("kept", active=110), row("fused", active=300)))

    rows = only_section(a, b).rows

    assert [(r.kernel, r.status) for r in rows] == [("old", "vanished"), ("fused", "new"), ("kept", "both")]
    assert rows[1].active_ns == Change(a=0, b=300, absolute=300, relative=None)
    assert rows[0].active_ns == Change(a=500, b=0, absolute=-500, relative=-1.0)


def test_the_same_kernel_under_another_op_is_another_row():
    a = breakdown(step(1, row("k", op="aten::mm")))
    b = breakdown(step(1, row("k", op="vllm::mm")))

    assert [(r.op, r.status) for r in only_section(a, b).rows] == [("aten::mm", "vanished"), ("vllm::mm", "new")]


def test_an_unknown_tax_in_one_step_makes_the_average_unknown_and_leaves_the_rest():
    a = breakdown(step(1, row("k", ct=None)), step(1, row("k", ct=8)))
    b = breakdown(step(1, row("k", ct=8)))

    (moved,) = only_section(a, b).rows

    assert moved.delta_ct_ns == Change(a=None, b=8, absolute=None, relative=None)
    assert moved.delta_ft_ns.absolute == 0


def test_families_are_averages_per_step():
    a = breakdown(step(1, families={"gemm": FamilyShare(kernels=4, active_ns=400, launches=4)}), step(1))
    b = breakdown(step(1, families={"gemm": FamilyShare(kernels=3, active_ns=100, launches=1)}))

    (gemm,) = only_section(a, b).families

    assert (gemm.family, gemm.status) == ("gemm", "both")
    assert gemm.kernels == Change(a=2.0, b=3.0, absolute=1.0, relative=0.5)
    assert gemm.launches == Change(a=2.0, b=1.0, absolute=-1.0, relative=-0.5)
    assert gemm.active_ns == Change(a=200, b=100, absolute=-100, relative=-0.5)


def test_phases_are_compared_with_themselves_and_one_that_is_missing_has_no_figures():
    prefill, decode = step(900, row("p"), phase=Phase.PREFILL), step(100, row("d"))

    found = diff(breakdown(prefill, decode), breakdown(decode))

    assert [(s.name, s.steps_a, s.steps_b) for s in found.sections] == [("prefill", 1, 0), ("decode", 1, 1)]
    window = figures(found.sections[0])["window_ns"]
    assert (window.a.median, window.b, window.absolute) == (900, None, None)
    # There was no prefill to have the kernel in: it did not vanish.
    assert [(r.status, r.active_ns.b) for r in found.sections[0].rows] == [("both", None)]
    assert found.notes == ()


def test_without_a_phase_in_common_all_steps_are_compared_and_a_note_says_so():
    found = diff(breakdown(step(100, phase=Phase.PREFILL)), breakdown(step(50, phase=None), step(70, phase=None)))

    assert [(s.name, s.phase, s.steps_a, s.steps_b) for s in found.sections] == [("total", None, 1, 2)]
    assert figures(found.sections[0])["window_ns"].absolute == -40
    assert any("no phase is known on both sides" in note for note in found.notes)


def test_without_any_phase_the_total_is_compared_without_a_word():
    found = diff(breakdown(step(100, phase=None)), breakdown(step(50, phase=None)))

    assert ([s.name for s in found.sections], found.notes) == (["total"], ())


def test_another_device_is_named_so_that_nobody_takes_it_for_the_change_made():
    found = diff(breakdown(step(1), device_name="H100"), breakdown(step(1), device_name="H200"))

    assert found.notes == ("device differs: H100 in a, H200 in b",)


@pytest.mark.parametrize("other", ["a", "b"])
def test_a_breakdown_without_steps_compares_with_nothing(other):
    sides = {"a": breakdown(step(1, row("k"))), "b": breakdown(step(1, row("k")))} | {other: breakdown()}

    (section,) = diff(**sides).sections

    assert section.rows[0].active_ns.absolute is None


def test_a_breakdown_does_not_differ_from_itself():
    found = diff(analyze(SERVING), analyze(SERVING))

    assert [(s.name, s.steps_a, s.steps_b) for s in found.sections] == [("prefill", 1, 1), ("decode", 3, 3)]
    for section in found.sections:
        assert {figure.absolute for figure in section.figures} <= {0, None}
        assert {r.active_ns.absolute for r in section.rows} == {0}
        assert {r.status for r in section.rows} == {"both"}
    assert found.notes == ()


def test_the_difference_is_one_json_object_with_a_null_for_the_unknown():
    a = analyze(SERVING)
    b = dataclasses.replace(a, steps=(dataclasses.replace(a.steps[0], hdbi=None),))

    tree = json.loads(diff(a, b).to_json())

    assert tree == json.loads(json.dumps(diff(a, b).to_builtins()))
    assert (tree["schema"], tree["sections"][0]["name"]) == ("taxbreak.diff/1", "prefill")
    assert [f["b"] for f in tree["sections"][0]["figures"] if f["name"] == "hdbi"] == [None]
