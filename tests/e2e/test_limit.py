"""The FLOPs that a model's shape tells, beside those of the shapes of the ops that its steps really called."""

import json
from dataclasses import replace

import pytest

from taxbreak_vllm.demo.models import (
    write_tiny_deepseek,
    write_tiny_llama,
    write_tiny_mixtral,
    write_tiny_moe,
    write_tiny_qwen3,
)
from taxbreak_vllm.limit.ceilings import ceilings_of
from taxbreak_vllm.limit.config import shape_of_config
from taxbreak_vllm.limit.live import with_limit
from taxbreak_vllm.limit.step import limit_of_step
from taxbreak_vllm.limit.trace import limit_of
from taxbreak_vllm.model.ceilings import CeilingSource
from taxbreak_vllm.model.limit import SLACK, StepTokens
from taxbreak_vllm.model.step import Phase
from taxbreak_vllm.replay.runner import measure_floors
from taxbreak_vllm.replay.task import Options
from taxbreak_vllm.spool.spool import Spool
from taxbreak_vllm.taxes.recording import Recording

pytestmark = [pytest.mark.e2e, pytest.mark.nightly, pytest.mark.timeout(400)]

MODELS = {
    "llama": write_tiny_llama,
    "qwen3": write_tiny_qwen3,
    "qwen3-moe": write_tiny_moe,
    "mixtral": write_tiny_mixtral,
    "deepseek": write_tiny_deepseek,
}
FOUR_BITS = {"bits": 4, "group_size": 32}
QUANTIZED = {
    "int8": {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"},
                "input_activations": {
                    "num_bits": 8,
                    "type": "int",
                    "symmetric": True,
                    "strategy": "token",
                    "dynamic": True,
                },
            }
        },
        "ignore": ["lm_head"],
    },
    "gptq": FOUR_BITS | {"quant_method": "gptq", "desc_act": False, "sym": True, "lm_head": False},
    "awq": FOUR_BITS | {"quant_method": "awq", "zero_point": True, "version": "gemm"},
}
# A CPU's matrix engine knows no single precision, and vLLM takes it for MLA unless told otherwise.
MORE = {("deepseek", "float32"): ["attention_backend=CPU_MLA"]}
PAIRS = [(name, dtype) for name in MODELS for dtype in ("float32", "bfloat16")]
PAIRS += [(name, "bfloat16") for name in QUANTIZED]


@pytest.fixture(scope="module")
def ceilings():
    """What this machine reaches, measured before any server runs."""
    environment, _, measured = measure_floors(Options(ceilings_s=20))
    return ceilings_of(environment.device_name, measured=measured)


@pytest.fixture(scope="module", params=PAIRS, ids="-".join)
def steps(request, ceilings, tmp_path_factory, run_offline):
    """Record steps of a model; return for each its phase, itself, what its ops' shapes tell, its model and work."""
    name, dtype = request.param
    folder = tmp_path_factory.mktemp("limit")
    model = MODELS.get(name, write_tiny_llama)(folder / "model")
    if name in QUANTIZED:
        config = json.loads((model / "config.json").read_text()) | {"quantization_config": QUANTIZED[name]}
        (model / "config.json").write_text(json.dumps(config))
    more = MORE.get((name, dtype), [])
    run_offline("offline_limit.py", folder, model, dtype, folder, *more, VLLM_ENABLE_V1_MULTIPROCESSING="0")
    said = json.loads((folder / "said.json").read_text())
    assert said["model_reason"] is None
    assert said["model"]["missing"] == []
    assert "no clocks" in said["device"]["missing"][0]
    found = []
    for capture in Spool(folder / "spool", max_bytes=2**30, max_captures=10**6).captures():
        info = capture.read_info()
        work = info.work
        tokens = StepTokens(queries=work.queries, keys=work.keys, pairs=work.pairs)
        with Recording.open(capture.path, with_calls=True) as recording:
            (step,) = with_limit(recording.breakdown, info, capture.read_state()).steps
            if info.capture_id is not None:  # recorded with shapes
                of_ops = limit_of(recording, tokens=[tokens] * len(recording.windows))
                found.append((info.phase, step, of_ops, capture.read_state().model, work))
    assert {phase for phase, *_ in found} == {Phase.PREFILL, Phase.DECODE}
    return found


