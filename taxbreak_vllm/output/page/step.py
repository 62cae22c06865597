"""The page of one recorded step, under an address that stays: what it was, its balance, its instants.

In: the step's breakdown, when it was, and where all steps of its server are. Out: `Article`.
"""

from collections.abc import Iterator
from datetime import UTC, datetime

from taxbreak_vllm.limit.phases import by_phase
from taxbreak_vllm.model.breakdown import Breakdown, StepBreakdown
from taxbreak_vllm.model.step import Batch
from taxbreak_vllm.output.page.limit import limits_view
from taxbreak_vllm.output.page.view import (
    Article,
    StepView,
    calibration_words,
    coverage_words,
    facts_of,
    once,
    phase_view,
)
from taxbreak_vllm.output.words import duration, one


def step_article(
    breakdown: Breakdown, *, step_id: str, started_unix_ns: int, all_steps: str, has_trace: bool
) -> Article:
    """Show a step; its raw trace is linked to while the spool has it."""
    (step,) = breakdown.steps
    of_api = f"v1/taxbreak/steps/{step_id}"
    links = [("all steps", f"{all_steps}#a0-steps"), ("breakdown (JSON)", of_api)]
    if has_trace:
        links[1:1] = [
            ("raw trace", f"{of_api}/trace"),
            ("pprof", f"{of_api}/profile"),
            ("speedscope", f"{of_api}/profile?format=speedscope"),
        ]
    at = datetime.fromtimestamp(started_unix_ns / 1e9, UTC)
    return Article(
        title=f"{step.phase} step" if step.phase else "a step",
        facts=(f"{at:%Y-%m-%d %H:%M:%S} UTC", *size_words(step.batch), *_place(breakdown, step), *facts_of(breakdown)),
        advice=None,
        phases=(phase_view(step.phase, 1, step),),
        total=step,
        steps=(),
        num_steps=1,
        history=(),
        history_is_time=True,
        calibration=tuple(calibration_words(breakdown.calibration)),
        coverage=tuple(coverage_words(breakdown.coverage)),
        notes=once((*breakdown.notes, *step.notes)),
        limits=limits_view(by_phase(breakdown.steps)),
        step=StepView(step_id=step_id, lead=_lead(step), links=tuple(links)),
    )


def size_words(batch: Batch) -> Iterator[str]:
    """Say how large a step was, as far as it is known."""
    if batch.requests is not None:
        yield f"{batch.requests:,} request{'' if batch.requests == 1 else 's'}"
    for num, word in ((batch.prompt_tokens, "prompt"), (batch.output_tokens, "output"), (batch.draft_tokens, "draft")):
        if num:
            yield f"{num:,} {word} token{'' if num == 1 else 's'}"


def _lead(step: StepBreakdown) -> str:
    waited = step.device.idle.host_ns
    of_it = "how much of it the device waited is not known" if waited is None else ""
    if waited is not None:
        of_it = f"for {duration(waited)} of it the device waited for the host"
    return f"This {step.phase or 'step'} took {duration(step.window_ns)} while it was recorded; {of_it}."


def _place(breakdown: Breakdown, step: StepBreakdown) -> Iterator[str]:
    source = breakdown.source
    if step.graph_mode is not None:
        yield "op by op" if step.graph_mode == "none" else f"{one(step.graph_mode)} graph"
    if source.server_id:
        yield f"server {source.server_id}"
    if source.rank is not None:
        yield f"engine {source.engine}, rank {source.rank}"
