import json

import pytest

from taxbreak_vllm.demo.models import END_OF_TEXT, write_tiny_llama, write_tiny_moe

tokenizers = pytest.importorskip("tokenizers", reason="the tokenizer needs the package tokenizers, which vLLM brings")

WRITERS = {"llama": write_tiny_llama, "qwen3_moe": write_tiny_moe}


@pytest.fixture(params=WRITERS)
def model(request, tmp_path):
    return WRITERS[request.param](tmp_path / "deep" / request.param)


def _files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_model_is_written_byte_for_byte_the_same_again(model, tmp_path):
    again = WRITERS[model.name](tmp_path / "again")

    assert _files(again) == _files(model)


def test_the_config_names_its_architecture_and_is_whole(model):
    config = json.loads((model / "config.json").read_text())

    assert config["model_type"] == model.name
    assert config["hidden_size"] == config["num_attention_heads"] * config["head_dim"]


@pytest.mark.parametrize("text", ["plain words", "é, 漢字 and 🙂", "  spaces\n\tand lines  "])
def test_any_text_round_trips_with_one_token_per_byte(model, text):
    tokenizer = tokenizers.Tokenizer.from_file(str(model / "tokenizer.json"))

    ids = tokenizer.encode(text).ids

    assert len(ids) == len(text.encode())
    assert tokenizer.decode(ids) == text
    assert max(ids) < json.loads((model / "config.json").read_text())["vocab_size"]


def test_the_end_token_is_the_one_the_configs_name(model):
    tokenizer = tokenizers.Tokenizer.from_file(str(model / "tokenizer.json"))

    assert tokenizer.token_to_id(END_OF_TEXT) == json.loads((model / "config.json").read_text())["eos_token_id"]
    assert (
        tokenizer.token_to_id(END_OF_TEXT) == json.loads((model / "generation_config.json").read_text())["eos_token_id"]
    )
