"""A model's shape from its config.json: what its makers publish of its parameters, cut over ranks as vLLM cuts it."""

import json

import pytest

from taxbreak_vllm.limit.config import shape_of_config
from taxbreak_vllm.model.errors import SettingsError

LLAMA_8B = {
    "model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 128256, "torch_dtype": "bfloat16",
}  # fmt: skip
QWEN3_30B = {
    "model_type": "qwen3_moe", "hidden_size": 2048, "num_hidden_layers": 48, "num_attention_heads": 32,
    "num_key_value_heads": 4, "head_dim": 128, "intermediate_size": 6144, "moe_intermediate_size": 768,
    "num_experts": 128, "num_experts_per_tok": 8, "decoder_sparse_step": 1, "mlp_only_layers": [],
    "vocab_size": 151936, "sliding_window": None, "use_sliding_window": False, "torch_dtype": "bfloat16",
}  # fmt: skip
GPT_OSS_120B = {
    "model_type": "gpt_oss", "hidden_size": 2880, "num_hidden_layers": 36, "num_attention_heads": 64,
    "num_key_value_heads": 8, "head_dim": 64, "intermediate_size": 2880, "num_local_experts": 128,
    "num_experts_per_tok": 4, "vocab_size": 201088, "sliding_window": 128,
    "quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]},
}  # fmt: skip
DEEPSEEK_V3 = {
    "model_type": "deepseek_v3", "hidden_size": 7168, "num_hidden_layers": 61, "num_attention_heads": 128,
    "num_key_value_heads": 128, "intermediate_size": 18432, "moe_intermediate_size": 2048, "n_routed_experts": 256,
    "n_shared_experts": 1, "num_experts_per_tok": 8, "first_k_dense_replace": 3, "q_lora_rank": 1536,
    "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "vocab_size": 129280,
    "torch_dtype": "bfloat16", "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
}  # fmt: skip


@pytest.fixture
def shape(tmp_path):
    def shape(config, **ranks):
        path = tmp_path / "config.json"
        path.write_text(config if isinstance(config, str) else json.dumps(config))
        return shape_of_config(path, **ranks)

    return shape


def parameters(model, *, each_token=False):
    """All weights but the embedding's, or those that one token is multiplied with."""
    experts = sum(
        group.layers * (group.top_k if each_token else group.local_experts) * group.weights for group in model.experts
    )
    return model.linear.weights + model.lm_head.weights + experts


@pytest.mark.parametrize(
    ("config", "billions", "active"),
    [(LLAMA_8B, 7.50, 7.50), (QWEN3_30B, 30.2, 3.04), (GPT_OSS_120B, 116.2, 5.13), (DEEPSEEK_V3, 670.1, 36.6)],
    ids=lambda value: value["model_type"] if isinstance(value, dict) else None,
)
def test_parameters_are_as_many_as_published(shape, config, billions, active):
    """Published with the embedding: 8.03 and 30.5 (3.3 active), 116.8 (5.13), 671 (37) billions."""
    model = shape(config)

    assert parameters(model) / 1e9 == pytest.approx(billions, rel=0.005)
    assert parameters(model, each_token=True) / 1e9 == pytest.approx(active, rel=0.005)


def test_a_dense_model_is_told_to_the_weight(shape):
    model = shape(LLAMA_8B)

    assert model.linear.weights == 6_979_321_856
    assert model.linear.bytes == 2 * 6_979_321_856
    assert model.lm_head.weights == 525_336_576
    (attention,) = model.attention
    assert (attention.layers, attention.heads, attention.kv_heads, attention.head_size) == (32, 32, 8, 128)
    assert attention.kv_bytes_per_token == 4096
    assert (model.dtype, model.product_dtype, model.missing) == ("bf16", "bf16", ())


def test_ranks_cut_heads_and_matrices_and_keep_a_head_of_keys_each(shape):
    whole, cut = shape(LLAMA_8B), shape(LLAMA_8B, tensor_parallel=16)

    assert cut.attention[0].heads == 2
    assert cut.attention[0].kv_heads == 1  # of eight, so that two ranks have the same
    keys = 2 * 4096 * 128
    assert cut.linear.weights == (whole.linear.weights + 32 * 8 * keys) // 16
    assert cut.lm_head.weights == whole.lm_head.weights // 16


