"""What a rule may lean on: the steps of one phase, those recordings aside that cannot be trusted.

In: breakdowns, of a trace or of the captures of a window, and what else is known (chains of kernels, the machine). Out:
`Evidence` per phase, and why the rest was left out.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from taxbreak_vllm.insight.shares import Shares
from taxbreak_vllm.machine.limits import Machine
from taxbreak_vllm.model.advice import Advice, Component
from taxbreak_vllm.model.breakdown import Breakdown, Calibration, StepBreakdown
from taxbreak_vllm.model.evidence import MAX_UNREADABLE_RATIO, MIN_LINKED_RATIO
from taxbreak_vllm.model.step import GraphMode, Phase
from taxbreak_vllm.taxes.add import add_steps

if TYPE_CHECKING:
    from taxbreak_vllm.model.fusion import FusionReport

WORTH_RATIO = 0.10  # a smaller share of the step is not worth a restart

GRAPHS = frozenset({GraphMode.FULL, GraphMode.PIECEWISE})

_COMPILED = ("triton_", "compiledfxgraph", "torch-compiled", "inductor")


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """The steps of one phase. `total` is their sum, `doubt_ns` what recording may have added to it.

    On the CPU backend nothing runs beside the host, so all of its work is felt. ΔFT there has the profiler's cost per
    op taken off, so that only the unexplained rest is in doubt.
    """

    phase: Phase | None
    steps: tuple[StepBreakdown, ...]
    total: StepBreakdown
    shares: Shares
    doubt_ns: int
    device_type: str
    dtype: str
    between_ns: int | None = None
    fusion: "FusionReport | None" = None
    machine: Machine | None = None

    def weighs(self, amount_ns: int) -> bool:
        """Whether that much time is worth acting on even if all the profiler's time is in it."""
        plain_ns = self.total.device.window_ns - self.doubt_ns
        return plain_ns > 0 and (amount_ns - self.doubt_ns) / plain_ns >= WORTH_RATIO

    @property
    def is_doubtful(self) -> bool:
        """Whether the device waits long enough to act on, were it not for what the profiler may have added."""
        return self.host_ns >= WORTH_RATIO * self.total.device.window_ns and not self.weighs(self.host_ns)

    @property
    def framework_ns(self) -> int:
        """What the device waited for Python and op dispatch."""
        return (self.total.exposed.delta_ft_ns if self.is_gpu else self.total.taxes.delta_ft_ns) or 0

    @property
    def host_ns(self) -> int:
        """What the device waited for the host's Python, dispatch, library front-ends and launch calls."""
        exposed = self.total.exposed
        return self.framework_ns + (exposed.delta_ct_ns or 0) + (exposed.delta_kt_ns or 0)

    @property
    def has_graphs(self) -> bool:
        """Whether a step launched a graph: a plain launch makes one kernel."""
        return any(step.graph_mode in GRAPHS or step.kernels > (step.launches or step.kernels) for step in self.steps)

    @property
    def is_compiled(self) -> bool:
        """Whether an op or kernel of torch.compile ran."""
        names = (name.lower() for step in self.steps for row in step.top for name in (row.op, row.kernel))
        return any(mark in name for name in names for mark in _COMPILED)

    @property
    def is_gpu(self) -> bool:
        """Whether there is a launch path at all."""
        return self.device_type != "cpu"

    def per_step(self, value: float | None) -> float | None:
        """Return the mean over the steps."""
        return None if value is None else value / len(self.steps)

    def advise(
        self,
        rule: str,
        component: Component,
        amount_ns: int,
        *,
        finding: str,
        change: str,
        refuted_by: str,
        settings: tuple[str, ...] = (),
    ) -> Advice:
        """Put advice together whose win is bounded by `amount_ns` over all steps."""
        return Advice(
            rule=rule,
            component=component,
            phase=self.phase,
            finding=finding,
            change=change,
            settings=settings,
            at_most_ns=amount_ns // len(self.steps),
            at_most_ratio=amount_ns / self.total.device.window_ns,
            refuted_by=refuted_by,
        )

    def percent(self, amount_ns: int) -> str:
        """Say a time as a share of the steps."""
        return f"{amount_ns / self.total.device.window_ns:.0%}"


