"""The row of one capture: its breakdown, its `step.json` and what its worker said of itself in, `StepRow` out."""

from pathlib import Path

from taxbreak_vllm.insight.foreseen import foreseen
from taxbreak_vllm.limit.live import limited
from taxbreak_vllm.model.breakdown import Breakdown, StepBreakdown
from taxbreak_vllm.model.errors import TraceFormatError
from taxbreak_vllm.model.fleet import Predicted, StepRow
from taxbreak_vllm.model.host import HostFacts
from taxbreak_vllm.model.step import StepInfo
from taxbreak_vllm.taxes.recording import Recording


def analyzed(path: Path) -> tuple[StepInfo, Breakdown]:
    """Analyze a capture as the sidecar does, without baselines.

    Raises TraceFormatError or SpoolError for one that is damaged, or no recording of one step.
    """
    with Recording.open(path) as recording:
        info, breakdown = recording.info, limited(recording)
        if info is None or len(breakdown.steps) != 1:
            raise TraceFormatError(f"{len(breakdown.steps)} steps in the trace of one")
        return info, foreseen(recording, breakdown)


def row_of(capture: str, info: StepInfo, breakdown: Breakdown) -> StepRow:
    """Return the row of a capture, which the archive calls by this digest."""
    step, server = breakdown.steps[0], info.server
    step_ns, plain_ns = info.compared_ns
    limit, host = step.limit, info.host or HostFacts()
    return StepRow(
        capture=capture,
        model=server.model_name,
        vllm=server.vllm,
        gpu=breakdown.source.device_name,
        device_type=server.device_type,
        host=server.host or server.server_id,
        place=f"{server.host or server.server_id} {server.device_uuid or f'{server.engine}.{server.rank}'}",
        server=server.server_id,
        engine=server.engine,
        rank=server.rank,
        settings=server.settings_hash,
        torch=server.torch,
        started_unix_ns=info.started_unix_ns,
        step_id=info.step_id,
        phase=info.phase.value,
        graph_mode=info.graph_mode.value,
        requests=info.batch.requests,
        tokens=_tokens(info),
        step_ns=step_ns,
        plain_ns=plain_ns,
        num_plain=info.num_plain,
        dilation=breakdown.calibration.dilation,
        residual=breakdown.calibration.residual,
        delta_ft_ns=step.taxes.delta_ft_ns,
        delta_ct_ns=step.taxes.delta_ct_ns,
        delta_kt_ns=step.taxes.delta_kt_ns,
        orchestration_ns=step.taxes.orchestration_ns,
        exposed_ns=step.device.idle.host_ns,
        active_ns=step.device.active_ns,
        idle_ns=step.device.idle_ns,
        hdbi=step.hdbi,
        engine_ns=_engine_ns(step),
        limit_ns=None if limit is None or limit.floor_ns is None else limit.floor_ns[0],
        bound=None if limit is None or limit.bound is None else limit.bound.value,
        mfu=None if limit is None else limit.mfu,
        mbu=None if limit is None else limit.mbu,
        launches=step.launches,
        kernels=step.kernels,
        is_asked=info.capture_id is not None,
        cpu=host.cpu,
        governor=host.governor,
        num_cpus=host.num_cpus,
        num_allowed=host.num_allowed,
        cpu_limit=host.cpu_limit,
        throttled_ratio=host.throttled_ratio,
        runqueue_wait_ratio=host.runqueue_wait_ratio,
        reason=_reason(breakdown, step),
        predicted=tuple(
            Predicted(
                change=each.change.value,
                win_ratio=each.win_ratio,
                low_ratio=each.low_ratio,
                high_ratio=each.high_ratio,
                refused=each.refused,
            )
            for each in breakdown.forecasts
        ),
    )


def _tokens(info: StepInfo) -> int | None:
    """Return the tokens that a step computes, by which steps are put into buckets."""
    if info.work is not None:
        return info.work.queries
    known = [num for num in (info.batch.prompt_tokens, info.batch.output_tokens) if num is not None]
    return sum(known) if known else None


def _engine_ns(step: StepBreakdown) -> int | None:
    return None if step.iteration is None else sum(part.exposed_ns for part in step.iteration.engine.values())


def _reason(breakdown: Breakdown, step: StepBreakdown) -> str | None:
    reasons = [*breakdown.evidence.withheld.values(), *filter(None, [step.limit_reason])]
    return "; ".join(dict.fromkeys(reasons)) or None
