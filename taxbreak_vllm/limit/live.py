"""The hardware limit of a live recording: what its worker wrote of the model and of the step, beside the breakdown.

In: the breakdown of a capture, its `step.json`, and what its worker published. Out: the breakdown with `limit`, or with
why there is none.
"""

from dataclasses import replace
from pathlib import Path

from taxbreak_vllm.limit.ceilings import ceilings_of
from taxbreak_vllm.limit.step import limit_of_step
from taxbreak_vllm.model.breakdown import Breakdown, StepBreakdown
from taxbreak_vllm.model.limit import Ceilings
from taxbreak_vllm.model.shape import ModelShape
from taxbreak_vllm.model.step import StepInfo
from taxbreak_vllm.model.worker import WorkerState
from taxbreak_vllm.spool.capture import Capture
from taxbreak_vllm.taxes.recording import Recording

_NO_STATE = "what its worker said of its model is not beside the capture"
_NO_MODEL = "its worker says nothing of its model"
_NO_WORK = "its worker could not tell what the step worked on"


def with_limit(
    breakdown: Breakdown, info: StepInfo, state: WorkerState | None, *, measured: Ceilings | None = None
) -> Breakdown:
    """Tell the limit of a capture's step; `measured` are ceilings better than those of its device's maker."""
    model, work = _model(info, state), info.work
    ceilings = ceilings_of(breakdown.source.device_name, measured=measured)

    def told(step: StepBreakdown) -> StepBreakdown:
        if isinstance(model, str) or work is None:
            return replace(step, limit_reason=model if isinstance(model, str) else _NO_WORK)
        return replace(step, limit=limit_of_step(model, work, step, ceilings))

    total = told(breakdown.total) if len(breakdown.steps) == 1 else breakdown.total
    return replace(breakdown, steps=tuple(map(told, breakdown.steps)), total=total)


def limited(recording: Recording) -> Breakdown:
    """Return the breakdown of a recording, with the limit of its step where it is a capture."""
    if recording.info is None:
        return recording.breakdown
    return with_limit(recording.breakdown, recording.info, Capture(Path(recording.path)).read_state())


def _model(info: StepInfo, state: WorkerState | None) -> ModelShape | str:
    if state is None or (state.server.server_id, state.server.rank) != (info.server.server_id, info.server.rank):
        return _NO_STATE
    return state.model or state.model_reason or _NO_MODEL
