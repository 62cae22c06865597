"""The rules of advice: what a phase's evidence points at, what would change it, and what would refute that.

In: the `Evidence` of a phase. Out: a `Finding`, or None where the pattern is not there; whether it weighs enough is
decided by `advice`. Settings are those of vLLM 0.32. What an engine does between two steps is judged only where one
trace holds several.
"""

from collections.abc import Callable
from dataclasses import replace

from taxbreak_vllm.insight import device_rules
from taxbreak_vllm.insight.device_rules import Rule
from taxbreak_vllm.insight.evidence import GRAPHS, Evidence, Finding
from taxbreak_vllm.insight.plain import WORTH_RATIO, Spent
from taxbreak_vllm.insight.transition import size_words
from taxbreak_vllm.model.advice import Component
from taxbreak_vllm.model.breakdown import StepBreakdown, sum_or_none
from taxbreak_vllm.model.step import GraphMode, Phase
from taxbreak_vllm.model.transition import SizeUnit

SMALL_BATCH = 16  # requests a step; host work hardly grows with them
SMALL_PREFILL = 2048  # prompt tokens a step, vLLM's smallest default budget
MIN_LAUNCHES = 20  # a step; fewer are no reason for a graph

_DECODING = frozenset({Phase.DECODE, Phase.VERIFY})
_GENERATING = _DECODING | {Phase.MIXED}
_FULL_GRAPHS = """--compilation-config '{"cudagraph_mode": "FULL_AND_PIECEWISE"}'"""


def cuda_graphs(e: Evidence) -> Finding | None:
    """Many launches one by one, and the device waits for them: replay them as a graph."""
    launches = e.per_step(e.total.launches) or 0
    if not e.is_gpu or e.has_graphs or launches < MIN_LAUNCHES:
        return None
    tokens = max((step.batch.prompt_tokens or 0) + (step.batch.output_tokens or 0) for step in e.steps)
    settings: tuple[str, ...] = (_FULL_GRAPHS, "no --enforce-eager")
    if e.phase not in _DECODING and tokens:
        settings += (f"--max-cudagraph-capture-size {tokens} or more",)
    exposed = e.total.exposed
    parts = {
        Component.FRAMEWORK: exposed.delta_ft_ns or 0,
        Component.LIBRARY: exposed.delta_ct_ns or 0,
        Component.LAUNCH_PATH: exposed.delta_kt_ns or 0,
    }
    return e.find(
        "cuda-graphs",
        max(parts, key=lambda component: parts[component]),
        e.launched_ns,
        weighed_ns=e.host_ns,
        finding=f"{launches:,.0f} launches a step, none of them a graph; for {e.percent(e.host_ns)} of the step the"
        " device waits for the next one",
        change="Replay the step as CUDA graphs: one launch instead of hundreds.",
        settings=settings,
        refuted_by="graph_mode stays NONE after the change (the batch is larger than the largest captured size), or the"
        " step is as long as before",
    )


def full_graphs(e: Evidence) -> Finding | None:
    """Decode steps in pieces of graphs, with host work between the pieces that the device waits for."""
    piecewise = any(step.graph_mode is GraphMode.PIECEWISE for step in e.steps)
    if not piecewise or e.phase not in _DECODING:
        return None
    return e.find(
        "full-graphs",
        Component.LAUNCH_PATH,
        e.launched_ns,
        weighed_ns=e.host_ns,
        finding=f"{e.per_step(e.total.launches) or 0:,.0f} launches a step although graphs are used in pieces; for"
        f" {e.percent(e.host_ns)} of the step the device waits for the host between them",
        change="Capture decode steps whole, attention included.",
        settings=(_FULL_GRAPHS,),
        refuted_by="vLLM logs that the attention backend does not support full graphs, or launches a step do not fall",
    )


def capture_sizes(e: Evidence) -> Finding | None:
    """Some steps of a phase find a graph of their size and others do not."""
    outside = [step for step in e.steps if step.graph_mode is GraphMode.NONE]
    if not outside or not any(step.graph_mode in GRAPHS for step in e.steps):
        return None
    lost_ns = e.each(lambda step: _taxed_ns(step) if step.graph_mode is GraphMode.NONE else 0)
    launched_ns = [
        ns if step.graph_mode is GraphMode.NONE else 0 for step, ns in zip(e.steps, e.launched_ns, strict=True)
    ]
    sizes = sorted({step.batch.requests for step in outside if step.batch.requests})
    return e.find(
        "capture-sizes",
        Component.LAUNCH_PATH,
        launched_ns,
        weighed_ns=lost_ns,
        finding=f"{len(outside)} of {len(e.steps)} steps ran without a graph while others of this phase had one"
        + (f"; their batches: {', '.join(map(str, sizes[:12]))}" if sizes else ""),
        change="Capture graphs for the batch sizes that occur.",
        settings=(
            f"--max-cudagraph-capture-size {sizes[-1]} or more" if sizes else "--max-cudagraph-capture-size",
            "--cudagraph-capture-sizes …",
        ),
        refuted_by="steps of these batch sizes still show graph_mode none",
    )


