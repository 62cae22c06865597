"""The work of a step from the shape of its model, against numbers worked out by hand from public configurations."""

from dataclasses import replace

import pytest

from taxbreak_vllm.limit.annotation import tokens_of
from taxbreak_vllm.limit.ceilings import ceilings_of
from taxbreak_vllm.limit.step import bar_of, limit_of_step
from taxbreak_vllm.limit.work import family_work
from taxbreak_vllm.model.breakdown import DeviceTime, ExposedTax, IdleTime, Iteration, StepBreakdown
from taxbreak_vllm.model.ceilings import Ceilings, CeilingSource, Level
from taxbreak_vllm.model.limit import Bound
from taxbreak_vllm.model.shape import (
    AttentionShape,
    ExpertShape,
    MatrixShape,
    ModelShape,
    StepWork,
    UnpackedWork,
    WindowWork,
)
from taxbreak_vllm.taxes.recording import Recording

# Llama-3-8B: 32 layers of 4096, 32 heads and 8 of keys of 128, 14336 within, 128256 words.
LLAMA_LAYER = 4096 * (4096 + 2 * 1024) + 4096 * 4096 + 3 * 4096 * 14336
LLAMA = ModelShape(
    dtype="bf16",
    product_dtype="bf16",
    linear=MatrixShape(weights=32 * LLAMA_LAYER, bytes=64 * LLAMA_LAYER),
    lm_head=MatrixShape(weights=4096 * 128256, bytes=2 * 4096 * 128256),
    attention=(
        AttentionShape(layers=32, heads=32, kv_heads=8, head_size=128, head_size_v=128, kv_bytes_per_token=4096),
    ),
)
# Qwen3-30B-A3B: 48 layers of 2048, 32 heads and 4 of keys of 128, 128 experts of 768, eight chosen.
QWEN_LAYER = 2048 * (4096 + 2 * 512) + 4096 * 2048 + 2048 * 128
QWEN_EXPERT = 3 * 2048 * 768
QWEN = ModelShape(
    dtype="bf16",
    product_dtype="bf16",
    linear=MatrixShape(weights=48 * QWEN_LAYER, bytes=96 * QWEN_LAYER),
    lm_head=MatrixShape(weights=2048 * 151936, bytes=2 * 2048 * 151936),
    attention=(
        AttentionShape(layers=48, heads=32, kv_heads=4, head_size=128, head_size_v=128, kv_bytes_per_token=2048),
    ),
    experts=(
        ExpertShape(layers=48, experts=128, local_experts=128, top_k=8, weights=QWEN_EXPERT, bytes=2 * QWEN_EXPERT),
    ),
)
# A rank of eight of DeepSeek-V3: 61 layers, 16 of 128 heads, a latent of 512 and 64 for rope.
LATENT = AttentionShape(
    layers=61, heads=16, kv_heads=1, head_size=576, head_size_v=512, latent=512, rope=64, kv_bytes_per_token=1152
)

DECODE = StepWork(queries=4, keys=4000, pairs=4000, logits_rows=4, padded_tokens=4)
TABLE = dict.fromkeys(("bf16", "bytes"), CeilingSource.TABLE)
H100 = Ceilings(
    device_name="H100",
    flops_per_s={"bf16": 989e12, "fp8": 1979e12},
    bytes_per_s=3350e9,
    cache_bytes=50 * 10**6,
    sources={**TABLE, "fp8": CeilingSource.TABLE},
    origins={CeilingSource.TABLE: "datasheet"},
)


def step_of(active_ns, **exposed):
    """A recorded step of 10 ms, whose device worked `active_ns` of it and waited for the host for the rest."""
    idle_ns = 10_000_000 - active_ns
    exposed = {"delta_ft_ns": idle_ns - 300, "delta_ct_ns": 100, "delta_kt_ns": 0, "other_ns": 0, **exposed}
    return StepBreakdown(
        window_ns=10_000_000,
        device=DeviceTime(
            window_ns=10_000_000,
            active_ns=active_ns,
            idle_ns=idle_ns,
            idle=IdleTime(host_ns=idle_ns - 200, blocked_ns=50, queue_ns=50, edge_ns=100),
        ),
        exposed=ExposedTax(**exposed),
        iteration=Iteration(
            window_ns=10_000_000, active_ns=active_ns, other_active_ns=0, idle_ns=idle_ns, idle={}, engine={}
        ),
    )


