"""Tokens of a step from vLLM's annotation of it."""

import pytest

from taxbreak_vllm.limit.annotation import tokens_of
from taxbreak_vllm.model.limit import StepTokens


@pytest.mark.parametrize(
    ("name", "tokens"),
    [
        # two prompts of 3 and 5 tokens, of 3 and 7 in context; one request decoding its tenth token
        (
            "execute_9_context_2(sq8sk10sqsq34sqsk44)_generation_1(sq1sk10sqsq1sqsk10)",
            StepTokens(queries=9, keys=20, pairs=(1 + 2 + 3) + (3 + 4 + 5 + 6 + 7) + 10),
        ),
        ("execute_context_1(4_16)_generation_0(0)", StepTokens(queries=4, keys=4, pairs=1 + 2 + 3 + 4)),
        ("execute_context_2(7_25)_generation_0(0)", StepTokens(queries=7, keys=7, pairs=(1 + 2 + 3) + (1 + 2 + 3 + 4))),
        ("execute_context_1(4)_generation_0(0)", StepTokens(queries=4, keys=4, pairs=10)),
        ("execute_context_2(7)_generation_0(0)", None),
        ("execute_context_0(0)_generation_3(3)", None),
        ("execute_context_1(4_16)_generation_3(3)", None),
        ("ProfilerStep#3", None),
    ],
)
def test_a_steps_tokens_are_read_where_its_name_tells_them(name, tokens):
    assert tokens_of(name) == tokens