def compilation(e: Evidence) -> Finding | None:
    """Op by op from Python, with no compiled region seen, and the device waits for it."""
    if e.has_graphs or e.is_compiled:
        return None
    return e.find(
        "compilation",
        Component.FRAMEWORK,
        e.framework_ns,
        finding=f"{e.percent(e.framework_ns)} of the step is Python and op dispatch that the device waits for, and no"
        " op or kernel here is of torch.compile",
        change="Let vLLM compile the model: fewer ops to dispatch, and fused ones.",
        settings=("""--compilation-config '{"mode": 3}'""", "no --enforce-eager"),
        refuted_by="the number of kernels a step does not fall, or vLLM logs that the model cannot be compiled",
    )


def library_front_end(e: Evidence) -> Finding | None:
    """The device waits while cuBLAS or its like makes up its mind."""
    amounts_ns = e.each(lambda step: step.exposed.delta_ct_ns)
    return e.find(
        "library-front-end",
        Component.LIBRARY,
        amounts_ns,
        finding=f"for {e.percent(amounts_ns)} of the step the device waits for a vendor library to choose and launch",
        change="Take the library out of the step: replay it in a graph, or use kernels that launch directly.",
        settings=("--linear-backend cutlass", _FULL_GRAPHS),
        refuted_by="replayed alone (taxbreak replay) these ops dispatch as fast as framework-native ones",
    )


def async_scheduling(e: Evidence) -> Finding | None:
    """The device idles while the host is inside a blocking call."""
    if not e.is_gpu:
        return None
    amounts_ns = e.each(lambda step: step.device.idle.blocked_ns)
    return e.find(
        "async-scheduling",
        Component.SYNCHRONIZATION,
        amounts_ns,
        finding=f"for {e.percent(amounts_ns)} of the step the device idles while the host sits in a synchronize or a"
        " synchronous copy",
        change="Let the next step be prepared while this one runs.",
        settings=("--async-scheduling",),
        refuted_by="vLLM logs that asynchronous scheduling is on already, or idle by cause 'blocked' stays",
    )


def engine_loop(e: Evidence) -> Finding | None:
    """Time passes between steps, while requests are there."""
    if e.between_ns is None or e.between_ns < WORTH_RATIO * (e.between_ns + e.total.device.window_ns):
        return None
    each_ns = e.between_ns // len(e.steps)
    return e.find(
        "engine-loop",
        Component.ENGINE_LOOP,
        [each_ns] * len(e.steps),
        iterations=tuple(
            replace(step, window_ns=step.window_ns + each_ns, step_ns=step.step_ns + each_ns) for step in e.plain
        ),
        finding=f"{e.between_ns / (e.between_ns + e.total.device.window_ns):.0%} of the recorded time lies between"
        " steps: scheduling, output and input processing",
        change="Overlap the engine loop with the device.",
        settings=("--async-scheduling", "--api-server-count 2 or more"),
        refuted_by="vllm:num_requests_running is 0 in between: then the server had nothing to do",
    )


def batch_size(e: Evidence) -> Finding | None:
    """Few requests share a step whose host work hardly depends on how many there are."""
    requests = e.per_step(e.total.batch.requests)
    target, turn = _target(e, SizeUnit.REQUESTS, SMALL_BATCH)
    if e.phase not in _GENERATING or not requests or requests >= target:
        return None
    least = e.percent([round(ns * (1 - requests / target)) for ns in e.host_ns])
    return e.find(
        "batch-size",
        Component.ENGINE_LOOP,
        _shared_ns(e, lambda step: step.batch.requests, target),
        weighed_ns=e.host_ns,
        spent=Spent.TOKEN,
        tokens=e.total.batch.output_tokens or e.total.batch.requests,
        finding=f"{requests:.1f} requests share a step, and for {e.percent(e.host_ns)} of it the device waits for the"
        f" host, which works nearly as long for one request as for many; {target:,} of them at most divide what a"
        f" step takes, and win {least} where the device's work grows with them{turn}",
        change="Let more requests share a step: the same host work then serves more tokens.",
        settings=("--max-num-seqs (larger)", "fewer replicas for the same load"),
        refuted_by="vllm:num_requests_waiting is 0: there are no more requests to share the step; and it raises"
        " throughput only, a single request becomes no faster",
    )