def test_experts_are_cut_or_spread(shape):
    cut, spread = shape(GPT_OSS_120B, tensor_parallel=8), shape(GPT_OSS_120B, tensor_parallel=8, expert_parallel=8)

    (one,), (other,) = cut.experts, spread.experts
    assert (one.local_experts, other.local_experts) == (128, 16)
    assert one.weights * 8 == other.weights == 3 * 2880 * 2880
    assert other.bytes == other.weights * 17 // 32  # four bits, and eight for each 32 of them
    assert spread.expert_parallel == 8


def test_layers_with_a_window_stand_apart(shape):
    model = shape(GPT_OSS_120B)
    named = shape(GPT_OSS_120B | {"layer_types": ["full_attention"] * 30 + ["sliding_attention"] * 6})

    assert [(group.layers, group.window) for group in model.attention] == [(18, None), (18, 128)]
    assert [(group.layers, group.window) for group in named.attention] == [(30, None), (6, 128)]
    assert [
        group.window for group in shape(LLAMA_8B | {"model_type": "mistral", "sliding_window": 4096}).attention
    ] == [4096]


def test_latent_attention_has_one_cache_for_all_ranks(shape):
    model = shape(DEEPSEEK_V3, tensor_parallel=8, expert_parallel=8)

    (attention,) = model.attention
    assert (attention.heads, attention.latent, attention.rope, attention.unpacked_size) == (16, 512, 64, 320)
    assert attention.kv_bytes_per_token == 1152
    assert (model.experts[0].layers, model.experts[0].local_experts) == (58, 32)
    assert (model.product_dtype, model.linear.bytes) == ("fp8", model.linear.weights)


def test_what_a_quantization_multiplies_in_is_not_guessed(shape):
    unknown = shape(LLAMA_8B | {"quantization_config": {"quant_method": "new"}})
    four_bits = shape(LLAMA_8B | {"quantization_config": {"quant_method": "awq", "bits": 4}})

    assert (unknown.product_dtype, unknown.linear.bytes) == (None, None)
    assert "what new multiplies in" in unknown.missing[0]
    assert shape(GPT_OSS_120B).product_dtype is None
    assert (four_bits.product_dtype, four_bits.linear.bytes) == ("bf16", four_bits.linear.weights // 2)


def test_of_a_model_that_sees_the_text_is_told(shape):
    model = shape({"model_type": "gemma3", "text_config": LLAMA_8B})

    assert model.linear.weights == 6_979_321_856
    assert model.missing == ("what works on images and sound is not counted",)


@pytest.mark.parametrize(
    ("config", "ranks", "said"),
    [
        ("{", {}, "no JSON"),
        ("[1]", {}, "no model_type"),
        ({"hidden_size": 1}, {}, "no model_type"),
        (LLAMA_8B | {"model_type": "mamba"}, {}, "model_type 'mamba' is none that is known here: deepseek_v2, "),
        ({"model_type": "llama", "hidden_size": 4096}, {}, "missing required field `num_hidden_layers`"),
        (LLAMA_8B | {"hidden_size": "big"}, {}, "Expected `int`, got `str` - at `$.hidden_size`"),
        (LLAMA_8B, {"tensor_parallel": 3}, "32 heads cannot be cut over 3 ranks"),
        (LLAMA_8B, {"tensor_parallel": 0}, "one rank at the least"),
        (QWEN3_30B, {"expert_parallel": 7}, "128 experts cannot be spread over 7 ranks"),
        (LLAMA_8B | {"torch_dtype": "int3"}, {}, "its dtype 'int3' is none of"),
        (LLAMA_8B | {"sliding_window": 64}, {}, "does not say in which layers"),
        (QWEN3_30B | {"num_experts": None}, {}, "how many experts"),
        ({**DEEPSEEK_V3, "kv_lora_rank": None}, {}, "lacks the sizes of its latent attention"),
    ],
)
def test_what_cannot_be_told_is_one_line(shape, config, ranks, said):
    with pytest.raises(SettingsError) as raised:
        shape(config, **ranks)

    text = str(raised.value)
    assert said in text
    assert "config.json" in text
    assert "\n" not in text
