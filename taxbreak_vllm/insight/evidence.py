"""What a rule may lean on: the steps of one phase, those recordings aside that cannot be trusted.

In: breakdowns, of a trace or of the captures of a window, and what else is known (chains of kernels, the machine). Out:
`Evidence` per phase, and why the rest was left out.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from taxbreak_vllm.insight.plain import WORTH_RATIO, PlainTime, Spent
from taxbreak_vllm.insight.shares import Shares
from taxbreak_vllm.machine.limits import Machine
from taxbreak_vllm.model.advice import Component, Per
from taxbreak_vllm.model.breakdown import Breakdown, StepBreakdown
from taxbreak_vllm.model.calibration import POOR, Calibration, Grade
from taxbreak_vllm.model.evidence import MAX_UNREADABLE_RATIO, MIN_LINKED_RATIO
from taxbreak_vllm.model.forecast import Forecast
from taxbreak_vllm.model.step import GraphMode, Phase
from taxbreak_vllm.model.transition import Transition
from taxbreak_vllm.taxes.add import add_steps

if TYPE_CHECKING:
    from taxbreak_vllm.model.fusion import FusionReport

GRAPHS = frozenset({GraphMode.FULL, GraphMode.PIECEWISE})

# What torch.compile names: kernels, and what runs before a compiled graph, whose own region is an annotation.
_COMPILED = ("triton_", "compiledfxgraph", "torch-compiled", "inductor", "pregraph bytecode", "aotdispatcher runtime")

Amounts = Sequence[int]  # of each step, ns


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What a rule found in a phase: `amounts_ns` are what its change can win at most, in the recorded steps.

    It is worth acting on if `weighed_ns` is. `tokens` are those that a bound is divided among, where it is of a token;
    `iterations` are the steps with the time between them, where it is of those.
    """

    rule: str
    component: Component
    amounts_ns: Amounts
    weighed_ns: int
    finding: str
    change: str
    refuted_by: str
    settings: tuple[str, ...]
    spent: Spent = Spent.HOST
    tokens: int | None = None
    iterations: tuple[PlainTime, ...] | None = None

    @property
    def per(self) -> Per:
        """What its bound is of."""
        return Per.TOKEN if self.tokens else Per.ITERATION if self.iterations else Per.STEP


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """The steps of one phase: `total` is their sum, `plain` each of them without the profiler, `plain_total` that sum.

    `forecasts` are, for each step, those of the recording that it is of. `transition` is of all its recorded steps, of
    which these may be the newest only.

    On the CPU backend nothing runs beside the host, so all of its work is felt. ΔFT there has the profiler's cost per
    op taken off, so that only the unexplained rest is in doubt.
    """

    phase: Phase | None
    steps: tuple[StepBreakdown, ...]
    total: StepBreakdown
    shares: Shares
    plain: tuple[PlainTime, ...]
    plain_total: PlainTime
    device_type: str
    dtype: str
    between_ns: int | None = None
    fusion: "FusionReport | None" = None
    machine: Machine | None = None
    forecasts: tuple[tuple[Forecast, ...], ...] = ()
    transition: Transition | None = None

    @property
    def is_doubtful(self) -> bool:
        """Whether the device may wait long enough to act on, were it not for what the profiler may have added."""
        host_ns, plain = sum(self.host_ns), self.plain_total
        return plain.ratio(plain.at_most_ns(host_ns, Spent.HOST)) >= WORTH_RATIO and not plain.weighs(host_ns)

    @cached_property
    def framework_ns(self) -> Amounts:
        """What the device waited for Python and op dispatch."""
        return self.each(lambda step: (step.exposed if self.is_gpu else step.taxes).delta_ft_ns)

    @cached_property
    def host_ns(self) -> Amounts:
        """What the device waited for the host's Python, dispatch, library front-ends and launch calls."""
        others = self.each(lambda step: (step.exposed.delta_ct_ns or 0) + (step.exposed.delta_kt_ns or 0))
        return [sum(both) for both in zip(self.framework_ns, others, strict=True)]

    @cached_property
    def launched_ns(self) -> Amounts:
        """What the device waited for the host and then for the launch on its way, which one launch for many saves."""
        queued = self.each(lambda step: step.device.idle.queue_ns)
        return [sum(both) for both in zip(self.host_ns, queued, strict=True)]

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

    def each(self, amount_ns: Callable[[StepBreakdown], int | None]) -> Amounts:
        """Return an amount of every step, 0 where it is not known."""
        return [amount_ns(step) or 0 for step in self.steps]

    def per_step(self, value: float | None) -> float | None:
        """Return the mean over the steps."""
        return None if value is None else value / len(self.steps)

    def find(
        self,
        rule: str,
        component: Component,
        amounts_ns: Amounts,
        *,
        finding: str,
        change: str,
        refuted_by: str,
        settings: tuple[str, ...],
        weighed_ns: Amounts | None = None,
        spent: Spent = Spent.HOST,
        tokens: int | None = None,
        iterations: tuple[PlainTime, ...] | None = None,
    ) -> Finding:
        """Put together what a rule found."""
        return Finding(
            rule=rule,
            component=component,
            amounts_ns=amounts_ns,
            weighed_ns=sum(amounts_ns if weighed_ns is None else weighed_ns),
            finding=finding,
            change=change,
            refuted_by=refuted_by,
            settings=settings,
            spent=spent,
            tokens=tokens,
            iterations=iterations,
        )

    def is_worth(self, finding: Finding) -> bool:
        """Whether a finding is worth acting on; that a token could be cheaper is, where the host's time is."""
        spent = Spent.DEVICE if finding.spent is Spent.DEVICE else Spent.HOST
        return self.plain_total.weighs(finding.weighed_ns, spent)

    def percent(self, amounts_ns: Amounts, spent: Spent = Spent.HOST) -> str:
        """Say an amount as a share of the plain steps, a bound where it is no more than that."""
        plain = self.plain_total
        bound = "up to " if plain.doubt_ns and spent is Spent.HOST else ""
        return f"{bound}{plain.ratio(plain.at_most_ns(sum(amounts_ns), spent)):.0%}"


