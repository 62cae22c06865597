"""What was planted into a fleet is told, and nothing else: a regression, a slow host, what a change wins."""

from dataclasses import fields, replace
from types import NoneType, UnionType
from typing import get_args, get_type_hints

import numpy as np
import pyarrow as pa
import pytest

from taxbreak_vllm.fleet.report import checked_groups, report
from taxbreak_vllm.fleet.steps import of_table
from taxbreak_vllm.fleet.table import from_parquet, to_parquet
from taxbreak_vllm.model.errors import ArchiveError, SettingsError
from taxbreak_vllm.model.fleet import FleetReport, Predicted, StepRow
from taxbreak_vllm.output.page.fleet import render_fleet
from taxbreak_vllm.output.text.fleet import fleet_text
from taxbreak_vllm.output.text.table import Table

DAY_NS = 86_400 * 10**9
BEGIN_NS = 1_795_824_000 * 10**9
ASYNC = Predicted(change="--async", win_ratio=0.2, low_ratio=0.1, high_ratio=0.25)


def blank():
    """Return a row of which nothing is known."""
    plain = {str: "", int: 0, bool: False}
    hints = get_type_hints(StepRow)
    return StepRow(
        **{
            f.name: None
            if isinstance(hints[f.name], UnionType) and NoneType in get_args(hints[f.name])
            else plain[hints[f.name]]
            for f in fields(StepRow)
            if f.name != "predicted"
        }
    )


def rows_of(*, num_hosts=20, num=24, ft=1.0, slow=None, slow_since=None, seed=0, phases=("prefill", "decode"), **told):
    """Rows over a week; half-way hosts go from 0.31 to 0.32, with which ΔFT of decode takes `ft` times as long.

    Hosts that are `slow` take so many times as long, those that are `slow_since` as of then.
    """
    draw = np.random.default_rng(seed)
    slow, slow_since = slow or {}, slow_since or {}
    for host in range(num_hosts):
        for phase in phases:
            level = np.exp(0.01 * draw.standard_normal()) * slow.get(host, 1.0)
            for number in range(num):
                is_new = number >= num // 2
                noise = np.exp(0.02 * draw.standard_normal(2))
                factor = ft if is_new and phase == "decode" else 1.0
                factor *= slow_since.get(host, 1.0) if is_new else 1.0
                delta_ft_ns, active_ns = round(3e6 * level * factor * noise[0]), round(1e6 * noise[1])
                step_ns = delta_ft_ns + active_ns
                yield replace(
                    blank(),
                    capture=f"{draw.integers(2**62):032x}",
                    model="llama",
                    vllm="0.32" if is_new else "0.31",
                    gpu="H100",
                    host=f"node-{host}",
                    place=f"node-{host} GPU-0",
                    server=f"server-{host}-{is_new}",
                    settings="s",
                    torch="2.9",
                    phase=phase,
                    graph_mode="none",
                    tokens=int(draw.integers(5, 8)),
                    started_unix_ns=BEGIN_NS + round((number + draw.uniform()) / num * 7 * DAY_NS),
                    step_ns=step_ns,
                    plain_ns=step_ns,
                    delta_ft_ns=delta_ft_ns,
                    orchestration_ns=delta_ft_ns,
                    active_ns=active_ns,
                    hdbi=active_ns / step_ns,
                    exposed_ns=delta_ft_ns // 2,
                    cpu="EPYC",
                    governor="powersave" if host in slow else "performance",
                    **told,
                )


def reported(rows, **named):
    table = from_parquet(to_parquet(rows))
    return report(of_table(table), archive="file:///a", version="1", **named)


def text(found):
    shown = fleet_text(found)
    return "\n".join("\n".join(part.lines(None)) if isinstance(part, Table) else part for part in shown)


@pytest.fixture(scope="module")
def planted():
    return reported(rows_of(ft=1.05, slow={7: 1.15}))


def test_a_regression_of_one_phase_is_found_there_with_its_size(planted):
    found = {(one.kind.phase, one.figure): one for one in planted.changes if one.is_found}

    change = found["decode", "delta_ft_ns"]
    assert set(found) == {("decode", "delta_ft_ns"), ("decode", "plain_ns")}  # the HDBI changes by less than 0.01
    assert change.shift.low <= 0.05 <= change.shift.high
    assert (change.before, change.after, change.kind.tokens) == ("vLLM 0.31", "vLLM 0.32", (4, 7))
    assert change.is_now / change.was == pytest.approx(1.05, abs=0.02)


def test_a_slow_host_is_found_with_what_sets_it_apart(planted):
    assert {one.host for one in planted.outliers} == {"node-7"}
    one = next(one for one in planted.outliers if one.figure == "delta_ft_ns")
    assert one.ratio == pytest.approx(0.15, abs=0.04)
    assert [(each.fact, each.own, each.others) for each in one.differences] == [
        ("governor", "powersave", "performance")
    ]


