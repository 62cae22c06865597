"""What the page is handed of a step's kernels: beside the names a profiler gave them, what a person calls them.

In: chains and timelines of `insight`. Out: the same, with `words`.
"""

from dataclasses import dataclass, fields

from taxbreak_vllm.model.fusion import FusionReport
from taxbreak_vllm.model.timeline import StepTimeline
from taxbreak_vllm.output.kernel_names import kernel_name


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedChains(FusionReport):
    """Chains of kernels; `words` has a short name for each kernel of them."""

    words: dict[str, str]

    @classmethod
    def of(cls, report: FusionReport) -> "NamedChains":
        """Add the words to a report."""
        kernels = dict.fromkeys(name for chain in report.chains for name in chain.kernels)
        members = {field.name: getattr(report, field.name) for field in fields(report)}
        return cls(**members, words={name: kernel_name(name) for name in kernels})


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedTimeline(StepTimeline):
    """A step instant by instant; `words[i]` is short for `names[i]`, the same for what is no kernel."""

    words: tuple[str, ...]

    @classmethod
    def of(cls, timeline: StepTimeline) -> "NamedTimeline":
        """Add the words to a timeline."""
        kernels = {name for lane in timeline.lanes if lane.title.startswith("kernels") for name in lane.name}
        words = (kernel_name(name) if place in kernels else name for place, name in enumerate(timeline.names))
        members = {field.name: getattr(timeline, field.name) for field in fields(timeline)}
        return cls(**members, words=tuple(words))
