"""The rules of advice on the device's own work: smaller weights, larger batches, fewer kernels.

In: the `Evidence` of a phase, with what its hardware allows where steps tell that. Out: a `Finding`, or None. What
bounds the work says what helps: of memory-bound work fewer bytes, or more tokens for the same bytes; of compute-bound
work narrower products; of latency-bound work nothing but fewer kernels.
"""

from collections.abc import Callable

from taxbreak_vllm.insight.evidence import Amounts, Evidence, Finding
from taxbreak_vllm.insight.plain import WORTH_RATIO, Spent
from taxbreak_vllm.limit.phases import phase_limit, step_bar
from taxbreak_vllm.model.advice import Component
from taxbreak_vllm.model.breakdown import StepBreakdown
from taxbreak_vllm.model.limit import Bound, StepLimit
from taxbreak_vllm.model.limits import PhaseLimit
from taxbreak_vllm.model.step import Phase

DEVICE_BOUND_RATIO = 0.80  # of the time between the first and the last activity
MIN_SPEEDUP = 1.2  # of launches, by fusing chains
MAX_GROWTH = 4.0  # of a batch: how a step grows further is anybody's guess

_MATMULS = frozenset({"gemm", "moe"})
_ATTENTION = frozenset({"attention", "kv-cache"})
_FUSIBLE = frozenset({"norm", "activation", "rope", "quantization", "elementwise", "reduction"})
_DECODING = frozenset({Phase.DECODE, Phase.VERIFY})
_SHARED = ("linear", "lm_head")  # of the model's parts, those whose bytes all tokens of a step share
_OF_MATMULS, _OF_ATTENTION = ("linear", "moe", "lm_head"), ("attention", "kv")

Rule = Callable[[Evidence], Finding | None]


def smaller_weights(e: Evidence) -> Finding | None:
    """The device works nearly all the time, most of it for one kind of kernel."""
    active_ns = {family: share.active_ns for family, share in e.total.families.items()}
    whole_ns = sum(active_ns.values())
    if not e.is_gpu or not whole_ns or not _is_device_bound(e):
        return None
    matmul_ns = sum(active_ns.get(family, 0) for family in _MATMULS)
    attention_ns = sum(active_ns.get(family, 0) for family in _ATTENTION)
    bound = _limit(e).bound
    if "float8" in e.dtype or max(matmul_ns, attention_ns) < 0.4 * whole_ns or bound is Bound.LATENCY:
        return None
    is_matmul = matmul_ns >= attention_ns
    families, parts = (_MATMULS, _OF_MATMULS) if is_matmul else (_ATTENTION, _OF_ATTENTION)
    what = "matrix products" if is_matmul else "attention and its cache"
    busy = f"{e.shares.between_activities_ratio:.0%}"
    share = sum(_active_ns(step, families) for step in e.steps) / whole_ns
    change, settings = _smaller(bound, is_matmul=is_matmul)
    return e.find(
        "quantization",
        Component.DEVICE_WORK,
        e.each(lambda step: max(0, _active_ns(step, families) - _halved_ns(step.limit, parts))),
        spent=Spent.DEVICE,
        finding=f"the device works {busy} of the time from its first to its last activity, and {share:.0%} of its work"
        f" is {what}; a faster host would change nothing{_bound_words(e)}",
        change=change,
        settings=settings,
        refuted_by="the weights are quantized already, or the quality of the answers suffers",
    )


