"""One recording from its opening to its closing: the step before the sample, the sample, the start of the one after.

Under asynchronous output the device works behind its host, so that a step alone does not tell what it did meanwhile.
What it was still doing when the sample began is in the recording where that began a step earlier; what the sample left
it with is there as well, since closing waits for it. So the step after is not recorded: it is enough when it began.
"""

from dataclasses import dataclass, field

from taxbreak_vllm.model.shape import StepWork
from taxbreak_vllm.model.step import Server, StepInfo
from taxbreak_vllm.serving.chosen_experts import ChosenExperts
from taxbreak_vllm.serving.graph_mode import GraphModeNote
from taxbreak_vllm.serving.sampling.kinds import StepKind
from taxbreak_vllm.serving.sampling.sampler import Sample
from taxbreak_vllm.serving.sampling.stalls import Detail
from taxbreak_vllm.serving.steps import Work
from taxbreak_vllm.serving.tokens import SampledTokens

MAX_BEFORE = 8  # steps before the sample: of these one is needed, and a request may wait for a phase
MAX_WAIT_NS = 100_000_000  # between two steps; beyond it the server had no work


@dataclass(slots=True)
class Step:
    """The sample. Once it `has_ended` only the start of the next step is waited for."""

    index: int
    work: Work
    drafted: tuple[str, ...]
    started_unix_ns: int
    graph_mode: GraphModeNote | None
    sums: StepWork | None = None
    experts: ChosenExperts | None = None
    tokens: SampledTokens = field(default_factory=SampledTokens)
    has_ended: bool = False


@dataclass(slots=True)
class Bracket:
    """An open recording, on the thread that must close it.

    `step` is None while steps before the sample are recorded; `picked` is the kind it was opened for, `kind` and
    `window_ns` are of the step recorded last, `overhead_ns` is what recording took besides dilation.
    """

    sample: Sample
    detail: Detail
    picked: StepKind
    kind: StepKind
    thread: int
    num_before: int = 0
    step: Step | None = None
    window_ns: int = 0
    overhead_ns: int = 0

    def added_ns(self, iteration_ns: int | None) -> int:
        """Return what recording added to the last step; without a plain one to compare with all may be dilation.

        `iteration_ns` is given where the server works ahead: a step's own time is that of enqueueing there.
        """
        if iteration_ns is not None:
            return max(0, iteration_ns - (self.kind.iterations.median()[0] or 0))
        return max(0, self.window_ns - (self.kind.median()[0] or 0))

    def describe(
        self, step: Step, server: Server, *, step_id: str, iteration_ns: int | None, op_cost_ns: int | None
    ) -> StepInfo:
        """Return what is known of the sample once its recording is closed."""
        plain_window_ns, num_plain = self.kind.median()
        return StepInfo(
            step_id=step_id,
            step_index=step.index,
            server=server,
            phase=step.work.phase,
            batch=step.work.batch(),
            graph_mode=(step.graph_mode and step.graph_mode.mode) or self.kind.graph_mode,
            started_unix_ns=step.started_unix_ns,
            window_ns=self.window_ns,
            plain_window_ns=plain_window_ns,
            num_plain=num_plain,
            overhead_ns=self.overhead_ns,
            op_cost_ns=op_cost_ns,
            async_output=step.tokens.is_async,
            capture_id=self.sample.capture_id,
            num_bracketed=1 + (self.num_before > 0) + (iteration_ns is not None),
            iteration_ns=iteration_ns,
            plain_iteration_ns=self.kind.iterations.median()[0],
            work=step.sums,
        )
