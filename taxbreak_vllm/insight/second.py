"""Where the second of a device went, from client to kernel.

In: what an engine says of its iterations, and the recorded steps of its model by phase. Out: `DeviceSecond`. What lies
between steps is the engine's account; the time within them is divided as that of the recorded steps of the same phase.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import accumulate, pairwise

from taxbreak_vllm.model.breakdown import Breakdown, StepBreakdown
from taxbreak_vllm.model.engine import EngineState
from taxbreak_vllm.model.server import DEVICE_PARTS, DevicePart, DeviceSecond, StepPart
from taxbreak_vllm.model.step import Phase
from taxbreak_vllm.taxes.add import add_steps


def device_second(state: EngineState, recorded: Mapping[Phase, StepBreakdown]) -> DeviceSecond | None:
    """Put both together; None where the engine's account does not tell what its device waited for."""
    found: Counter[DevicePart] = Counter()
    for part, part_ns in state.exposed_ns.items():
        found[part] += part_ns
    for cause, cause_ns in state.between_ns.items():
        found[cause] += cause_ns
    if not found or min(state.worker_ns, *found.values()) < 0:
        return None
    rest_ns = state.worker_ns
    for phase, sums in state.phases.items():
        if 0 < sums.worker_ns <= rest_ns:
            found.update(_within(sums.worker_ns, recorded.get(phase)))
            rest_ns -= sums.worker_ns
    found[StepPart.STEP] += rest_ns
    return DeviceSecond(
        engine=state.engine,
        model_name=state.model_name,
        num_iterations=state.num_iterations,
        num_left_out=state.num_left_out,
        parts_ns={part: found[part] for part in (*DEVICE_PARTS, *found) if found[part]},
    )


def device_seconds(states: Iterable[EngineState], recorded: Breakdown) -> tuple[DeviceSecond, ...]:
    """Put what engines say and one breakdown of recorded steps together; of engines that tell enough."""
    of_phase: dict[Phase, list[StepBreakdown]] = {}
    for step in recorded.steps:
        if step.phase is not None:
            of_phase.setdefault(step.phase, []).append(step)
    steps = {phase: add_steps(found) for phase, found in of_phase.items()}
    found = (device_second(state, steps) for state in states)
    return tuple(second for second in found if second is not None)


def _within(worker_ns: int, step: StepBreakdown | None) -> dict[DevicePart, int]:
    """Divide time of steps as the device's time in recorded ones; to the nanosecond."""
    parts = {} if step is None else _device_parts(step)
    whole = sum(parts.values())
    if not whole:
        return {StepPart.STEP: worker_ns}
    ends = (worker_ns * up_to // whole for up_to in accumulate(parts.values(), initial=0))
    return {part: end - start for part, (start, end) in zip(parts, pairwise(ends), strict=True)}


def _device_parts(step: StepBreakdown) -> dict[DevicePart, int]:
    """Return what the device did in steps; idle time before and after their work is the engine's (methodology 4)."""
    device, idle, exposed = step.device, step.device.idle, step.exposed
    if idle.host_ns is None or idle.blocked_ns is None or idle.queue_ns is None:
        return {}
    layers = (exposed.delta_ft_ns or 0, exposed.delta_ct_ns or 0, exposed.delta_kt_ns or 0)
    parts: dict[DevicePart, int] = {
        StepPart.DELTA_FT: layers[0],
        StepPart.DELTA_CT: layers[1],
        StepPart.DELTA_KT: layers[2],
        StepPart.CALLS: idle.host_ns - sum(layers),
        StepPart.BLOCKED: idle.blocked_ns,
        StepPart.LAUNCHED: idle.queue_ns,
        StepPart.ACTIVE: device.active_ns + device.other_active_ns,
    }
    return parts if min(parts.values()) >= 0 else {}
