"""HDBI of a whole server: its recorded steps beside the iterations of its engines (methodology section 4).

In: the balance of recorded steps by phase, the states of the engines that ran them. Out: `HdbiServer`, with the reason
for every figure that is None.
"""

from collections.abc import Mapping, Sequence

from taxbreak_vllm.model.breakdown import hdbi
from taxbreak_vllm.model.engine import Between, EngineState, IterationSums
from taxbreak_vllm.model.server import HdbiServer, PhaseBalance
from taxbreak_vllm.model.step import Phase

MIN_ITERATIONS = 100  # of a phase: fewer tell little of what lies between its steps
MIN_KNOWN_RATIO = 0.9  # of the iterations: with fewer of them in phases that are known there is no total

TOTAL = "total"


def server_hdbi(
    recorded: Mapping[Phase, PhaseBalance], engines: Sequence[EngineState], *, only: Phase | None = None
) -> HdbiServer:
    """Put what the device waits for between steps into the balance of each phase that was recorded or ran.

    `only` leaves the other phases out.
    """
    if reason := _why_unknown(engines):
        return HdbiServer(phases=dict.fromkeys(recorded), reasons=dict.fromkeys((TOTAL, *map(str, recorded)), reason))
    sums = [(phase, of_phase) for state in engines for phase, of_phase in state.phases.items()]
    sums = [(phase, of_phase) for phase, of_phase in sums if only in (None, phase)]
    ran = {phase for phase, of_phase in sums if of_phase.num > 0} - {Phase.IDLE}
    values: dict[Phase, float | None] = {}
    reasons: dict[str, str] = {}
    active_ns = orchestration_ns = 0.0
    num_known = num_all = 0
    for phase in (phase for phase in Phase if phase in ran or phase in recorded):
        iterations = [of_phase for other, of_phase in sums if other is phase]
        num, balance = sum(of_phase.num for of_phase in iterations), recorded.get(phase)
        num_all += num
        values[phase] = None
        if balance is None or balance.num_steps <= 0:
            reasons[phase] = "none of its recorded steps has an HDBI"
        elif num < MIN_ITERATIONS:
            reasons[phase] = f"the engine tells of {num} iterations, and it takes {MIN_ITERATIONS}"
        else:
            device_ns = balance.active_ns / balance.num_steps
            host_ns = balance.orchestration_ns / balance.num_steps + max(0, sum(map(waited_ns, iterations))) / num
            values[phase] = hdbi(device_ns, host_ns)
            if values[phase] is None:
                reasons[phase] = "neither device nor host took any time"
            active_ns, orchestration_ns = active_ns + num * device_ns, orchestration_ns + num * host_ns
            num_known += num
    total = hdbi(active_ns, orchestration_ns) if num_known and num_known >= MIN_KNOWN_RATIO * num_all else None
    if total is None:
        reasons[TOTAL] = f"its phases are known of {num_known} of {num_all} iterations"
    return HdbiServer(total=total, phases=values, reasons=reasons)


def waited_ns(iterations: IterationSums) -> int:
    """Return what the device waited for between steps, times without a request aside."""
    between = sum(ns for cause, ns in iterations.between_ns.items() if cause is not Between.NO_WORK)
    return sum(iterations.exposed_ns.values()) + between


def _why_unknown(engines: Sequence[EngineState]) -> str:
    if not engines:
        return "no engine of this model runs that tells of its loop"
    if any(state.works_ahead and state.idle_from is None for state in engines):
        return "the engine works a step ahead, and no events on the device tell when it was idle"
    return "" if any(state.phases for state in engines) else "the engine tells nothing of single phases yet"
