"""What hardware allows a recorded step, and the bar of its device's time.

In: the shape of a model, the sums over a step's requests, the step's own breakdown, ceilings where they are known. Out:
`StepLimit`: the work by family, the least time ΣF/P or ΣB/BW, whichever is longer, and a bar whose parts sum to the
nanosecond.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from taxbreak_vllm.limit.ceilings import NO_CEILINGS
from taxbreak_vllm.limit.work import family_work
from taxbreak_vllm.model.breakdown import StepBreakdown
from taxbreak_vllm.model.ceilings import Ceilings
from taxbreak_vllm.model.limit import SLACK, Bar, Bound, FamilyWork, StepLimit
from taxbreak_vllm.model.shape import ModelShape, StepWork

_UNCOUNTED = "which experts its tokens chose could not be counted"
_SPREAD = "experts are spread over ranks: its share of them and of all ranks' tokens is taken to be an even one"
_CACHE = (
    "its bytes may lie in the device's cache, whose bandwidth was not measured ('taxbreak floor' does), so no least "
    "time is told"
)


def limit_of_step(model: ModelShape, work: StepWork, step: StepBreakdown, ceilings: Ceilings | None) -> StepLimit:
    """Return the limit of a step of this model on one rank."""
    parts = family_work(model, work)
    flops = sum(part.flops for part in parts.values())
    least, most, reach = (
        _sum(getattr(part, name) for part in parts.values()) for name in ("bytes", "most_bytes", "reach_bytes")
    )
    known = None if ceilings is None else ceilings.of_work((part.dtype for part in parts.values() if part.flops), least)
    notes = [*model.missing, *_notes(model, work, parts, ceilings, known)]
    compute = _total(_compute_ns(part, known) for part in parts.values())
    low, high = _memory_ns(least, known), _memory_ns(most, known)
    latency_ns = _latency_ns(step, known)
    floor_ns, bound = None, None
    if compute is not None and low is not None and high is not None:
        floor_ns = round(max(compute, low)), round(max(compute, high))
        bound = Bound.COMPUTE if compute > low else Bound.MEMORY
        if latency_ns is not None and floor_ns[0] < latency_ns:
            bound = Bound.LATENCY
    told_ns = max(compute or 0, low or 0)
    window_ns, active_ns = _window_ns(step), step.device.active_ns
    is_possible = told_ns <= SLACK * active_ns
    if not is_possible:
        notes.append(_impossible(round(told_ns), active_ns))
    is_shared = is_possible and window_ns > 0
    return StepLimit(
        flops=flops,
        bytes=least,
        most_bytes=most,
        reach_bytes=reach,
        compute_ns=None if compute is None else round(compute),
        memory_ns=None if low is None else round(low),
        latency_ns=latency_ns,
        floor_ns=floor_ns,
        bound=bound if is_possible else None,
        mfu=compute / window_ns if compute is not None and is_shared else None,
        mbu=low / window_ns if low is not None and is_shared else None,
        flops_per_s=flops / active_ns * 1e9 if active_ns else None,
        bytes_per_s=least / active_ns * 1e9 if active_ns and least is not None else None,
        ceilings=known,
        level=None if known is None or least is None or not known.cache_bytes else known.level(least),
        parts={name: replace(part, floor_ns=_floor_ns(part, known)) for name, part in parts.items()},
        bar=bar_of(step, floor_ns[0] if floor_ns and is_possible else None),
        notes=tuple(dict.fromkeys(notes)),
    )


def bar_of(step: StepBreakdown, floor_ns: int | None) -> Bar:
    """Cut a step's device time and idle time; all device time is unknown without a limit.

    A limit that is above the device's time, within what clocks are off by, is all of it.
    """
    own_ns, exposed, idle = step.device.active_ns, step.exposed, step.device.idle
    limit_ns = 0 if floor_ns is None else min(floor_ns, own_ns)
    known = {name: getattr(exposed, f"{name}_ns") for name in ("delta_ft", "delta_ct", "delta_kt", "other")}
    if step.iteration is not None:
        known["engine"] = idle.edge_ns
    parts = {name: ns for name, ns in known.items() if ns is not None}
    others = [idle.blocked_ns, idle.queue_ns, idle.edge_ns if step.iteration is None else 0]
    other_idle_ns = sum(ns for ns in others if ns is not None)
    above_ns = own_ns - limit_ns if floor_ns else 0
    told_ns = limit_ns + above_ns + sum(parts.values()) + other_idle_ns
    window_ns = _window_ns(step)
    return Bar(
        window_ns=window_ns,
        limit_ns=limit_ns,
        above_ns=above_ns,
        exposed_ns=parts,
        other_idle_ns=other_idle_ns,
        unknown_ns=window_ns - told_ns,
    )


def _window_ns(step: StepBreakdown) -> int:
    """Return the time of the device that a step's bar is of: its own, that of other steps and idle time."""
    device = step.device
    idle_ns = device.idle_ns
    if idle_ns is None:
        idle_ns = device.window_ns - device.active_ns - device.other_active_ns
    return device.active_ns + device.other_active_ns + idle_ns


def _latency_ns(step: StepBreakdown, ceilings: Ceilings | None) -> int | None:
    """Return what as many kernels take that do nothing."""
    if ceilings is None or ceilings.shortest_kernel_ns is None:
        return None
    return step.kernels * ceilings.shortest_kernel_ns


def _impossible(floor_ns: int, active_ns: int) -> str:
    return (
        f"its device took {active_ns} ns, less than the least time of {floor_ns} ns: its work is counted too high or "
        "the ceilings are too low, so no share of them is told"
    )


def _compute_ns(part: FamilyWork, ceilings: Ceilings | None) -> float | None:
    if not part.flops:
        return 0.0
    return None if ceilings is None else ceilings.compute_ns(part.flops, part.dtype)


def _memory_ns(num_bytes: int | None, ceilings: Ceilings | None) -> float | None:
    return None if ceilings is None else ceilings.memory_ns(num_bytes)


def _floor_ns(part: FamilyWork, ceilings: Ceilings | None) -> tuple[int, int] | None:
    compute, low, high = (
        _compute_ns(part, ceilings),
        _memory_ns(part.bytes, ceilings),
        _memory_ns(part.most_bytes, ceilings),
    )
    if compute is None or low is None or high is None:
        return None
    return round(max(compute, low)), round(max(compute, high))


def _notes(
    model: ModelShape,
    work: StepWork,
    parts: Mapping[str, FamilyWork],
    ceilings: Ceilings | None,
    known: Ceilings | None,
) -> Iterable[str]:
    if model.experts and work.distinct_experts is None:
        yield model.uncounted or _UNCOUNTED
    if model.expert_parallel > 1:
        yield _SPREAD
    if ceilings is None or known is None:
        yield NO_CEILINGS
        return
    if ceilings.bytes_per_s is None:
        yield "the bandwidth of its memory is not known, so no least time is told"
    elif known.bytes_per_s is None:
        yield _CACHE
    for dtype in sorted({part.dtype for part in parts.values() if part.flops and part.dtype}):
        if dtype not in known.flops_per_s:
            yield f"no ceiling is known for products in {dtype}, so no least time is told"


def _sum(values: Iterable[int | None]) -> int | None:
    known = list(values)
    return None if None in known else sum(value for value in known if value is not None)


def _total(values: Iterable[float | None]) -> float | None:
    known = list(values)
    return None if None in known else sum(value for value in known if value is not None)
