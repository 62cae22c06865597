"""What a worker writes about a step is read as it was meant."""

import msgspec
import pytest

from taxbreak_vllm.model.step import GraphMode


@pytest.mark.parametrize("written", ["FULL", "full", "Full"])
def test_a_graph_mode_is_read_in_any_spelling(written):
    assert msgspec.json.decode(msgspec.json.encode(written), type=GraphMode) is GraphMode.FULL


def test_a_graph_mode_that_nobody_knows_is_unknown():
    assert GraphMode("FULL_AND_A_HALF") is GraphMode.UNKNOWN


def test_every_mode_that_vllm_dispatches_to_is_known():
    modes = pytest.importorskip("vllm.config.compilation", reason="vLLM is not installed").CUDAGraphMode

    dispatched = {mode.decode_mode() for mode in modes} | {mode.mixed_mode() for mode in modes}
    assert {GraphMode(mode.name) for mode in dispatched} == {GraphMode.NONE, GraphMode.PIECEWISE, GraphMode.FULL}
