"""Fusion and differences as tables: what is there is shown, what is unknown is a dash."""

import dataclasses
import re
from pathlib import Path

from taxbreak_vllm import analyze
from taxbreak_vllm.insight.diff import diff
from taxbreak_vllm.insight.fusion import fusion
from taxbreak_vllm.output.text.insight import chain_table, diff_lines, diff_tables, fusion_lines, fusion_table

SERVING = Path(__file__).parents[2] / "data" / "serving.json"


def printed(*tables) -> str:
    return "\n".join(line for table in tables for line in table.lines(200))


def cells(line: str) -> list[str]:
    return re.split(" {2,}", line.strip())


def test_fusion_shows_each_length_and_all_of_them_together():
    report = fusion(SERVING)

    lines = printed(fusion_table(report)).splitlines()

    assert [cells(line)[0] for line in lines[2:]] == ["2", "3", "4", "5", "6", "7", "8", "all"]
    assert lines[-1].endswith("1.90×")
    assert "52 kernels from 19 launches; candidates score 1 or more" in fusion_lines(report)


def test_of_the_chains_only_the_longest_are_listed():
    text = printed(chain_table(fusion(SERVING)))

    assert text.count("1.00") == 1
    assert "nvjet_tst_128x128_64x4_1x2_h_bz_TNT" in text


def test_nothing_to_fuse_shows_a_dash():
    report = dataclasses.replace(fusion(SERVING), ideal_speedup=None)

    assert printed(fusion_table(report)).splitlines()[-1].endswith("  –")


def test_a_difference_shows_figures_families_and_rows_of_each_phase():
    a = analyze(SERVING)
    prefill = dataclasses.replace(a.steps[0], hdbi=None, window_ns=a.steps[0].window_ns + 1_000, top=a.steps[0].top[1:])
    found = diff(a, dataclasses.replace(a, steps=(prefill, *a.steps[1:])))

    text = printed(*diff_tables(found))

    assert "prefill: median of 1 step in a, 1 in b" in text
    assert "decode: ops and kernels that moved most, per step" in text
    assert "+1.0 µs" in text
    assert "vanished" in text
    assert next(cells(line)[2] for line in text.splitlines() if "HDBI" in line) == "–"
    assert next(iter(diff_lines(found))) == f"a: {SERVING}"


def test_a_phase_of_one_side_only_shows_its_figures_and_no_rows():
    a = analyze(SERVING)
    found = diff(a, dataclasses.replace(a, steps=a.steps[1:]))

    titles = [table.title for table in diff_tables(found) if table.title.startswith("prefill")]

    assert titles == ["prefill: median of 1 step in a, 0 in b"]