def prefill_budget(e: Evidence) -> Finding | None:
    """Prompts go through in chunks so small that the host's work shows."""
    tokens = e.per_step(e.total.batch.prompt_tokens)
    target, turn = _target(e, SizeUnit.PROMPT_TOKENS, SMALL_PREFILL)
    if e.phase not in (Phase.PREFILL, Phase.MIXED) or not tokens or tokens >= target:
        return None
    least = e.percent([round(ns * (1 - tokens / target)) for ns in e.host_ns])
    return e.find(
        "prefill-budget",
        Component.ENGINE_LOOP,
        _shared_ns(e, lambda step: step.batch.prompt_tokens, target),
        weighed_ns=e.host_ns,
        spent=Spent.TOKEN,
        tokens=e.total.batch.prompt_tokens,
        finding=f"{tokens:,.0f} prompt tokens a step, and for {e.percent(e.host_ns)} of it the device waits for the"
        f" host; {target:,} of them at most divide what a step takes, and win {least} where the device's work"
        f" grows with them{turn}",
        change="Give a step more prompt tokens, so that fewer steps carry the same prompts.",
        settings=("--max-num-batched-tokens (larger)", "--enable-chunked-prefill"),
        refuted_by="prompts are shorter than the budget and arrive one by one, or decode steps that share a step with"
        " longer chunks become too slow",
    )


def _target(e: Evidence, unit: SizeUnit, usual: int) -> tuple[int, str]:
    """Return a batch to aim at, as large as where the device begins to decide or larger, and what is known of that."""
    found = e.transition
    if found is None or found.unit is not unit or len(found.buckets) < 2:
        return usual, ""
    if found.between is None:
        return usual, f"; {found.reason}"
    host, device = (size_words(size, unit) for size in found.between)
    return max(usual, found.between[1]), f"; from {device} on the device decides, at {host} the host still did"


def _shared_ns(e: Evidence, size: Callable[[StepBreakdown], int | None], target: int) -> list[int]:
    """Return what the plain steps would have saved their tokens, had each carried `target` of them in the same time.

    A step that carries more is no shorter, so that no step can do better than that.
    """
    return [
        round(plain.window_ns * max(0.0, 1 - (size(step) or target) / target))
        for plain, step in zip(e.plain, e.steps, strict=True)
    ]


def _taxed_ns(step: StepBreakdown) -> int:
    exposed = step.exposed
    return sum_or_none((exposed.delta_ft_ns, exposed.delta_ct_ns, exposed.delta_kt_ns)) or 0


def cpu_limit(e: Evidence) -> Finding | None:
    """More threads than processors, or a container that is throttled, while the host's time matters."""
    machine = e.machine
    if machine is None or machine.cpu_limit is None:
        return None
    is_crowded = machine.omp_threads is not None and machine.omp_threads > machine.cpu_limit
    is_throttled = (machine.throttled_ratio or 0.0) >= WORTH_RATIO
    if not (is_crowded or is_throttled):
        return None
    active_ns = e.each(lambda step: 0 if e.is_gpu else step.device.active_ns)
    amounts_ns = [sum(both) for both in zip(e.host_ns, active_ns, strict=True)]
    facts = [f"the worker may use {machine.cpu_limit:g} CPUs"]
    facts += [f"computes with {machine.omp_threads} threads"] if machine.omp_threads is not None else []
    facts += [f"was throttled in {machine.throttled_ratio:.0%} of its periods"] if machine.throttled_ratio else []
    return e.find(
        "cpu-limit",
        Component.FRAMEWORK,
        amounts_ns,
        finding=f"{' and '.join(facts)}; {e.percent(amounts_ns)} of the step is the host's",
        change="Raise the container's CPU limit, or use no more threads than it allows, each on a core of its own.",
        settings=(
            f"OMP_NUM_THREADS={max(1, int(machine.cpu_limit))}",
            "VLLM_CPU_OMP_THREADS_BIND=auto" if not e.is_gpu else "--numa-bind",
            "resources.limits.cpu (Kubernetes), --cpus (Docker)",
        ),
        refuted_by="nr_throttled in the container's cpu.stat stands still, or the step is as long with more CPUs",
    )


def faster_core(e: Evidence) -> Finding | None:
    """What graphs and compilation leave over is single-threaded Python and dispatch."""
    if not (e.has_graphs if e.is_gpu else e.is_compiled):
        return None
    return e.find(
        "faster-core",
        Component.FRAMEWORK,
        e.framework_ns,
        finding=f"{'graphs are' if e.is_gpu else 'compiled code is'} in use, and still the device waits"
        f" {e.percent(e.framework_ns)} of the step for Python and dispatch on one thread",
        change="Give that thread a faster core of its own: performance governor, a CPU with a higher single-thread"
        " clock, pinned to the device's NUMA node.",
        settings=("cpupower frequency-set -g performance", "--numa-bind" if e.is_gpu else "VLLM_CPU_OMP_THREADS_BIND"),
        refuted_by="the step does not get shorter in proportion to the clock",
    )


RULES: tuple[Rule, ...] = (
    cuda_graphs,
    full_graphs,
    capture_sizes,
    compilation,
    library_front_end,
    async_scheduling,
    engine_loop,
    batch_size,
    prefill_budget,
    cpu_limit,
    faster_core,
    *device_rules.RULES,
)
