"""`taxbreak analyze --limit`: one block more in the JSON, some lines more in the text, nothing else without it."""

import json

import pytest

from taxbreak_vllm.demo.models import write_tiny_llama

GPT_OSS_120B = {
    "model_type": "gpt_oss", "hidden_size": 2880, "num_hidden_layers": 36, "num_attention_heads": 64,
    "num_key_value_heads": 8, "head_dim": 64, "intermediate_size": 2880, "num_local_experts": 128,
    "num_experts_per_tok": 4, "vocab_size": 201088, "sliding_window": 128,
    "quantization_config": {"quant_method": "mxfp4"},
}  # fmt: skip
QWEN3_30B = {
    "model_type": "qwen3_moe", "hidden_size": 2048, "num_hidden_layers": 48, "num_attention_heads": 32,
    "num_key_value_heads": 4, "head_dim": 128, "intermediate_size": 6144, "moe_intermediate_size": 768,
    "num_experts": 128, "num_experts_per_tok": 8, "vocab_size": 151936, "torch_dtype": "bfloat16",
}  # fmt: skip


@pytest.fixture
def described(tmp_path):
    """Write a config.json."""

    def described(config):
        path = tmp_path / "config.json"
        path.write_text(json.dumps(config))
        return path

    return described


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


def test_a_described_model_tells_the_experts_that_are_behind_a_layer(taxbreak, real_trace, described):
    trace = real_trace("b200_vllm_eager_infer")
    model = ("--model", described(GPT_OSS_120B), "--tensor-parallel-size", "8")

    bare, told = (json.loads(taxbreak("analyze", "--json", *more, trace).stdout) for more in (["--limit"], model))

    assert bare["limit"]["coverage"] == pytest.approx(0.359, abs=0.001)
    assert told["limit"]["coverage"] > 0.999
    (experts,) = [row for row in told["limit"]["ops"] if row["op"] == "vllm::moe_forward"]
    assert experts["flops"] == 36 * 2 * 888 * 4 * 3 * 2880 * 2880 // 8
    assert experts["dtype"] == "fp8"  # as its kernel's name has it
    (step,) = told["steps"]
    assert step["limit"]["flops"] > experts["flops"]
    assert step["limit"]["floor_ns"] is None
    assert "what mxfp4 multiplies in hangs on the kernel" in step["limit"]["notes"][0]
    assert bare["steps"][0]["limit"] is None


def test_a_whole_step_under_a_graph_is_told_by_its_model(taxbreak, real_trace, described):
    trace = real_trace("b300_sglang_qwen3-30b-a3b_decode_cudagraph")

    told = json.loads(taxbreak("analyze", "--json", "--model", described(QWEN3_30B), trace).stdout)
    text = taxbreak("analyze", "--model", described(QWEN3_30B), trace).stdout

    (step,) = told["steps"]
    limit = step["limit"]
    assert (limit["bound"], told["limit"]["coverage"] < 0.02) == ("memory", True)
    assert limit["floor_ns"][0] < limit["floor_ns"][1] < step["device"]["active_ns"]
    assert 0 < limit["mfu"] < limit["mbu"] < 1
    bar = limit["bar"]
    parts = (bar["limit_ns"], bar["above_ns"], *bar["exposed_ns"].values(), bar["other_idle_ns"], bar["unknown_ns"])
    assert sum(parts) == bar["window_ns"]
    assert "hard limit" in text
    assert "bound by" in text


def test_the_bar_of_a_trace_is_that_of_its_ops(taxbreak, real_trace):
    limit = json.loads(taxbreak("analyze", "--json", "--limit", real_trace("h100_hf_bert-small_infer")).stdout)["limit"]

    bar = limit["bar"]
    parts = (bar["limit_ns"], bar["above_ns"], *bar["exposed_ns"].values(), bar["other_idle_ns"], bar["unknown_ns"])
    assert sum(parts) == bar["window_ns"]
    assert min(parts) >= 0
    assert bar["limit_ns"] == pytest.approx(limit["floor_ns"][0], rel=0.02)  # a little overlaps


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "nothing.json"], "nothing.json: No such file or directory"),
        (["--model", "README.md"], "README.md: no JSON: "),
        (["--model", "mamba.json"], "mamba.json: model_type 'mamba' is none that is known here: deepseek_v2, "),
        (["--model", "tiny", "-tp", "3"], "tiny: its 4 heads cannot be cut over 3 ranks"),
        (["-tp", "8"], "are of --model: name one"),
    ],
)
def test_a_model_that_cannot_be_told_is_one_line(taxbreak, real_trace, tmp_path, monkeypatch, arguments, said):
    trace = real_trace("h100_hf_bert-small_infer")
    (tmp_path / "README.md").write_text("# a model\n")
    (tmp_path / "mamba.json").write_text('{"model_type": "mamba"}')
    write_tiny_llama(tmp_path / "tiny")
    monkeypatch.chdir(tmp_path)

    done = taxbreak("analyze", *arguments, trace)

    assert done.returncode == 2
    assert done.stdout == ""
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
