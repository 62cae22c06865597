"""What is never replayed, and why: an ordered list, the first match tells the reason.

An op that is not here may still fail to replay, as where the trace does not hold what it was called with.
"""

import re

_RULES = (
    (r"^c10d::|^_c10d|^(?!aten::)\w+::(all_reduce|all_gather|reduce_scatter|broadcast|all_to_all)|^nccl"
     r"|^record_param_comms",
     "a collective waits for other ranks"),
    (r"::(_local_scalar_dense|item|is_nonzero|equal|allclose|_to_cpu)$", "blocks the host until the device is done"),
    (r"::(nonzero|nonzero_static|masked_select|unique\w*|_unique\w*|repeat_interleave|bincount|argwhere)$",
     "the size of its output depends on values"),
    (r"::(rand|randn|randint|randperm|rand_like|randn_like|randint_like|normal|bernoulli|multinomial|dropout"
     r"|native_dropout|alpha_dropout|feature_dropout|poisson|binomial|random|uniform|log_normal|geometric|cauchy"
     r"|exponential|_standard_gamma|_sample_dirichlet|_fused_dropout|rrelu\w*)_?$",
     "draws random numbers, whose generator is state that others share"),
    (r"::(set_|resize_|resize_as_|_resize_\w+|share_memory_|pin_memory|_pin_memory|record_stream|data|set_data)$",
     "changes storage that others may share"),
    (r"::(unified_\w+|moe_forward\w*|mamba_\w+|gdn_\w+|linear_attention|kda_attention|sparse_attn_indexer)$",
     "reads vLLM's forward context, which only a running model has"),
    (r"::(cpu_attention_with_kv_cache|get_scheduler_metadata|compute_slot_mapping_kernel_impl|\w*paged_attention\w*"
     r"|\w*varlen\w*|fwd|fwd_kvcache|mha_\w+|_flash_attention\w*|_efficient_attention\w*|mla_decode\w*"
     r"|decode_attention\w*)$",
     "its work depends on the lengths of the sequences, which a trace does not hold"),
    (r"::(dispose|_\w*_ar|\w*custom_ar\w*|open_mem_handle|get_graph_buffer_ipc_meta|register_\w*buffer\w*)$",
     "changes state that others share"),
    (r"^(autograd::|torch::autograd|Optimizer|enumerate|DataLoader|nn\.Module|ProfilerStep)|^## |^Torch-Compiled"
     r"|^CompiledF|^Call Compiled|Backward\d*$", "not an op of a schema"),
)  # fmt: skip
_COMPILED = tuple((re.compile(pattern), reason) for pattern, reason in _RULES)


def reason_denied(op: str, num_inputs: int | None = None) -> str | None:
    """Return why an op is never replayed; None where it may be tried."""
    if op == "aten::where" and num_inputs == 1:  # with three it chooses between two tensors
        op = "aten::nonzero"
    if "::" not in op and not any(pattern.search(op) for pattern, _ in _COMPILED):
        return "not an op of a schema"
    return next((reason for pattern, reason in _COMPILED if pattern.search(op)), None)
