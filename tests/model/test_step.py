"""What a worker writes about a step is read as it was meant."""

import msgspec
import pytest

from taxbreak_vllm.model.step import GraphMode


@pytest.mark.parametrize("written", ["FULL", "full", "Full"])
def test_a_graph_mode_is_read_in_any_spelling(written):
    assert msgspec.json.decode(msgspec.json.encode(written), type=GraphMode) is GraphMode.FULL


def test_a_graph_mode_that_nobody_knows_is_unknown():
    assert GraphMode("FULL_AND_A_HALF") is GraphMode.UNKNOWN
