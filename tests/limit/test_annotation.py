"""Tokens of a step from vLLM's annotation of it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taxbreak_vllm.limit.annotation import tokens_of, work_of
from taxbreak_vllm.model.limit import StepTokens
from taxbreak_vllm.model.shape import AttentionShape, MatrixShape, ModelShape


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


def model(**attention):
    matrix = MatrixShape(weights=1, bytes=2)
    sizes = {"layers": 1, "heads": 1, "kv_heads": 1, "head_size": 1, "head_size_v": 1}
    group = AttentionShape(**sizes, **attention)
    return ModelShape(dtype="bf16", product_dtype="bf16", linear=matrix, lm_head=matrix, attention=(group,))


def annotated(prompts, decoding):
    """The annotation of a step of requests, each of q tokens of k in its context."""
    sums = [
        f"{len(of)}(sq{sum(q for q, _ in of)}sk{sum(k for _, k in of)}sqsq{sum(q * q for q, _ in of)}"
        f"sqsk{sum(q * k for q, k in of)})"
        for of in (prompts, decoding)
    ]
    return f"execute_9_context_{sums[0]}_generation_{sums[1]}"


def test_a_described_model_s_step_has_a_row_of_logits_for_each_request():
    work = work_of(annotated([(3, 3), (5, 7)], [(1, 10)]), model())

    assert (work.queries, work.keys, work.pairs, work.logits_rows, work.padded_tokens) == (9, 20, 41, 3, 9)
    assert (work.windows, work.unpacked, work.distinct_experts) == ((), None, None)
    assert work_of("ProfilerStep#3", model()) is None


def test_prompts_alone_have_their_latent_cache_unpacked():
    work = work_of(annotated([(3, 3), (5, 7)], [(1, 10)]), model(latent=4, absorbed_queries=1))

    assert (work.unpacked.queries, work.unpacked.context, work.unpacked.pairs) == (8, 2, 6 + 25)
    assert work_of(annotated([], [(1, 10)]), model(latent=4, absorbed_queries=1)).unpacked is None


def within(requests, window):
    """Keys and pairs within a window, query by query."""
    keys = sum(min(k, window + q - 1) for q, k in requests)
    return keys, sum(min(window, k - q + at + 1) for q, k in requests for at in range(q))


@given(
    prompts=st.lists(st.tuples(st.integers(2, 40), st.integers(0, 60)), max_size=4),
    decoding=st.lists(st.integers(0, 60), max_size=4),
    window=st.integers(1, 50),
)
def test_a_window_holds_the_least_of_what_the_sums_allow(prompts, decoding, window):
    chunks = [(q, q + before) for q, before in prompts]
    tokens = [(1, 1 + before) for before in decoding]

    (found,) = work_of(annotated(chunks, tokens), model(window=window)).windows

    keys, pairs = within([*chunks, *tokens], window)
    assert found.keys <= keys
    assert found.pairs <= pairs
    if len(chunks) <= 1 and len(tokens) <= 1:
        assert (found.keys, found.pairs) == (keys, pairs)