def total(bar):
    return bar.limit_ns + bar.above_ns + sum(bar.exposed_ns.values()) + bar.other_idle_ns + bar.unknown_ns


def test_the_work_of_llama_3_8b_is_what_its_configuration_says():
    work = family_work(LLAMA, DECODE)
    assert LLAMA.linear.weights == 6_979_321_856  # of 8.03e9 parameters: without embedding, head and norms
    assert work["linear"].flops == 2 * 4 * 6_979_321_856
    assert work["linear"].bytes == 13_958_643_712
    assert work["attention"].flops == 4 * 32 * 128 * 4000 * 32 == 2_097_152_000
    assert work["kv"].bytes == (4000 + 4) * 4096 * 32 == 524_812_288
    assert work["lm_head"].flops == 2 * 4 * 525_336_576
    assert "moe" not in work


def test_a_decoding_step_of_llama_on_an_h100_is_bound_by_its_weights():
    limit = limit_of_step(LLAMA, DECODE, step_of(6_000_000), H100)
    assert limit.bytes == 13_958_643_712 + 524_812_288 + 2 * 525_336_576
    assert limit.memory_ns == pytest.approx(limit.bytes / 3.35e12 * 1e9, abs=1)
    assert limit.floor_ns == (limit.memory_ns, limit.memory_ns)
    assert limit.bound is Bound.MEMORY
    assert limit.mbu == pytest.approx(limit.memory_ns / 10_000_000)


