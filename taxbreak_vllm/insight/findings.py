"""All that is said of one recording, worked out when first asked for: what commands print and exporters are handed.

In: an open recording and the breakdown of it to be shown. Out: its chains of kernels, its advice, its timelines, its
stacks.
"""

from collections.abc import Sequence
from functools import cached_property

from taxbreak_vllm.insight.advice import advise
from taxbreak_vllm.insight.evidence import distrust
from taxbreak_vllm.model.advice import AdviceReport
from taxbreak_vllm.model.breakdown import Breakdown
from taxbreak_vllm.model.fusion import FusionReport
from taxbreak_vllm.model.stacks import HostStacks
from taxbreak_vllm.model.timeline import StepTimeline
from taxbreak_vllm.taxes.recording import Recording


class Findings:
    """A recording with what insight makes of it; usable while the recording is open."""

    def __init__(self, recording: Recording, breakdown: Breakdown | None = None) -> None:
        self.recording = recording
        self.breakdown = breakdown or recording.breakdown

    @cached_property
    def chains(self) -> FusionReport:
        """The kernels that always run one after another."""
        from taxbreak_vllm.insight.fusion import fusion  # what most commands need not load

        return fusion(self.recording)

    @cached_property
    def advice(self) -> AdviceReport:
        """What to change; chains and predictions are looked for only where anything can be advised."""
        doubt = distrust(self.breakdown)
        if doubt is not None and not doubt.is_untimed:
            return advise([self.breakdown])
        from taxbreak_vllm.insight.foreseen import foreseen

        return advise([foreseen(self.recording, self.breakdown, fusion=self.chains)], fusion=self.chains)

    @cached_property
    def stacks(self) -> HostStacks:
        """The ΔFT of the steps to be shown, or of the whole trace where that is all of them, frame by frame."""
        from taxbreak_vllm.insight.stacks import host_stacks

        shown, every = self.breakdown.steps, self.recording.breakdown.steps
        return host_stacks(self.recording, None if len(shown) == len(every) else [step.number or 0 for step in shown])

    def timelines(self, numbers: Sequence[int]) -> list[StepTimeline]:
        """The steps of these numbers, instant by instant."""
        from taxbreak_vllm.insight.segments import step_timelines

        return step_timelines(self.recording, numbers=numbers)