def test_a_host_is_judged_by_all_versions_and_told_of_the_one_since_which_it_is_slow(planted):
    assert {one.vllm for one in planted.outliers} == {None}
    found = reported(rows_of(slow_since={7: 1.15}))
    (one,) = (one for one in found.outliers if one.figure == "delta_ft_ns")

    assert (one.host, one.vllm) == ("node-7", "0.32")
    assert one.ratio == pytest.approx(0.15, abs=0.04)
    assert "several" in render_fleet(planted)
    assert "several" not in render_fleet(found)


def test_where_nothing_was_planted_nothing_is_found():
    found = reported(rows_of(seed=3))

    assert [one for one in found.changes if one.is_found] == []
    assert found.outliers == ()
    assert found.num_comparisons >= 8
    assert found.num_compared >= 100


def test_few_hosts_are_not_held_against_one_another_and_the_note_says_why():
    found = reported(rows_of(num_hosts=5, slow={1: 2.0}))

    assert found.outliers == ()
    assert "10 hosts in 2 groups of fewer than 8 like ones" in found.notes[0]


def test_groups_are_medians_by_what_is_asked():
    (new,) = reported(rows_of(num_hosts=2, num=4), by=("gpu",)).groups

    assert (new.by, new.num_hosts, new.num_captures) == ({"gpu": "H100"}, 2, 16)
    assert new.taxes_ns["delta_ft"] == pytest.approx(3e6, rel=0.1)
    assert new.taxes_ns["delta_ct"] is None
    assert new.exposed_ratio == pytest.approx(0.375, abs=0.02)
    assert len(reported(rows_of(num_hosts=2, num=4), by=("host", "phase")).groups) == 4


def test_a_change_wins_of_each_server_that_runs_what_its_phases_win_by_their_time():
    decode = list(rows_of(num_hosts=3, num=4, phases=("decode",), predicted=(ASYNC,)))
    rows = [*decode, *rows_of(num_hosts=3, num=4, seed=9, phases=("prefill",))]

    (win,) = reported(rows).wins

    assert (win.num_servers, win.num_unknown) == (3, 0)
    assert win.servers == pytest.approx(3 * 0.2 / 2, rel=0.05)
    assert win.low == pytest.approx(3 * 0.1 / 2, rel=0.05)


def test_a_change_that_most_steps_refuse_wins_an_unknown_amount_for_a_reason():
    refused = Predicted(change="--async", refused="no gate was passed")

    (win,) = reported(list(rows_of(num_hosts=3, num=4, predicted=(refused,)))).wins

    assert (win.servers, win.num_unknown, win.reason) == (None, 3, "no gate was passed")


def test_steps_that_were_asked_for_stand_for_no_others():
    rows = [replace(row, is_asked=True) for row in rows_of(num_hosts=3, num=4, predicted=(ASYNC,))]

    assert reported(rows).wins == ()


def test_of_nothing_nothing_is_told():
    found = reported([])

    assert (found.num_captures, found.groups, found.changes) == (0, (), ())
    assert "taxbreak fleet analyze" in text(found)


def test_a_report_is_one_json_object(planted):
    assert FleetReport.from_json(planted.to_json()) == planted


def test_text_and_page_show_what_was_found(planted):
    shown, page = text(planted), render_fleet(planted)

    for each in (shown, page):
        assert "node-7" in each
        assert "vLLM 0.31 → vLLM 0.32" in each
        assert "powersave" in each
    assert "decode of 4 to 7 tokens" in shown
    assert "http" not in page.replace("http-equiv", "")


def test_markup_in_a_name_is_text():
    found = reported([replace(row, model="<script>alert(1)</script>") for row in rows_of(num_hosts=1, num=2)])

    assert "<script>alert" not in render_fleet(found)


@pytest.mark.parametrize("by", ["", "gpu,gpu", "kernel", "gpu,,x"])
def test_groups_by_what_is_no_column_are_refused(by):
    with pytest.raises(SettingsError, match="--by"):
        checked_groups(by)


def test_the_same_rows_are_the_same_bytes_in_any_order():
    rows = list(rows_of(num_hosts=2, num=2))

    assert to_parquet(rows) == to_parquet(rows[::-1])


def test_a_table_of_something_else_is_refused():
    sink = pa.BufferOutputStream()
    pa.parquet.write_table(pa.table({"capture": ["a"]}), sink)

    for data in (sink.getvalue().to_pybytes(), b"nothing"):
        with pytest.raises(ArchiveError):
            from_parquet(data)