def _smaller(bound: Bound | None, *, is_matmul: bool) -> tuple[str, tuple[str, ...]]:
    """Return the change that makes the work smaller, and its settings."""
    match bound, is_matmul:
        case Bound.MEMORY, True:
            change = "Read fewer bytes: 8-bit weights, which halve them whatever the activations are in."
            return change, ("--quantization fp8",)
        case Bound.COMPUTE, True:
            change = "Multiply in 8 bits, weights and activations both; smaller weights alone would win nothing here."
            return change, ("--quantization fp8",)
        case Bound.MEMORY, False:
            return "Read fewer bytes: an 8-bit cache halves them.", ("--kv-cache-dtype fp8",)
        case Bound.COMPUTE, False:
            change = "Use a faster attention kernel, one that multiplies in 8 bits; a smaller cache would win nothing."
            return change, ("--attention-backend …", "--kv-cache-dtype fp8")
        case _, True:
            change = "Make the work smaller: 8-bit weights and activations, or a faster device."
            return change, ("--quantization fp8",)
        case _:
            change = "Make the cache smaller, or use a faster attention kernel."
            return change, ("--kv-cache-dtype fp8", "--attention-backend …")


def larger_batch(e: Evidence) -> Finding | None:
    """Decoding reads all weights for a few tokens: more requests would read the same bytes."""
    limit, requests = _limit(e), e.per_step(e.total.batch.requests)
    tokens = e.total.batch.output_tokens or e.total.batch.requests
    if e.phase not in _DECODING or not requests or not tokens or limit.bound is not Bound.MEMORY:
        return None
    limits = [step.limit for step in e.steps if step.limit is not None]
    growth = min((_growth(each) for each in limits), default=1.0)
    if not _is_device_bound(e) or growth <= 1:
        return None
    each_step = tokens / len(e.steps) * len(limits)
    least_ns, grown_ns = (sum(_least_ns(each, times) for each in limits) / times / each_step for times in (1.0, growth))
    if grown_ns > (1 - WORTH_RATIO) * least_ns:
        return None
    saved = 1 - 1 / growth
    return e.find(
        "larger-batch",
        Component.DEVICE_WORK,
        [round(saved * plain.window_ns) for plain in e.plain],
        weighed_ns=e.each(lambda step: round(saved * step.device.active_ns)),
        spent=Spent.DEVICE,
        tokens=tokens,
        finding=f"{requests:.1f} requests share a step{_bound_words(e)}; most of its bytes are weights, which"
        f" {growth:.1f} times as many would read once too: the least device time of a token falls from"
        f" {least_ns / 1e3:,.1f} to {grown_ns / 1e3:,.1f} µs",
        change="Let more requests share a step: the same weights are then read for more tokens.",
        settings=("--max-num-seqs (larger)", "--gpu-memory-utilization (larger)", "fewer replicas for the same load"),
        refuted_by="vllm:num_requests_waiting is 0: there are no more requests to share the step; or the step grows as"
        " much as its tokens; and a single request becomes no faster",
    )


def _growth(limit: StepLimit) -> float:
    """Return how many times as many tokens a step could carry until it is bound by its products, up to `MAX_GROWTH`."""
    if limit.compute_ns is None or limit.memory_ns is None or not limit.bytes:
        return 1.0
    shared_ns = _shared_ns(limit)
    own_ns = limit.compute_ns - (limit.memory_ns - shared_ns)
    return min(MAX_GROWTH, shared_ns / own_ns) if own_ns > 0 else MAX_GROWTH


def _shared_ns(limit: StepLimit) -> float:
    """Return the least time of the bytes that all tokens of a step share; which experts they share is not counted."""
    shared = sum(limit.parts[name].bytes or 0 for name in _SHARED if name in limit.parts)
    return (limit.memory_ns or 0) * shared / limit.bytes if limit.bytes else 0.0


def _least_ns(limit: StepLimit, growth: float) -> float:
    """Return the least time of a step that carries so many times as many tokens."""
    compute_ns, memory_ns, shared_ns = limit.compute_ns or 0, limit.memory_ns or 0, _shared_ns(limit)
    return max(growth * compute_ns, shared_ns + growth * (memory_ns - shared_ns))