def with_plain_step(breakdown: Breakdown, plain_ns: int) -> Breakdown:
    """Calibrate a trace by the known duration of the step without a profiler; nothing is corrected, all is in doubt.

    A step lasts until its last work on the device has ended.
    """
    dilation = recorded_ns(breakdown.steps) / plain_ns
    known = Calibration(dilation=dilation, residual=dilation - 1, state="calibrated", plain_ns=plain_ns)
    return replace(breakdown, calibration=known, notes=(*breakdown.notes, *known.notes))


def recorded_ns(steps: Sequence[StepBreakdown]) -> float:
    """Return how long recorded steps took on average, with the work of the device that came of them."""
    return sum(step.device.window_ns for step in steps) / len(steps)


class Doubt(NamedTuple):
    """Why nothing can be advised on a recording: in general, and with its own figures."""

    kind: str
    words: str
    is_untimed: bool = False
    is_poor: bool = False


def distrust(breakdown: Breakdown) -> Doubt | None:
    """Say why nothing can be advised on a breakdown; None where it can."""
    coverage, calibration, withheld = breakdown.coverage, breakdown.calibration, breakdown.evidence.withheld
    if withheld:
        return _doubt(f"coverage: {next(iter(withheld.values()))}")
    if coverage.kernels and coverage.linked < MIN_LINKED_RATIO * coverage.kernels:
        return _doubt(
            f"coverage: {coverage.unlinked / coverage.kernels:.0%} of the kernels have no launch event,"
            f" so whose time they are is not known{_at_most_idle(breakdown)}"
        )
    if coverage.dropped_events > MAX_UNREADABLE_RATIO * coverage.events:
        return _doubt(f"coverage: {coverage.dropped_events / coverage.events:.0%} of the events are unreadable")
    if any(step.notes for step in breakdown.steps):
        return _doubt("coverage: " + next(note for step in breakdown.steps for note in step.notes))
    if not any(step.kernels for step in breakdown.steps):
        return _doubt("coverage: no device work was recorded")
    if calibration.grade is None:
        return UNTIMED
    if calibration.grade is Grade.POOR:
        return _poor(calibration)
    return None


