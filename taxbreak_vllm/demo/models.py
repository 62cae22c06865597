"""Tiny models that a real vLLM serves without a download: a folder goes in, config and tokenizer come out.

There are no weights: vLLM makes them up with `--load-format dummy`. The tokenizer is byte-level BPE without merges, so
a prompt has one token per byte and any text round-trips. The same folder is written byte for byte every time.
"""

import json
from pathlib import Path

END_OF_TEXT = "<|end|>"
_SPECIAL = ("<|pad|>", END_OF_TEXT, "<|user|>", "<|assistant|>", "<|system|>")
_CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_MAX_TOKENS = 2048

# Heads of 32, the smallest vLLM's CPU attention takes; four layers, so that a step has more than its edges.
_SHAPE: dict[str, object] = {
    "vocab_size": 512,
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 256,
    "hidden_act": "silu",
    "max_position_embeddings": _MAX_TOKENS,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "attention_bias": False,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
}


def write_tiny_llama(folder: Path) -> Path:
    """Write a dense Llama of four layers into `folder`, created if need be, and return the folder."""
    return _write_model(folder, {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **_SHAPE})


def write_tiny_qwen3(folder: Path) -> Path:
    """Write a dense Qwen3 of four layers, which norms queries and keys, into `folder` and return the folder."""
    return _write_model(folder, {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", **_SHAPE})


def write_tiny_mixtral(folder: Path) -> Path:
    """Write a Mixtral of four layers, eight experts with two active, into `folder` and return the folder."""
    experts = {"num_local_experts": 8, "num_experts_per_tok": 2, "sliding_window": None}
    config = {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral", **_SHAPE, **experts}
    return _write_model(folder, config)


def write_tiny_moe(folder: Path) -> Path:
    """Write a Qwen3-MoE of four layers, eight experts with two active, into `folder` and return the folder."""
    experts = {
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 64,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "norm_topk_prob": True,
    }
    config = {"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", **_SHAPE, **experts}
    return _write_model(folder, config)


def write_tiny_deepseek(folder: Path) -> Path:
    """Write a DeepSeek-V3 of four layers, latent attention and, but for the first, eight experts, into `folder`.

    The latent cache is of the model's own size (512 and 64), the only one that vLLM's CPU attention takes.
    """
    latent = {
        "kv_lora_rank": 512,
        "q_lora_rank": 64,
        "qk_nope_head_dim": 32,
        "qk_rope_head_dim": 64,
        "v_head_dim": 32,
        "num_key_value_heads": 4,
    }
    experts = {
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "n_shared_experts": 1,
        "moe_intermediate_size": 64,
        "first_k_dense_replace": 1,
        "moe_layer_freq": 1,
        "n_group": 2,
        "topk_group": 1,
        "topk_method": "noaux_tc",
        "scoring_func": "sigmoid",
        "norm_topk_prob": True,
        "routed_scaling_factor": 2.5,
    }
    config = {"architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", **_SHAPE, **latent, **experts}
    del config["head_dim"]
    return _write_model(folder, config)


def _write_model(folder: Path, config: dict[str, object]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "config.json", config)
    _write_json(folder / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0})
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": _MAX_TOKENS,
            "pad_token": _SPECIAL[0],
            "bos_token": END_OF_TEXT,
            "eos_token": END_OF_TEXT,
            "chat_template": _CHAT_TEMPLATE,
            "clean_up_tokenization_spaces": False,
        },
    )
    (folder / "tokenizer.json").write_text(_byte_tokenizer(), encoding="utf-8")
    return folder


def _byte_tokenizer() -> str:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {token: index for index, token in enumerate(_SPECIAL)}
    # alphabet() comes in an arbitrary order
    vocabulary |= {byte: index for index, byte in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()), len(_SPECIAL))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in _SPECIAL])
    return str(tokenizer.to_str(pretty=True))


def _write_json(path: Path, value: dict[str, object]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
