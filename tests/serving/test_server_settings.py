"""Of a server's settings those are told that advice is about, and a hash tells a restart with others."""

from enum import Enum
from types import SimpleNamespace

from taxbreak_vllm.serving.server_settings import settings_of


class Mode(Enum):
    FULL_AND_PIECEWISE = (2, 1)


class MyExecutor:
    pass


def config(**changes):
    return SimpleNamespace(
        model_config=SimpleNamespace(enforce_eager=False, quantization=None, model="/secret/path"),
        compilation_config=SimpleNamespace(cudagraph_mode=Mode.FULL_AND_PIECEWISE),
        scheduler_config=SimpleNamespace(**{"max_num_seqs": 256} | changes),
        attention_config=SimpleNamespace(backend=None),
        parallel_config=SimpleNamespace(distributed_executor_backend=MyExecutor, _api_process_count=2),
    )


def test_settings_are_plain_words_and_what_is_not_there_is_left_out():
    assert settings_of(config()) == {
        "enforce_eager": "False",
        "quantization": "None",
        "cudagraph_mode": "FULL_AND_PIECEWISE",
        "max_num_seqs": "256",
        "attention_backend": "None",
        "distributed_executor_backend": "MyExecutor",
        "api_server_count": "2",
    }
    assert settings_of(SimpleNamespace()) == {}


def test_they_differ_where_a_setting_does_and_in_nothing_else():
    assert settings_of(config()) == settings_of(config())
    assert settings_of(config()) != settings_of(config(max_num_seqs=8))