def _masked_flops(model, work):
    """FLOPs beyond the causal mask: vLLM on a CPU multiplies whole squares where it unpacks the cache of MLA."""
    if work.unpacked is None:
        return 0
    assert work.unpacked.context == 0  # no prompt was cut, so each has q(q+1)/2 pairs, of a square of q²
    num_masked = work.unpacked.pairs - work.unpacked.queries
    return sum(2 * group.heads * num_masked * group.unpacked_size * group.layers for group in model.attention)


def test_flops_of_the_model_are_those_of_its_ops(steps):
    for _, step, of_ops, model, work in steps:
        assert step.limit.flops + _masked_flops(model, work) == pytest.approx(of_ops.flops, rel=0.01)


def test_a_config_describes_the_model_that_was_built(steps, request, tmp_path):
    name, dtype = request.node.callspec.params["steps"]
    if name in QUANTIZED:
        pytest.skip("how the layers of such a model are cut is not in its config.json")
    path = MODELS[name](tmp_path) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"torch_dtype": dtype}))

    described, built = shape_of_config(path), steps[0][3]

    assert (described.linear, described.lm_head, described.experts) == (built.linear, built.lm_head, built.experts)
    assert [_without_unpacking(group) for group in described.attention] == [
        _without_unpacking(group) for group in built.attention
    ]


def _without_unpacking(group):
    """Leave out what a backend chooses, and no config tells."""
    return replace(group, unpacked_size=0, absorbed_queries=None)


def test_no_step_has_to_read_more_than_its_ops_do(steps):
    for _, step, of_ops, model, work in steps:
        more = sum((work.distinct_experts - each.top_k * each.layers) * each.bytes for each in model.experts)
        assert step.limit.bytes - more <= of_ops.bytes  # of ops the experts of one token alone are known


def test_distinct_experts_lie_between_those_of_one_token_and_all_that_its_tokens_reach(steps):
    for _, step, _, model, work in steps:
        if not model.experts:
            assert work.distinct_experts is None
            continue
        (experts,) = model.experts
        reach = min(experts.experts, work.queries * experts.top_k)
        assert experts.top_k * experts.layers <= work.distinct_experts <= reach * experts.layers
        moe = step.limit.parts["moe"]
        assert moe.bytes == moe.most_bytes == moe.reach_bytes == work.distinct_experts * experts.bytes


def _assert_sums(bar, step):
    parts = (bar.limit_ns, bar.above_ns, *bar.exposed_ns.values(), bar.other_idle_ns, bar.unknown_ns)
    assert min(parts) >= 0
    assert sum(parts) == bar.window_ns == (step.iteration or step.device).window_ns


def test_the_bar_of_each_step_sums_to_its_iteration(steps):
    for _, step, *_ in steps:
        _assert_sums(step.limit.bar, step)


def test_no_step_is_faster_than_what_was_measured_of_this_machine_and_its_bar_has_a_limit(steps, ceilings):
    for _, step, _, model, work in steps:
        limit = limit_of_step(model, work, step, ceilings)

        if model.product_dtype not in ceilings.flops_per_s:
            assert limit.notes == (
                f"no ceiling is known for products in {model.product_dtype}, so no least time is told",
            )
            assert (limit.floor_ns, limit.mfu) == (None, None)
            continue
        assert limit.notes == ()
        assert 0 < limit.floor_ns[0] <= SLACK * step.device.active_ns
        assert 0 < limit.mfu < SLACK
        assert 0 < limit.mbu < SLACK
        assert set(limit.ceilings.sources.values()) == {CeilingSource.MEASURED}
        assert limit.bar.limit_ns == min(limit.floor_ns[0], step.device.active_ns)
        _assert_sums(limit.bar, step)


def test_without_ceilings_there_is_no_share_of_any(steps):
    for _, step, *_ in steps:
        assert (step.limit.mfu, step.limit.mbu, step.limit.floor_ns) == (None, None, None)
        assert step.limit.flops_per_s > 0