def with_plain_step(breakdown: Breakdown, plain_ns: int) -> Breakdown:
    """Calibrate a trace by the known duration of the step without a profiler; nothing is corrected, all is in doubt."""
    mean_ns = sum(step.window_ns for step in breakdown.steps) / len(breakdown.steps)
    dilation = mean_ns / plain_ns
    return replace(breakdown, calibration=Calibration(dilation=dilation, residual=dilation - 1, state="calibrated"))


def distrust(breakdown: Breakdown) -> str | None:
    """Say why nothing can be advised on a breakdown; None where it can."""
    coverage, calibration, withheld = breakdown.coverage, breakdown.calibration, breakdown.evidence.withheld
    if withheld:
        return f"coverage: {next(iter(withheld.values()))}"
    if coverage.kernels and coverage.linked < MIN_LINKED_RATIO * coverage.kernels:
        return (
            f"coverage: {coverage.unlinked / coverage.kernels:.0%} of the kernels have no launch event,"
            " so whose time they are is not known"
        )
    if coverage.dropped_events > MAX_UNREADABLE_RATIO * coverage.events:
        return f"coverage: {coverage.dropped_events / coverage.events:.0%} of the events are unreadable"
    if any(step.notes for step in breakdown.steps):
        return "coverage: " + next(note for step in breakdown.steps for note in step.notes)
    if not any(step.kernels for step in breakdown.steps):
        return "coverage: no device work was recorded"
    if calibration.state != "calibrated" or not calibration.dilation:
        return (
            "calibration: how much recording slowed this step is not known, and it slows the host most."
            " A capture of a server under load is calibrated; for a trace give the step's duration without a"
            " profiler (--plain-ms)"
        )
    return None


def by_phase(
    breakdowns: Sequence[Breakdown], fusion: "FusionReport | None", machine: Machine | None
) -> Iterable[Evidence]:
    parts: dict[Phase | None, list[tuple[Breakdown, StepBreakdown]]] = {}
    for breakdown in breakdowns:
        for step in breakdown.steps:
            if step.device.window_ns and step.phase is not Phase.IDLE:
                parts.setdefault(step.phase, []).append((breakdown, step))
    for phase, found in parts.items():
        steps = tuple(step for _, step in found)
        total = add_steps(steps)
        last = found[-1][0]
        yield Evidence(
            phase=phase,
            steps=steps,
            total=total,
            shares=Shares.of(total),
            doubt_ns=max(0, sum(_added_ns(breakdown, step) for breakdown, step in found)),
            device_type=last.source.device_type,
            dtype=last.source.dtype,
            between_ns=_between_ns(breakdowns, phase),
            fusion=fusion,
            machine=machine,
        )


def _added_ns(breakdown: Breakdown, step: StepBreakdown) -> int:
    """Return what the recorded step took beyond the plain one and nothing took off."""
    calibration = breakdown.calibration
    plain_ns = step.window_ns / (calibration.dilation or 1.0)
    if breakdown.source.device_type == "cpu" and calibration.residual is not None:
        return round(calibration.residual * plain_ns)
    return round(step.window_ns - plain_ns)


def _between_ns(breakdowns: Sequence[Breakdown], phase: Phase | None) -> int | None:
    """Return the time between the steps of traces that hold several; captures hold one each, so it is unknown there."""
    traces = [b for b in breakdowns if b.source.path and not b.source.server_id]  # others are sums of captures
    several = [b for b in traces if len(b.steps) > 1 and all(step.phase for step in b.steps)]
    if not several or phase is None:
        return None
    return sum(max(0, b.total.window_ns - sum(step.window_ns for step in b.steps)) for b in several)