def fused_kernels(e: Evidence) -> Finding | None:
    """Small kernels that always follow one another take the device's time, or the host's to launch them."""
    small_ns = e.each(lambda step: _active_ns(step, _FUSIBLE))
    report = e.fusion
    chains = [chain for chain in report.chains if chain.is_maximal] if report is not None else []
    speedup = (report.ideal_speedup or 1.0) if report is not None else 1.0
    saves = chains and speedup >= MIN_SPEEDUP and not e.has_graphs and e.plain_total.weighs(sum(e.host_ns))
    if e.is_gpu and report is not None and saves:
        amounts_ns: Amounts = [round(ns * (1 - 1 / speedup)) for ns in e.host_ns]
        component, spent, weighed_ns = Component.LAUNCH_PATH, Spent.HOST, e.host_ns
        bound = f"{report.launches} launches could be {report.launches_after}"
    elif e.is_gpu and _is_device_bound(e):
        amounts_ns, component, spent, weighed_ns = small_ns, Component.DEVICE_WORK, Spent.DEVICE, small_ns
        share = e.percent(small_ns, Spent.DEVICE)
        bound = f"{share} of the step goes to norms, activations, rotary embeddings and the like{_fusing_words(e)}"
    else:
        return None
    chain = (
        f"; the longest that always run together: {chains[0].length} kernels, {chains[0].count} times" if chains else ""
    )
    return e.find(
        "fused-kernels",
        component,
        amounts_ns,
        weighed_ns=weighed_ns,
        spent=spent,
        finding=bound + chain,
        change="Fuse the small kernels: vLLM's own passes first, torch.compile for the rest.",
        settings=(
            """--compilation-config '{"mode": 3, "pass_config": {"fuse_norm_quant": true, "fuse_act_quant": true}}'""",
            "-O3",
        ),
        refuted_by="kernels a step do not fall after the change (taxbreak diff)",
    )


def _fusing_words(e: Evidence) -> str:
    """Say what fusing does about what bounds the work."""
    match _limit(e).bound:
        case Bound.LATENCY:
            return f"{_bound_words(e)}: neither fewer bytes nor narrower products would help, fewer kernels do"
        case Bound.MEMORY:
            return f"{_bound_words(e)}: fused, they read and write each value once"
        case Bound.COMPUTE:
            return f"{_bound_words(e)}: what they take is beside the products, not in them"
        case _:
            return ""


def _bound_words(e: Evidence) -> str:
    """Say what bounds the work of a phase, and how far it is from that; "" where the hardware's limit is not told."""
    limit = _limit(e)
    if limit.bound is None or limit.floor_ns is None or not limit.num_bounded:
        return ""
    least_ns, device_ns = limit.bar.limit_ns, limit.bar.limit_ns + limit.bar.above_ns
    shares = [f"{name} {share:.0%}" for name, share in (("MFU", limit.mfu), ("MBU", limit.mbu)) if share is not None]
    each = f"{least_ns / limit.num_bounded / 1e6:.2f} ms of its {device_ns / limit.num_bounded / 1e6:.2f} ms"
    return f"; it is {limit.bound}-bound, the hardware's limit being {each} of device time a step ({', '.join(shares)})"


def _limit(e: Evidence) -> PhaseLimit:
    return phase_limit([step_bar(step) for step in e.steps])


def _is_device_bound(e: Evidence) -> bool:
    return (e.shares.between_activities_ratio or 0.0) >= DEVICE_BOUND_RATIO


def _halved_ns(limit: StepLimit | None, parts: tuple[str, ...]) -> int:
    """Return the least time of some parts of a model with half of the bits; 0 where it is not known."""
    if limit is None:
        return 0
    floors = [limit.parts[name].floor_ns for name in parts if name in limit.parts]
    return sum(floor[0] for floor in floors if floor is not None) // 2


def _active_ns(step: StepBreakdown, families: frozenset[str]) -> int:
    return sum(share.active_ns for family, share in step.families.items() if family in families)


RULES: tuple[Rule, ...] = (smaller_weights, larger_batch, fused_kernels)
