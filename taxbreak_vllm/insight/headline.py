"""What an operator should know first: the one thing that a server loses most time to, or that there is none.

In: where the seconds of the devices went, what a typical request went through. Out: `Headline`. Rules look at each
concern by itself. Of those that weigh enough a part of the API server in which a request spends more time than in any
other stage, the engine's included, is said first; else the one with the largest share: of a request's time to its first
token, or of the time in which an engine has requests.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from taxbreak_vllm.model.engine import Between, EnginePart, EngineState
from taxbreak_vllm.model.frontend import DELIVERY, QUEUED, Stage
from taxbreak_vllm.model.server import Concern, DevicePart, DeviceSecond, Headline, StepPart, TypicalRequest
from taxbreak_vllm.taxes.server import MIN_ITERATIONS

WORTH_RATIO = 0.20  # less of it stands out neither for a request nor for a device
IDLE_RATIO = 0.90  # a server without a request for so long has nothing to be improved
QUIET_RATIO = 0.50
DEVICE_BOUND_RATIO = 0.80
QUEUE_RATIO = 0.50  # of the time to the first token

_BEFORE_ENGINE = (Stage.RECEIVE, Stage.PARSE, Stage.RENDER, Stage.SUBMIT, Stage.IPC_INPUT)
_ENGINE: tuple[DevicePart, ...] = (*EnginePart, Between.IPC_DISPATCH, Between.IPC_RETURN)
_HOST: tuple[DevicePart, ...] = (StepPart.DELTA_FT, StepPart.DELTA_CT, StepPart.DELTA_KT, StepPart.CALLS)
_WAITING: tuple[DevicePart, ...] = (Between.FRONTEND, Between.IPC_INPUT)

P = TypeVar("P")


def headline(
    seconds: Sequence[DeviceSecond],
    request: TypicalRequest | None,
    *,
    engines: Sequence[EngineState] = (),
    num_workers: int = 0,
) -> Headline:
    """Choose among the concerns; `engines` and `num_workers`, all that run, tell why nothing may be known."""
    known = [second for second in seconds if second.num_iterations >= MIN_ITERATIONS and second.total_ns]
    busy = [second for second in known if _share(second, (Between.NO_WORK,), second.total_ns) < IDLE_RATIO]
    found = [*_of_requests(request, busy), *(one for second in busy for one in _of_device(second))]
    if heavy := [one for one in found if one.ratio >= WORTH_RATIO]:
        longest = None if request is None else _largest(request.stages_ns, tuple(Stage))
        first = max(heavy, key=lambda one: (one.part is longest, one.ratio))
        return first if len(known) > 1 else replace(first, engine="")
    if not known:
        return Headline(concern=Concern.UNKNOWN, reason=_why_unknown(engines, num_workers))
    rules = (_no_work(known), _queue(request), _device(known))
    calm = next((one for one in rules if one is not None), None)
    return calm or Headline(concern=Concern.NOTHING, part=StepPart.ACTIVE, ratio=_active(known))


def _of_requests(request: TypicalRequest | None, busy: Iterable[DeviceSecond]) -> Iterator[Headline]:
    """Time that requests spend before an engine sees them, which its device may wait for, or after it has answered."""
    waits = [_loss(Concern.FRONTEND, second, _WAITING) for second in busy]
    if request is None or request.first_token_ns <= 0 or request.total_ns <= 0:
        yield from waits
        return
    before, after = (_stage(request, stages) for stages in (_BEFORE_ENGINE, DELIVERY))
    yield replace(before, ratio=max([before.ratio, *(one.ratio for one in waits)]))
    yield after


def _stage(request: TypicalRequest, stages: Sequence[Stage]) -> Headline:
    stage = _largest(request.stages_ns, stages)
    lost_ns = request.stages_ns.get(stage, 0)
    of_ns = request.total_ns if stage in DELIVERY else request.first_token_ns
    return Headline(concern=Concern.FRONTEND, part=stage, lost_ns=lost_ns, of_ns=of_ns, ratio=lost_ns / of_ns)


def _of_device(second: DeviceSecond) -> Iterator[Headline]:
    """Time that a device waits for its engine, or for its worker's own host work."""
    yield _loss(Concern.ENGINE, second, _ENGINE)
    yield _loss(Concern.HOST, second, _HOST)


def _no_work(known: Sequence[DeviceSecond]) -> Headline | None:
    whole_ns = sum(second.total_ns for second in known)
    idle_ns = whole_ns - sum(second.working_ns for second in known)
    if idle_ns < QUIET_RATIO * whole_ns:
        return None
    return Headline(
        concern=Concern.NO_WORK, part=Between.NO_WORK, lost_ns=idle_ns, of_ns=whole_ns, ratio=idle_ns / whole_ns
    )


def _queue(request: TypicalRequest | None) -> Headline | None:
    if request is None or request.first_token_ns <= 0:
        return None
    found = replace(_stage(request, QUEUED), concern=Concern.QUEUE)
    return found if found.ratio >= QUEUE_RATIO else None


def _device(known: Sequence[DeviceSecond]) -> Headline | None:
    if any(second.parts_ns.get(StepPart.STEP, 0) > WORTH_RATIO * second.working_ns for second in known):
        reason = "too few steps were recorded to tell what a worker's step itself goes to"
        return Headline(concern=Concern.UNKNOWN, reason=reason)
    ratio = _active(known)
    return Headline(concern=Concern.DEVICE, part=StepPart.ACTIVE, ratio=ratio) if ratio >= DEVICE_BOUND_RATIO else None


def _active(known: Sequence[DeviceSecond]) -> float:
    working_ns = sum(second.working_ns for second in known)
    return sum(second.parts_ns.get(StepPart.ACTIVE, 0) for second in known) / working_ns if working_ns else 0.0


def _loss(concern: Concern, second: DeviceSecond, parts: Sequence[DevicePart]) -> Headline:
    """Say what of a mean iteration some parts take, and which of them takes most."""
    largest = _largest(second.parts_ns, parts)
    return Headline(
        concern=concern,
        part=largest,
        lost_ns=second.parts_ns.get(largest, 0) // second.num_iterations,
        of_ns=second.working_ns // second.num_iterations,
        ratio=_share(second, parts, second.working_ns),
        engine=second.engine,
    )


def _largest(spent_ns: Mapping[P, int], parts: Sequence[P]) -> P:
    return max(parts, key=lambda part: spent_ns.get(part, 0))


def _share(second: DeviceSecond, parts: Iterable[DevicePart], of_ns: int) -> float:
    return sum(second.parts_ns.get(part, 0) for part in parts) / of_ns if of_ns else 0.0


def _why_unknown(engines: Sequence[EngineState], num_workers: int) -> str:
    if not engines:
        return "no engine tells of its loop" if num_workers else "no server writes into this spool"
    if off := [state for state in engines if state.off_reason is not None]:
        return f"the loop of engine {off[0].engine} is no longer followed: {off[0].off_reason}"
    if any(state.works_ahead and state.idle_from is None and state.num_iterations for state in engines):
        return "the engine works a step ahead, and no events on the device tell what it waited for"
    num = max(state.num_iterations for state in engines)
    return f"{num} iterations so far, and it takes {MIN_ITERATIONS}"