def test_a_long_prompt_of_llama_is_bound_by_its_products():
    prompt = StepWork(queries=8192, keys=8192, pairs=8192 * 8193 // 2, logits_rows=1, padded_tokens=8192)
    limit = limit_of_step(LLAMA, prompt, step_of(200_000_000), H100)
    assert limit.bound is Bound.COMPUTE
    assert limit.floor_ns[0] == limit.compute_ns == pytest.approx(limit.flops / 989e12 * 1e9, abs=1)


def test_experts_are_an_interval_from_those_of_one_token_to_uniform_choices():
    work = family_work(QWEN, DECODE)["moe"]
    met = 128 * (1 - (1 - 8 / 128) ** 4)  # 29.1 of 128
    assert work.flops == 2 * 4 * 8 * QWEN_EXPERT * 48
    assert work.bytes == 8 * 2 * QWEN_EXPERT * 48
    assert work.most_bytes == pytest.approx(met * 2 * QWEN_EXPERT * 48, rel=1e-9)


def test_no_choices_reach_more_experts_than_tokens_choose_or_there_are():
    assert family_work(QWEN, DECODE)["moe"].reach_bytes == 4 * 8 * 2 * QWEN_EXPERT * 48
    assert family_work(QWEN, replace(DECODE, queries=17))["moe"].reach_bytes == 128 * 2 * QWEN_EXPERT * 48


def test_measured_experts_close_the_interval():
    work = family_work(QWEN, replace(DECODE, distinct_experts=20 * 48 + 1))["moe"]
    assert work.bytes == work.most_bytes == work.reach_bytes == (20 * 48 + 1) * 2 * QWEN_EXPERT


@pytest.mark.parametrize("why", [None, "its code is compiled"])
def test_experts_that_were_not_counted_are_said_to_be_so(why):
    step = step_of(6_000_000)
    limit = limit_of_step(replace(QWEN, uncounted=why), DECODE, step, H100)
    assert (why or "which experts its tokens chose could not be counted") in limit.notes
    assert not any("expert" in note for note in limit_of_step(LLAMA, DECODE, step, H100).notes)
    assert limit.bytes < limit.most_bytes < limit.reach_bytes


def test_all_experts_would_be_more_than_a_b300_can_read_and_those_chosen_are_not(real_trace):
    """The trap: a decoding step of 16 requests, recorded by others, in which a third of the experts is not read."""
    with Recording.open(real_trace("b300_sglang_qwen3-30b-a3b_decode_cudagraph")) as recording:
        (step,) = recording.breakdown.steps
        ceilings = ceilings_of(recording.breakdown.source.device_name)
    tokens = tokens_of(step.name)
    work = StepWork(
        queries=tokens.queries,
        keys=tokens.keys,
        pairs=tokens.pairs,
        logits_rows=tokens.queries,
        padded_tokens=tokens.queries,
    )
    active_ns = step.device.active_ns

    limit = limit_of_step(QWEN, work, step, ceilings)
    everything = limit_of_step(QWEN, replace(work, distinct_experts=128 * 48), step, ceilings)

    assert (tokens.queries, tokens.keys) == (16, 8193)
    assert 48 * 128 * 2 * QWEN_EXPERT / ceilings.bytes_per_s * 1e9 / active_ns == pytest.approx(1.35, abs=0.01)
    assert [floor / active_ns for floor in limit.floor_ns] == pytest.approx([0.16, 0.94], abs=0.01)
    assert limit.mbu < 1
    assert everything.memory_ns > active_ns
    assert everything.mbu is None
    assert any("its work is counted too high" in note for note in everything.notes)


def test_the_latent_cache_is_not_divided_among_ranks_and_its_heads_are():
    model = replace(QWEN, attention=(LATENT,), tensor_parallel=8)
    work = family_work(model, DECODE)
    assert work["attention"].flops == 2 * 16 * 4000 * (2 * 512 + 64) * 61
    assert work["kv"].bytes == 4004 * 1152 * 61


def test_a_prompt_unpacks_the_latent_cache_and_what_decodes_beside_it_does_not():
    latent = replace(LATENT, unpacked_size=128 + 64 + 128, absorbed_queries=1)
    prompt = 100 * 1000 + 100 * 101 // 2  # 100 tokens after 1,000
    step = replace(
        DECODE,
        queries=104,
        keys=5100,
        pairs=4000 + prompt,
        unpacked=UnpackedWork(queries=100, context=1000, pairs=prompt),
    )
    work = family_work(replace(QWEN, attention=(latent,)), step)
    a_head = 4000 * (2 * 512 + 64) + prompt * 320 + 1000 * 512 * (128 + 128)
    assert work["attention"].flops == 2 * 16 * 61 * a_head
    assert work["kv"].bytes == (5100 + 104) * 1152 * 61


def test_latent_attention_that_is_never_unpacked_costs_a_prompt_what_it_costs_decoding():
    step = replace(DECODE, unpacked=None, pairs=5050, queries=100, keys=100)
    assert family_work(replace(QWEN, attention=(LATENT,)), step)["attention"].flops == 2 * 16 * 5050 * 1088 * 61


def test_layers_with_a_window_count_what_lies_within():
    near = replace(LLAMA.attention[0], layers=16, window=512)
    model = replace(LLAMA, attention=(replace(LLAMA.attention[0], layers=16), near))
    step = replace(DECODE, windows=(WindowWork(window=512, keys=2048, pairs=2048),))
    work = family_work(model, step)
    assert work["attention"].flops == 4 * 32 * 128 * 16 * (4000 + 2048)
    assert work["kv"].bytes == 4096 * 16 * (4004 + 2052)


def test_a_rank_that_holds_some_of_the_experts_does_its_share_of_all_tokens():
    spread = replace(QWEN.experts[0], local_experts=16)
    model = replace(QWEN, experts=(spread,), data_parallel=8, expert_parallel=8)
    work = family_work(model, DECODE)["moe"]
    assert work.flops == 2 * (4 * 8) * 8 * QWEN_EXPERT * 48 // 8
    assert work.bytes == 0  # all tokens may have gone to the experts of other ranks
    assert work.most_bytes == pytest.approx(16 * (1 - (1 - 8 / 128) ** 32) * 2 * QWEN_EXPERT * 48, rel=1e-9)


@pytest.mark.parametrize("active_ns", [6_000_000, 9_999_700, 100])
@pytest.mark.parametrize("ceilings", [H100, None])
def test_the_bar_sums_to_the_iteration(active_ns, ceilings):
    limit = limit_of_step(LLAMA, DECODE, step_of(active_ns), ceilings)
    assert total(limit.bar) == limit.bar.window_ns == 10_000_000
    assert limit.bar.exposed_ns["engine"] == 100
    assert limit.bar.other_idle_ns == 100


def test_idle_time_that_is_not_known_is_unknown_in_the_bar():
    step = replace(
        step_of(6_000_000),
        device=DeviceTime(window_ns=10_000_000, active_ns=6_000_000, idle_ns=None, idle=IdleTime.unknown()),
        exposed=ExposedTax.unknown(),
        iteration=None,
    )
    bar = bar_of(step, 5_000_000)
    assert (bar.limit_ns, bar.above_ns, bar.exposed_ns, bar.unknown_ns) == (5_000_000, 1_000_000, {}, 4_000_000)


def test_without_ceilings_there_are_rates_and_no_share():
    limit = limit_of_step(LLAMA, DECODE, step_of(6_000_000), None)
    assert (limit.floor_ns, limit.compute_ns, limit.memory_ns, limit.mfu, limit.mbu, limit.bound) == (None,) * 6
    assert limit.flops_per_s == pytest.approx(limit.flops / 6e-3)
    assert limit.bytes_per_s == pytest.approx(limit.bytes / 6e-3)
    assert limit.bar.unknown_ns == 6_000_000
    assert limit.notes == ("no ceilings are known of this device, so no share of one is told",)


def test_a_device_faster_than_its_ceilings_has_no_share_of_them():
    limit = limit_of_step(LLAMA, DECODE, step_of(1_000_000), H100)
    assert (limit.mfu, limit.mbu) == (None, None)
    assert any("less than the least time" in note for note in limit.notes)
    assert limit.bar.unknown_ns == 1_000_000


def test_a_device_as_fast_as_clocks_can_tell_is_all_limit():
    exact = limit_of_step(LLAMA, DECODE, step_of(6_000_000), H100).floor_ns[0]
    limit = limit_of_step(LLAMA, DECODE, step_of(round(exact / 1.04)), H100)
    assert limit.mbu is not None
    assert (limit.bar.limit_ns, limit.bar.above_ns) == (round(exact / 1.04), 0)
    assert limit.bar.unknown_ns == 0


def test_a_step_shorter_than_its_kernels_can_be_is_bound_by_latency():
    step = replace(step_of(6_000_000), kernels=400)
    slow = replace(H100, shortest_kernel_ns=20_000)  # 8 ms; its bytes take 4.6 ms
    assert limit_of_step(LLAMA, DECODE, step, slow).latency_ns == 8_000_000
    assert limit_of_step(LLAMA, DECODE, step, slow).bound is Bound.LATENCY
    assert limit_of_step(LLAMA, DECODE, step, replace(slow, shortest_kernel_ns=1_000)).bound is Bound.MEMORY
    assert limit_of_step(LLAMA, DECODE, step, H100).latency_ns is None


def test_a_step_tells_the_ceilings_that_it_was_held_to():
    limit = limit_of_step(LLAMA, DECODE, step_of(6_000_000), H100)
    assert limit.ceilings.flops_per_s == {"bf16": 989e12}
    assert limit.ceilings.sources == TABLE
    assert limit.level is Level.MEMORY


def test_bytes_that_a_cache_may_hold_are_not_held_to_memory():
    model = replace(LLAMA, linear=MatrixShape(weights=10**7, bytes=2 * 10**7), lm_head=MatrixShape(), attention=())
    limit = limit_of_step(model, DECODE, step_of(100_000), H100)
    assert limit.level is Level.CACHE
    assert limit.compute_ns is not None
    assert (limit.memory_ns, limit.floor_ns, limit.mbu) == (None, None, None)
    (note,) = limit.notes
    assert "device's cache" in note
    measured = replace(H100, by_working_set={2**20: 12e12, 2**24: 9e12, 2**29: 3e12})
    limit = limit_of_step(model, DECODE, step_of(100_000), measured)
    assert limit.memory_ns == pytest.approx(2 * 10**7 / 9e12 * 1e9, abs=1)
    assert limit.parts["linear"].floor_ns == (limit.memory_ns, limit.memory_ns)


def test_weights_of_an_unknown_quantization_leave_its_work_and_withhold_its_limit():
    why = "how many bytes the weights of its linear layers take is not known"
    model = replace(LLAMA, linear=replace(LLAMA.linear, bytes=None), product_dtype=None, missing=(why,))
    limit = limit_of_step(model, DECODE, step_of(6_000_000), H100)
    assert limit.flops > 0
    assert (limit.bytes, limit.floor_ns, limit.mfu, limit.mbu, limit.bytes_per_s) == (None,) * 5
    assert limit.notes == (why,)
