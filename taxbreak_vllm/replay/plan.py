"""What there is to replay in traces: each distinct call that a dispatch came from, the commonest first.

In: paths of traces or captures. Out: a `Plan`. Of the ops around a launch the outermost that may be replayed is taken,
since T_dispatch counts from the root op; on the CPU backend the op that computes.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from taxbreak_vllm.decompose import is_cpu_backend
from taxbreak_vllm.errors import BaselineError
from taxbreak_vllm.recording import Recording, read_recording
from taxbreak_vllm.replay.denied import reason_denied
from taxbreak_vllm.replay.task import Task
from taxbreak_vllm.trace.calls import Call, Kernel, read_calls
from taxbreak_vllm.trace.cpu import link_cpu
from taxbreak_vllm.trace.dispatches import link
from taxbreak_vllm.trace.kernels import KernelRules
from taxbreak_vllm.trace.signatures import Signature, sign, sign_ops


@dataclass(frozen=True, slots=True)
class Plan:
    """What to replay, the commonest first; `denied` are the tasks that never are, with their reasons.

    `told` is what the traces tell of where they were made, all alike; `dtype` that of their model, "" if unknown.
    """

    tasks: tuple[Task, ...]
    denied: tuple[tuple[Task, str], ...]
    told: dict[str, str]
    dtype: str = ""


def plan(paths: Iterable[Path], *, rules: KernelRules | None = None) -> Plan:
    """Collect the calls of traces or captures.

    Raises BaselineError where they were made in different places, else what reading them raises.
    """
    rules = rules or KernelRules.load()
    count: Counter[Call] = Counter()
    kernels: defaultdict[Call, dict[Kernel, None]] = defaultdict(dict)
    reasons: dict[Call, str] = {}
    told: dict[str, str] = {}
    dtypes = set()
    for path in paths:
        found = read_recording(path)
        here = found.environment()
        if told and here != told:
            raise BaselineError(f"{path}: made in another place than the traces before it: {_differences(told, here)}")
        told = here
        dtypes.add(found.info.server.dtype if found.info else "")
        for signature, times in _signatures(found, rules):
            call, reason = _choose(signature)
            count[call] += times
            kernels[call][signature.kernel] = None
            if reason is not None:
                reasons[call] = reason
    ordered = [Task(call=call, kernels=tuple(kernels[call])) for call, _ in count.most_common()]
    return Plan(
        tasks=tuple(task for task in ordered if task.call not in reasons),
        denied=tuple((task, reasons[task.call]) for task in ordered if task.call in reasons),
        told=told,
        dtype=_KINETO_DTYPES.get(dtypes.pop(), "") if len(dtypes) == 1 else "",
    )


_KINETO_DTYPES = {"float32": "float", "float16": "c10::Half", "bfloat16": "c10::BFloat16", "float64": "double"}


def _signatures(found: Recording, rules: KernelRules) -> list[tuple[Signature, int]]:
    """Return the distinct signatures of a recording, and how many dispatches have each."""
    events = found.events
    calls = read_calls(events.path)
    if is_cpu_backend(events):
        _, _, dispatches, _ = link_cpu(events, rules.is_metadata_op)
        distinct, index = sign_ops(events, dispatches.row, calls)
    else:
        host, activities, dispatches = link(events)
        signed = sign(events, host, activities, dispatches, calls)
        distinct, index = signed.distinct, signed.of_dispatch[signed.of_dispatch >= 0].astype(np.intp)
    return list(zip(distinct, np.bincount(index, minlength=len(distinct)).tolist(), strict=True))


def _choose(signature: Signature) -> tuple[Call, str | None]:
    """Take the outermost call that may be replayed; where none may, the innermost and why not."""
    reason = None
    for call in signature.calls:
        if call.inputs is None:
            reason = reason_denied(call.op) or "recorded without shapes"
        else:
            reason = reason_denied(call.op, len(call.inputs))
        if reason is None:
            break
    return call, reason


def _differences(told: dict[str, str], here: dict[str, str]) -> str:
    return ", ".join(f"{name} {told[name]!r} and {here[name]!r}" for name in told if told[name] != here[name])
