"""What the page shows, before it is markup: figures of the model and of insight, chosen and put into words.

In: breakdowns and what insight made of them. Out: `Article`, one per breakdown. No figure is computed here.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from taxbreak_vllm.insight.host_work import HostWork, host_work
from taxbreak_vllm.insight.shares import Shares
from taxbreak_vllm.model.breakdown import Breakdown, Calibration, Coverage, StepBreakdown, Taxes
from taxbreak_vllm.model.server import HdbiServer
from taxbreak_vllm.model.step import Phase
from taxbreak_vllm.model.transition import Transition
from taxbreak_vllm.output.page.advice import AdviceView
from taxbreak_vllm.output.page.limit import LimitsView
from taxbreak_vllm.output.page.server import Part, RequestsView, SecondView

if TYPE_CHECKING:  # they read traces, which the sidecar's own process never does
    from taxbreak_vllm.model.stacks import HostStacks
    from taxbreak_vllm.output.page.named import NamedChains, NamedTimeline

WORK_WORDS = {
    "all": "all",
    "python": "Python, op dispatch",
    "library": "vendor library",
    "launch": "launch calls",
    "runtime": "other runtime calls",
}
_FIGURE = re.compile(r"\d[\d.,]*")
MAX_POINTS = 600  # steps drawn over time
MAX_CHAINS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One step in the history: `at` is unix time in seconds, or the number of the step."""

    at: float
    name: str
    phase: str
    hdbi: float | None
    delta_ft_ns: int | None
    delta_ct_ns: int | None
    delta_kt_ns: int | None
    window_ns: int
    exposed_ns: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseView:
    """The steps of one phase: their sum, shown per step."""

    name: str
    num_steps: int
    total: StepBreakdown
    shares: Shares
    work: Mapping[str, HostWork]

    @property
    def taxes(self) -> Taxes:
        """The sums."""
        return self.total.taxes

    @property
    def work_parts(self) -> Iterator[Part]:
        """Yield the bar of the host's work: of each layer what the device waited for, then what was hidden."""
        for layer, one in self.work.items():
            if layer != "all":
                words = WORK_WORDS[layer]
                yield layer, f"{words}, the device waited", one.work_ns - one.hidden_ns
                yield f"{layer} pale", f"{words}, hidden behind a busy device", one.hidden_ns


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLine:
    """One row of the list of steps."""

    name: str
    phase: str
    graph_mode: str
    window_ns: int
    hdbi: float | None
    exposed_ns: int | None
    active_ns: int
    href: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLine:
    """One worker that writes, or once wrote, into the spool."""

    server_id: str
    rank: int
    model_name: str
    state: str
    num_steps: int
    num_samples: int
    num_dropped: int
    overhead_ratio: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLink:
    """One server that may be looked at, and its page."""

    model_name: str
    server_id: str
    href: str
    is_live: bool
    is_chosen: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Live:
    """What only the page of a server has; `lead` is its first sentence, `choice` all servers if there are several.

    `remedy` is what to try first, empty where nothing is advised; `capture` the command that records its next steps.
    `has_key`: one is asked for, so one can log out. `why_read_only` is empty where steps may be recorded from it.
    """

    lead: str
    hdbi_server: HdbiServer
    seconds: tuple[SecondView, ...]
    requests: RequestsView
    window_s: int = 0
    has_key: bool = False
    why_read_only: str = ""
    remedy: str = ""
    server_id: str = ""
    choice: tuple[ServerLink, ...] = ()
    workers: tuple[WorkerLine, ...] = ()
    worker_notes: tuple[str, ...] = ()
    spool: str = ""
    capture: str = ""
    is_running: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StepView:
    """What only the page of one recorded step has: its first sentence, and where to go from it (words, address)."""

    step_id: str
    lead: str
    links: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Article:
    """One breakdown as the page shows it. `history_is_time`: the points stand at unix times.

    `verdict` is the first sentence where there is neither `live` nor `step`.
    """

    title: str
    facts: tuple[str, ...]
    advice: AdviceView | None
    phases: tuple[PhaseView, ...]
    total: StepBreakdown
    steps: tuple[StepLine, ...]
    num_steps: int
    history: tuple[Point, ...]
    history_is_time: bool
    calibration: tuple[str, ...]
    coverage: tuple[str, ...]
    notes: tuple[str, ...]
    timelines: "tuple[NamedTimeline, ...]" = ()
    fusion: "NamedChains | None" = None
    stacks: "HostStacks | None" = None
    transitions: tuple[Transition, ...] = ()
    live: Live | None = None
    step: StepView | None = None
    verdict: str = ""
    limits: LimitsView = field(default_factory=LimitsView)

    @property
    def lead(self) -> str:
        """Return the first sentence, empty where nothing can be said."""
        part = self.live or self.step
        return self.verdict if part is None else part.lead

    @property
    def layers(self) -> tuple[tuple[str, str], ...]:
        """Return the layers of host work that any phase has, and what they are called."""
        seen = {layer for phase in self.phases for layer, one in phase.work.items() if one.work_ns}
        return tuple((layer, words) for layer, words in WORK_WORDS.items() if layer in {"all", *seen})

    @property
    def is_empty(self) -> bool:
        """Whether a running sidecar has no recorded step to show."""
        return self.live is not None and not self.num_steps

    @property
    def is_served(self) -> bool:
        """Whether there is an API to ask for the instants of a step."""
        return self.live is not None or self.step is not None


