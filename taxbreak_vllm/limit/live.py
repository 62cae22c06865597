"""The hardware limit of a live recording: what its worker wrote of the model and of the step, beside the breakdown.

In: the breakdown of a capture, its `step.json`, and what its worker published. Out: the breakdown with `limit`, or with
why there is none.
"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from taxbreak_vllm.limit.annotation import work_of
from taxbreak_vllm.limit.ceilings import ceilings_of
from taxbreak_vllm.limit.step import limit_of_step
from taxbreak_vllm.model.breakdown import Breakdown, StepBreakdown
from taxbreak_vllm.model.shape import ModelShape
from taxbreak_vllm.model.step import StepInfo
from taxbreak_vllm.model.worker import WorkerState
from taxbreak_vllm.spool.capture import Capture
from taxbreak_vllm.taxes.recording import Recording

if TYPE_CHECKING:  # it opens SQLite
    from taxbreak_vllm.baselines.store import View

_NO_STATE = "what its worker said of its model is not beside the capture"
_NO_MODEL = "its worker says nothing of its model"
_NO_LENGTHS = "the lengths of its requests are not in the trace"
_NO_WORK = "its worker could not tell what the step worked on"


def with_limit(
    breakdown: Breakdown,
    info: StepInfo,
    state: WorkerState | None,
    *,
    view: "View | None" = None,
    described: ModelShape | None = None,
) -> Breakdown:
    """Tell the limit of a capture's step; `view` is what was measured on a device such as its own.

    `described` is its model, for a worker that says nothing of it.
    """
    state = state if state is not None and _is_of(state, info) else None
    model, work = _model(state), info.work
    model = described if isinstance(model, str) and described is not None else model
    ceilings = ceilings_of(
        breakdown.source.device_name,
        measured=None if view is None else view.ceilings,
        properties=None if state is None else state.device,
    )

    def told(step: StepBreakdown) -> StepBreakdown:
        if isinstance(model, str) or work is None:
            return replace(step, limit_reason=model if isinstance(model, str) else _NO_WORK)
        return replace(step, limit=limit_of_step(model, work, step, ceilings))

    total = told(breakdown.total) if len(breakdown.steps) == 1 else breakdown.total
    return replace(breakdown, steps=tuple(map(told, breakdown.steps)), total=total)


def limited(recording: Recording, *, model: ModelShape | None = None) -> Breakdown:
    """Return the breakdown of a recording, with the limit of its step where it is a capture.

    `model` is a description of it: for the steps of a trace, and for a capture whose worker says nothing of its own.
    """
    if recording.info is not None:
        state = Capture(Path(recording.path)).read_state()
        return with_limit(recording.breakdown, recording.info, state, view=recording.view, described=model)
    return recording.breakdown if model is None else with_described(recording.breakdown, model, view=recording.view)


def with_described(breakdown: Breakdown, model: ModelShape, *, view: "View | None" = None) -> Breakdown:
    """Tell the limit of a trace's steps by what their annotations say that they worked on."""
    ceilings = ceilings_of(breakdown.source.device_name, measured=None if view is None else view.ceilings)

    def told(step: StepBreakdown) -> StepBreakdown:
        work = work_of(step.name or "", model)
        if work is None:
            return replace(step, limit_reason=_NO_LENGTHS)
        return replace(step, limit=limit_of_step(model, work, step, ceilings))

    steps, total = tuple(map(told, breakdown.steps)), breakdown.total
    if len(steps) == 1:
        total = replace(total, limit=steps[0].limit, limit_reason=steps[0].limit_reason)
    return replace(breakdown, steps=steps, total=total)


def _is_of(state: WorkerState, info: StepInfo) -> bool:
    return (state.server.server_id, state.server.rank) == (info.server.server_id, info.server.rank)


def _model(state: WorkerState | None) -> ModelShape | str:
    return _NO_STATE if state is None else state.model or state.model_reason or _NO_MODEL
