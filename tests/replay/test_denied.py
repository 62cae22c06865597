"""What is never replayed says why; what may be is let through."""

import pytest

from taxbreak_vllm.replay.denied import reason_denied

DENIED = {
    "c10d::allreduce_": "collective",
    "vllm::all_reduce": "collective",
    "_C_custom_ar::all_reduce": "collective",
    "nccl:all_reduce": "collective",
    "record_param_comms": "collective",
    "aten::_local_scalar_dense": "blocks the host",
    "aten::item": "blocks the host",
    "aten::nonzero": "depends on values",
    "aten::masked_select": "depends on values",
    "aten::_unique2": "depends on values",
    "aten::repeat_interleave": "depends on values",
    "aten::exponential_": "random",
    "aten::multinomial": "random",
    "aten::native_dropout": "random",
    "aten::rand": "random",
    "aten::set_": "storage",
    "aten::resize_": "storage",
    "vllm::unified_attention_with_output": "forward context",
    "vllm::moe_forward": "forward context",
    "_C::cpu_attention_with_kv_cache": "lengths of the sequences",
    "_vllm_fa3_C::fwd": "lengths of the sequences",
    "aten::_flash_attention_forward": "lengths of the sequences",
    "_C::paged_attention_v1": "lengths of the sequences",
    "_C_custom_ar::dispose": "state that others share",
    "autograd::engine::evaluate_function: AddBackward0": "not an op of a schema",
    "AddBackward0": "not an op of a schema",
    "Torch-Compiled Region: 0/0": "not an op of a schema",
    "## Call CompiledFxGraph": "not an op of a schema",
    "execute_context_1(4)": "not an op of a schema",
}
TRIED = (
    "aten::mm", "aten::add_", "aten::copy_", "aten::embedding", "aten::topk", "aten::argmax", "aten::where",
    "aten::uniform_stuff", "aten::to", "_C::rms_norm", "_C::silu_and_mul", "_C::onednn_mm", "_moe_C::topk_softmax",
    "_C_cache_ops::reshape_and_cache_flash", "vllm::rotary", "aten::scaled_dot_product_attention", "aten::broadcast_to",
)  # fmt: skip


@pytest.mark.parametrize("op", DENIED)
def test_what_waits_shares_state_or_depends_on_values_is_denied_with_its_reason(op):
    assert DENIED[op] in reason_denied(op)


@pytest.mark.parametrize("op", TRIED)
def test_what_computes_from_its_arguments_alone_is_tried(op):
    assert reason_denied(op) is None


def test_where_chooses_between_two_tensors_or_counts_what_is_true():
    assert reason_denied("aten::where", 3) is None
    assert "depends on values" in reason_denied("aten::where", 1)
