"""How many experts' weights a layer reads for its tokens, of all and of those on a rank."""

from taxbreak_vllm.model.shape import ExpertShape


def experts_met(experts: int, top_k: int, tokens: int) -> tuple[int, float]:
    """Return how many experts' weights are read: the least, and what uniform choices make of it."""
    top_k = min(top_k, experts)
    if not tokens or not top_k:
        return 0, 0.0
    return top_k, experts * (1 - (1 - top_k / experts) ** tokens)


def met_on_rank(group: ExpertShape, tokens: int) -> tuple[float, float]:
    """Return how many of a rank's experts are read in a layer, at the least and at the most."""
    low, high = experts_met(group.experts, group.top_k, tokens)
    elsewhere = group.experts - group.local_experts
    return max(0, low - elsewhere), max(0.0, low - elsewhere, high * group.local_experts / group.experts)
