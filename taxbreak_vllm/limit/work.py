"""The work of a step, family by family, from the shape of its model and the sums over its requests.

In: `ModelShape` and `StepWork`. Out: FLOPs and bytes of one rank (methodology section 10). Weights are read once, each
query multiplies all matrices, a (query, key) pair costs 2·(d + d_v) in each head, 2·(2c + r) where MLA is absorbed,
which vLLM does for requests of few queries alone; of the experts at least those that
one token chooses are read, with uniform choices E(1 − (1 − top_k/E)^Σq), and never more than Σq·top_k.
"""

from collections.abc import Iterable, Mapping

from taxbreak_vllm.limit.experts import met_on_rank
from taxbreak_vllm.model.limit import FamilyWork
from taxbreak_vllm.model.shape import AttentionShape, ExpertShape, ModelShape, StepWork


def family_work(model: ModelShape, step: StepWork) -> Mapping[str, FamilyWork]:
    """Return the work of each family that the model has."""
    flops, product = step.queries, model.product_dtype
    found = {
        "linear": _matrices(2 * flops * model.linear.weights, model.linear.bytes, product),
        "attention": _matrices(sum(_attention_flops(each, step) for each in model.attention), 0, model.dtype),
        "kv": _matrices(0, _sum(_kv_bytes(each, step) for each in model.attention), model.dtype),
    }
    if model.experts:
        found["moe"] = _experts(model, step)
    if model.lm_head.weights:
        head = model.lm_head
        found["lm_head"] = _matrices(2 * step.logits_rows * head.weights, head.bytes, model.dtype)
    return found


def _matrices(flops: int, num_bytes: int | None, dtype: str | None) -> FamilyWork:
    return FamilyWork(flops=flops, bytes=num_bytes, most_bytes=num_bytes, reach_bytes=num_bytes, dtype=dtype)


def _attended(group: AttentionShape, step: StepWork) -> tuple[int, int]:
    """Return the keys that a layer reads and its (query, key) pairs."""
    if group.window is None:
        return step.keys, step.pairs
    window = next((each for each in step.windows if each.window == group.window), None)
    return (step.keys, step.pairs) if window is None else (window.keys, window.pairs)


def _attention_flops(group: AttentionShape, step: StepWork) -> int:
    _, pairs = _attended(group, step)
    if not group.latent:
        return 2 * group.heads * pairs * (group.head_size + group.head_size_v) * group.layers
    unpacked = step.unpacked if group.absorbed_queries is not None else None
    a_head = (pairs - (unpacked.pairs if unpacked else 0)) * (2 * group.latent + group.rope)
    if unpacked:  # what was cached before is unpacked anew; the step's own tokens are among the linear layers
        a_head += unpacked.pairs * group.unpacked_size
        a_head += unpacked.context * group.latent * (group.unpacked_size - group.rope)
    return 2 * group.heads * a_head * group.layers


def _kv_bytes(group: AttentionShape, step: StepWork) -> int | None:
    """Keys and values that are read, and those of the step's tokens, which are written."""
    keys, _ = _attended(group, step)
    a_token = group.kv_bytes_per_token
    return None if a_token is None else (keys + step.queries) * a_token * group.layers


def _experts(model: ModelShape, step: StepWork) -> FamilyWork:
    """The experts of this rank; one that holds some of them alone serves the tokens of all ranks, taken to be alike."""
    flops, read = 0, []
    for group in model.experts:
        is_spread = model.expert_parallel > 1 and group.local_experts < group.experts
        tokens = step.queries * (model.data_parallel if is_spread else 1)
        flops += 2 * tokens * group.top_k * group.weights * group.layers * group.local_experts // group.experts
        met = _met(group, step, tokens)
        read.append([None if group.bytes is None else round(each * group.bytes) for each in met])
    least, most, reach = (_sum(sizes) for sizes in zip(*read, strict=True))
    return FamilyWork(flops=flops, bytes=least, most_bytes=most, reach_bytes=reach, dtype=model.product_dtype)


def _met(group: ExpertShape, step: StepWork, tokens: int) -> tuple[float, float, float]:
    """Return how many of the rank's experts its layers read where all tokens choose alike, where they choose uniformly,
    which is an average, and where no two choose alike.
    """
    if step.distinct_experts is not None:
        return (step.distinct_experts,) * 3
    least, uniform = met_on_rank(group, tokens)
    reach = min(group.local_experts, tokens * group.top_k)
    return least * group.layers, uniform * group.layers, reach * group.layers


def _sum(values: Iterable[int | None]) -> int | None:
    total = 0
    for value in values:
        if value is None:
            return None
        total += value
    return total