UNTIMED = Doubt(
    *2 * ("calibration: how long this step takes without a profiler is not known, and recording slows the host most",),
    is_untimed=True,
)


def _at_most_idle(breakdown: Breakdown) -> str:
    """Say what holds whosever time it is."""
    device = breakdown.total.device
    if device.idle_ns is None or not device.window_ns:
        return ""
    return f"; no change to the host can win more than the device's idle time, {device.idle_ns / device.window_ns:.0%}"


def _doubt(words: str) -> Doubt:
    return Doubt(words, words)


def _poor(calibration: Calibration) -> Doubt:
    dilation, residual = calibration.dilation or 0.0, calibration.residual or 0.0
    took = f"it took {dilation:.2f}× as long" if dilation >= 1 else f"it took only {dilation:.2f}× as long"
    why = f"{residual:+.0%} unexplained" if residual > 0 else f"{residual:+.0%}: those were other steps"
    return Doubt(POOR, f"{POOR}: {took}, {why}", is_poor=True)


def most_are_poor(doubts: Iterable[Doubt | None]) -> bool:
    """Whether the well calibrated recordings among these are the exceptions."""
    graded = [doubt is not None for doubt in doubts if doubt is None or doubt.is_poor]
    return sum(graded) > len(graded) / 2


def by_phase(
    breakdowns: Sequence[Breakdown],
    fusion: "FusionReport | None",
    machine: Machine | None,
    transitions: Iterable[Transition] = (),
) -> Iterable[Evidence]:
    """Put the steps of each phase together; what has no calibration is taken as it was recorded."""
    parts: dict[Phase | None, list[tuple[Breakdown, StepBreakdown]]] = {}
    for breakdown in breakdowns:
        for step in breakdown.steps:
            if step.device.window_ns and step.phase is not Phase.IDLE:
                parts.setdefault(step.phase, []).append((breakdown, step))
    between_ns = _between_ns(breakdowns)
    turns = {one.phase: one for one in transitions}
    num_steps = sum(map(len, parts.values()))
    for phase, found in parts.items():
        steps = tuple(step for _, step in found)
        total = add_steps(steps)
        plain = tuple(_plain(breakdown, step) for breakdown, step in found)
        last = found[-1][0]
        yield Evidence(
            phase=phase,
            steps=steps,
            total=total,
            shares=Shares.of(total),
            plain=plain,
            plain_total=PlainTime.sum(plain),
            device_type=last.source.device_type,
            dtype=last.source.dtype,
            between_ns=None if between_ns is None or phase is None else between_ns * len(found) // num_steps,
            fusion=fusion,
            machine=machine,
            forecasts=tuple(tuple(f for f in b.forecasts if f.phase == phase) for b, _ in found),
            transition=turns.get(phase),
        )


def _plain(breakdown: Breakdown, step: StepBreakdown) -> PlainTime:
    """Take off a step what it took beyond the plain one; in doubt is what of that nothing took off its taxes."""
    calibration, is_cpu = breakdown.calibration, breakdown.source.device_type == "cpu"
    dilation = calibration.dilation or 1.0
    is_alone = calibration.plain_ns is not None and len(breakdown.steps) == 1
    plain_ns = calibration.plain_ns if is_alone and calibration.plain_ns else round(step.device.window_ns / dilation)
    added_ns = round((dilation - 1) * plain_ns)
    doubt_ns = round(calibration.residual * plain_ns) if is_cpu and calibration.residual is not None else added_ns
    device = step.device
    return PlainTime(
        window_ns=device.window_ns - added_ns,
        step_ns=plain_ns,
        active_ns=0 if is_cpu else device.active_ns + device.other_active_ns,
        doubt_ns=doubt_ns,
    )


def _between_ns(breakdowns: Sequence[Breakdown]) -> int | None:
    """Return the time between the steps of traces that hold several; captures hold one each, so it is unknown there."""
    traces = [b for b in breakdowns if b.source.path and not b.source.server_id]  # others are sums of captures
    several = [b for b in traces if len(b.steps) > 1 and all(step.phase for step in b.steps)]
    if not several:
        return None
    return sum(max(0, b.total.window_ns - sum(step.window_ns for step in b.steps)) for b in several)
