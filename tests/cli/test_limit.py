"""`taxbreak analyze --limit`: one block more in the JSON, some lines more in the text, nothing else without it."""

import json

import pytest


def test_the_limit_is_told_where_it_is_asked_for_and_nothing_else_changes(taxbreak, real_trace):
    trace = real_trace("h100_hf_bert-small_infer")

    plain, asked = (json.loads(taxbreak("analyze", "--json", *more, trace).stdout) for more in ([], ["--limit"]))

    limit = asked.pop("limit")
    assert asked == plain
    assert limit["coverage"] == 1.0
    assert set(limit["ceilings"]["sources"].values()) == {"table"}
    assert 0 < limit["mfu"] < limit["mbu"] < 1
    assert (
        limit["flops"] == sum(row["flops"] for row in limit["ops"]) == sum(p["flops"] for p in limit["parts"].values())
    )
    assert limit["covered_ns"] == sum(limit["bound_ns"].values()) == sum(row["device_ns"] for row in limit["ops"])


def test_a_trace_without_shapes_has_null_and_the_reason(taxbreak, reference, tmp_path):
    r = reference
    events = [r.op("aten::mm", 0, 90), r.call("cudaLaunchKernel", 50, 60, 1), r.kernel("gemm", 65, 75, 1)]
    (tmp_path / "trace.json").write_text(r.to_json(events))

    found = json.loads(taxbreak("analyze", "--json", "--limit", tmp_path / "trace.json").stdout)
    text = taxbreak("analyze", "--limit", tmp_path / "trace.json").stdout

    assert found["limit"] is None
    assert found["limit_reason"].startswith("recorded without shapes")
    assert "hardware limit: not told, recorded without shapes" in text


def test_the_text_says_what_the_device_is_bound_by_and_fits_a_terminal(taxbreak, real_trace, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")

    lines = taxbreak("analyze", "--limit", "--top", "3", real_trace("h100_hf_bert-small_infer")).stdout.splitlines()

    assert max(map(len, lines)) <= 80
    text = " ".join(" ".join(lines).split())
    assert "hardware limit (ceilings: NVIDIA H100 datasheet" in text
    assert "the work of 100.0% of 307.2 µs device time is known" in text
    assert "MFU 0.2%, MBU" in text
    assert [line.split()[0] for line in lines if line.startswith(("compute ", "memory ", "latency "))] == [
        "compute", "memory", "latency"
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["amd_vllm_prefilldecode_piecewise"])
def test_of_a_device_without_ceilings_no_share_is_told(taxbreak, real_trace, name):
    text = taxbreak("analyze", "--limit", real_trace(name)).stdout

    assert "hardware limit (ceilings: none known)" in text
    assert "note: no ceilings are known of this device, so no share of one is told" in text
    assert "MFU" not in text
    assert "bound by" not in text