def facts_of(breakdown: Breakdown) -> tuple[str, ...]:
    """Name model, device and versions, as far as they are known."""
    source = breakdown.source
    facts = [source.model_name, source.dtype, source.device_name or source.device_type]
    facts += [f"{name} {version}" for name, version in (("torch", source.torch), ("vLLM", source.vllm)) if version]
    return tuple(fact for fact in (*facts, f"{breakdown.attribution} attribution") if fact)


def points_of(steps: Sequence[StepBreakdown]) -> Iterator[Point]:
    """Put the steps of a trace one after the other."""
    for number, step in enumerate(steps[:MAX_POINTS]):
        yield Point(
            at=number,
            name=step.name or str(number),
            phase=step.phase or "step",
            hdbi=step.hdbi,
            delta_ft_ns=step.taxes.delta_ft_ns,
            delta_ct_ns=step.taxes.delta_ct_ns,
            delta_kt_ns=step.taxes.delta_kt_ns,
            window_ns=step.window_ns,
            exposed_ns=step.device.idle.host_ns,
        )


def lines_of(steps: Iterable[StepBreakdown]) -> Iterator[StepLine]:
    """List the steps of a trace."""
    for step in steps:
        yield StepLine(
            name=step.name or "the whole trace",
            phase=step.phase or "–",
            graph_mode=step.graph_mode or "–",
            window_ns=step.window_ns,
            hdbi=step.hdbi,
            exposed_ns=step.device.idle.host_ns,
            active_ns=step.device.active_ns,
        )


def once(notes: Iterable[str]) -> tuple[str, ...]:
    """Keep the first of the notes that differ in their figures alone, with how many there are."""
    kinds: dict[str, list[str]] = {}
    for note in notes:
        kinds.setdefault(_FIGURE.sub("0", note), []).append(note)
    return tuple(same[0] if len(same) == 1 else f"{same[0]} ({len(same)} such notes)" for same in kinds.values())


def phase_view(phase: Phase | None, num_steps: int, total: StepBreakdown) -> PhaseView:
    """Show a sum of steps."""
    return PhaseView(
        name=phase or "all steps",
        num_steps=num_steps,
        total=total,
        shares=Shares.of(total),
        work={one.layer: one for one in host_work(total)},
    )


def calibration_words(calibration: Calibration) -> Iterator[str]:
    """Say what recording did to the steps, and how far that is known."""
    if calibration.dilation is None:
        yield (
            "Uncalibrated: no plain step was timed beside these, so how much recording slowed them is not known."
            " It slows the host, hardly the device: read ΔFT and exposed time as upper bounds."
        )
        return
    yield f"Recording made a step {calibration.dilation:.2f}× as long as the plain steps around it (median)."
    if calibration.state != "calibrated" and calibration.residual is not None:
        yield "Not every step is calibrated: beside some, too few plain steps were timed to correct anything."
    elif calibration.state != "calibrated":
        yield "Uncalibrated: too few plain steps were timed beside them, so nothing is corrected."
    elif calibration.op_cost_ns is not None:
        yield f"The profiler's own {calibration.op_cost_ns:,} ns an op are taken off ΔFT."
    if calibration.residual is not None:
        yield f"{calibration.residual:+.0%} of a plain step remains unexplained where it was corrected."


def coverage_words(coverage: Coverage) -> Iterator[str]:
    """Say what was read, joined and lost."""
    yield f"{coverage.linked:,} of {coverage.kernels:,} kernels are joined to the launch that made them."
    if coverage.unlinked:
        yield f"{coverage.unlinked:,} have no launch event: their time is the device's, but nobody's on the host."
    if coverage.graph_launches:
        yield f"{coverage.graph_launches:,} of {coverage.kernel_launches:,} kernel launches replayed a CUDA graph."
    if coverage.launches_without_activity:
        yield f"{coverage.launches_without_activity:,} launches left nothing on the device that was recorded."
    unreadable = f"{coverage.dropped_events:,} of them unreadable" if coverage.dropped_events else "all readable"
    yield f"{coverage.events:,} events were read, {unreadable}."
    for tier, share in coverage.replay.items():
        words = {
            "replayed": "of the orchestration time stands on isolated replay",
            "family": "stands on the median of replayed kernels of the same family",
            "trace": "of the orchestration time stands on estimates from the trace itself",
            "floor": "has no op to replay and stands on the launch floor alone",
        }
        yield f"{share:.0%} {words[tier]}."
