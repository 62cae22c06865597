"""What there is to replay in traces: each distinct call that a dispatch came from, the commonest first.

In: paths of traces or captures. Out: a `Plan`. Of the ops around a launch the outermost that may be replayed is taken,
since T_dispatch counts from the root op; on the CPU backend the op that computes.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from taxbreak_vllm.model.errors import BaselineError, TaxbreakError, TraceFormatError
from taxbreak_vllm.replay.denied import reason_denied
from taxbreak_vllm.replay.task import Task
from taxbreak_vllm.taxes.evidence import joined
from taxbreak_vllm.taxes.recording import Recording
from taxbreak_vllm.taxes.terms import Terms
from taxbreak_vllm.trace.calls import Call, Kernel
from taxbreak_vllm.trace.kernels import KernelRules
from taxbreak_vllm.trace.signatures import Signature


@dataclass(frozen=True, slots=True)
class Plan:
    """What to replay, the commonest first; `denied` are the tasks that never are, with their reasons.

    `place` is what the traces tell of where they were made, all alike; `dtype` that of their model, "" if unknown.
    """

    tasks: tuple[Task, ...]
    denied: tuple[tuple[Task, str], ...]
    place: dict[str, str]
    dtype: str = ""


def plan(paths: Iterable[Path], *, rules: KernelRules | None = None, rank: int | None = None) -> Plan:
    """Collect the calls of traces or captures made in one place.

    Raises BaselineError where they were made in several, or there are none, else what reading them raises.
    """
    found = plans(paths, rules=rules, rank=rank)
    if len(found) != 1:
        places = "; ".join(" ".join(value for value in one.place.values() if value) for one in found)
        raise BaselineError(f"the traces were made in {len(found)} places, not one: {places}")
    return found[0]


def plans(
    paths: Iterable[Path],
    *,
    rules: KernelRules | None = None,
    rank: int | None = None,
    on_damaged: Callable[[TaxbreakError], None] | None = None,
) -> list[Plan]:
    """Collect the calls of traces or captures, one plan a place they were made in.

    `rank` chooses one process of files that join several. Raises what reading them raises and TraceFormatError for a
    file of several processes, or hands it to `on_damaged` and goes on without that one.
    """
    terms = Terms(rules=rules or KernelRules.load(), rank=rank)
    drafts: defaultdict[tuple[str, ...], _Draft] = defaultdict(_Draft)
    for path in paths:
        try:
            with Recording.open(path, terms, with_calls=True) as recording:
                if (processes := len(recording.survey.processes)) > 1:
                    raise TraceFormatError(f"{path}: {joined(processes, 'whose op launched what cannot be told')}")
                place = recording.environment
                drafts[tuple(place.values())].add(recording, place)
        except TaxbreakError as error:
            if on_damaged is None:
                raise
            on_damaged(error)
    return [draft.finish() for draft in drafts.values()]


class _Draft:
    """A plan being collected."""

    def __init__(self) -> None:
        self._count: Counter[Call] = Counter()
        self._kernels: defaultdict[Call, dict[Kernel, None]] = defaultdict(dict)
        self._reasons: dict[Call, str] = {}
        self._place: dict[str, str] = {}
        self._dtypes: set[str] = set()

    def add(self, recording: Recording, place: dict[str, str]) -> None:
        self._place = place
        self._dtypes.add(recording.info.server.dtype if recording.info else "")
        for signature, times in recording.signatures():
            call, reason = _choose(signature)
            self._count[call] += times
            self._kernels[call][signature.kernel] = None
            if reason is not None:
                self._reasons[call] = reason

    def finish(self) -> Plan:
        ordered = [Task(call=call, kernels=tuple(self._kernels[call])) for call, _ in self._count.most_common()]
        return Plan(
            tasks=tuple(task for task in ordered if task.call not in self._reasons),
            denied=tuple((task, self._reasons[task.call]) for task in ordered if task.call in self._reasons),
            place=self._place,
            dtype=_KINETO_DTYPES.get(self._dtypes.pop(), "") if len(self._dtypes) == 1 else "",
        )


_KINETO_DTYPES = {"float32": "float", "float16": "c10::Half", "bfloat16": "c10::BFloat16", "float64": "double"}


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
