"""The one place that decides which figures a recording is enough for (methodology section 13).

In: counts of what was lost, set aside or not understood, of each step and of the trace. Out: `Evidence` with the reason
for each figure withheld, breakdowns without those figures, and the notes that say so.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from taxbreak_vllm.model.breakdown import ExposedTax, IdleTime, StepBreakdown, Taxes
from taxbreak_vllm.model.evidence import Evidence, Figure
from taxbreak_vllm.taxes.measured import Measured
from taxbreak_vllm.trace.dispatches import Bool
from taxbreak_vllm.trace.events import Events
from taxbreak_vllm.trace.intervals import Index, Int64
from taxbreak_vllm.trace.survey import TraceSurvey

# A sum lacks what was lost, and taxes and idle time are sums.
MAX_LOST_RATIO = 0.05  # of the launches, or of the nodes of replayed graphs
# Any trace cut from a running server has kernels that were launched before it began. Where a quarter of the taxes is
# missing beside the kernels they belong to, HDBI is off by 0.07 at most.
MAX_UNLINKED_RATIO = 0.25  # of the kernels

# An empty kernel starts 3 to 10 µs after its launch, on slow hosts 30; where none was faster than this, the launches
# had to load their code first (a cold process takes ms) or waited for something that was not recorded.
MAX_FLOOR_NS = 100_000

MIN_OVERHEAD_RATIO = 0.01  # of the trace: less of the profiler's own work is not worth a word


def is_floor(quickest_ns: int | None) -> bool:
    """Whether a trace's quickest launches can stand for T_sys."""
    return quickest_ns is not None and quickest_ns <= MAX_FLOOR_NS


@dataclass(frozen=True, slots=True)
class Losses:
    """What each group (a step, or a trace) lacks, int64[groups]; the names are those of `Evidence`."""

    unanswered: Int64
    lost_graphs: Int64
    kernels: Int64
    unlinked: Int64
    poor_replays: Int64
    missing_nodes: Int64
    misplaced: Int64

    @classmethod
    def of(cls, m: Measured, group: Index, owner: Index, unanswered: Index, lost: Index, count: int) -> "Losses":
        """Count by group: `group` has that of each dispatch, `owner` of each activity, the others of lost launches."""
        a = m.activities
        is_kernel = a.is_kernel & (owner >= 0)
        missing = _missing_nodes(m)
        is_poor = (missing > 0) & (group >= 0)
        nodes = np.zeros(count, dtype=np.int64)
        np.add.at(nodes, group[is_poor], missing[is_poor])
        return cls(
            unanswered=_count(unanswered, count),
            lost_graphs=_count(lost, count),
            kernels=np.bincount(owner[is_kernel], minlength=count),
            unlinked=np.bincount(owner[is_kernel & (a.dispatch < 0)], minlength=count),
            poor_replays=np.bincount(group[is_poor], minlength=count),
            missing_nodes=nodes,
            misplaced=_count(owner[_is_before_launch(m) & (owner >= 0)], count),
        )

    def plus(self, other: "Losses") -> "Losses":
        """Add group by group."""
        return Losses(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(Losses)))

    def evidence(self, index: int, launches: int | None) -> Evidence:
        """Return what one group stands on."""
        return Evidence(
            launches=launches or 0,
            unanswered=int(self.unanswered[index]),
            lost_graphs=int(self.lost_graphs[index]),
            kernels=int(self.kernels[index]),
            unlinked=int(self.unlinked[index]),
            poor_replays=int(self.poor_replays[index]),
            missing_nodes=int(self.missing_nodes[index]),
            misplaced=int(self.misplaced[index]),
        )


def _missing_nodes(m: Measured) -> Int64:
    known = m.events.oddities.missing_nodes
    missing = np.zeros(len(m.dispatches), dtype=np.int64)
    if known:
        of_graphs = np.flatnonzero(m.dispatches.is_graph)
        ids = m.events.correlation[m.dispatches.row[of_graphs]].tolist()
        missing[of_graphs] = [known.get(number, 0) for number in ids]
    return missing


def _is_before_launch(m: Measured) -> Bool:
    a, d = m.activities, m.dispatches
    return (a.dispatch >= 0) & (a.start_ns < d.launch_ns[a.dispatch]) if len(d) else np.zeros(len(a.row), dtype=bool)


def _count(group: Index, count: int) -> Int64:
    return np.bincount(group[group >= 0], minlength=count)


def judged(evidence: Evidence, *, has_launches: bool) -> Evidence:
    """Decide which figures are withheld, and why; a reason stands for itself, whatever it is read beside."""
    withheld: dict[Figure, str] = {}
    for figures, reason in _reasons(evidence, has_launches=has_launches):
        for figure in figures:
            withheld.setdefault(figure, reason)
    return replace(evidence, withheld=withheld)


def _reasons(e: Evidence, *, has_launches: bool) -> Iterable[tuple[tuple[Figure, ...], str]]:
    if not has_launches:
        return
    if e.lost_graphs:
        yield (
            (Figure.HDBI, Figure.IDLE, Figure.CAUSES),
            f"{e.lost_graphs} graph launches left no recorded node (profiler buffer overflow?): "
            "device time is incomplete, so HDBI is null",
        )
    launches = e.launches + e.unanswered
    if e.unanswered > MAX_LOST_RATIO * launches:
        yield (
            tuple(Figure),
            f"{e.unanswered} of {launches} launches left no activity: taxes and device time are incomplete, "
            "so they and HDBI are null",
        )
    if e.missing_nodes > MAX_LOST_RATIO * (e.kernels + e.missing_nodes):
        yield (
            (Figure.HDBI, Figure.IDLE, Figure.CAUSES),
            f"{poor_replays(e)}: device time is incomplete, so HDBI is null",
        )
    if e.unlinked > MAX_UNLINKED_RATIO * e.kernels:
        yield (
            (Figure.HDBI,),
            f"{e.unlinked} of {e.kernels} kernels have no launch event: their device time is known and their taxes "
            "are not, so HDBI is null",
        )


def evidence_of(own: Evidence, head: Events, survey: TraceSurvey, steps: Sequence[StepBreakdown]) -> Evidence:
    """Add to the counts of a trace's columns (`own`) what is known of its file and its steps."""
    odd = head.oddities
    in_steps = sum(step.launches or 0 for step in steps)
    return replace(
        own,
        out_of_range=odd.out_of_range,
        clipped=odd.clipped,
        set_aside=odd.names,
        outside_steps=own.launches - in_steps if survey.windows and in_steps and not survey.is_live else 0,
        folded_steps=survey.num_folded,
        processes=len(survey.processes),
        overhead_ns=odd.overhead_ns,
        unread={} if survey.num_activities else odd.unread,
    )


def joined(processes: int, so: str) -> str:
    """Say what follows from a file of several processes, and the way out."""
    return (
        f"{processes} processes launched work in this file and ids begin anew in each, so {so}: "
        f"choose one with --rank 0 to {processes - 1}"
    )


def spoiled_by(evidence: Evidence, activities: int, *, has_launches: bool) -> dict[Figure, str]:
    """Return what is withheld of every step of a file, and why; empty where each can be judged by itself."""
    if evidence.processes > 1:
        return dict.fromkeys(Figure, joined(evidence.processes, "taxes, idle time and HDBI are null"))
    if not has_launches or evidence.launches:
        return {}
    if activities:
        what = f"none of {activities} device activities could be joined to a launch"
    elif evidence.unread:
        counts = ", ".join(f"{count} {category or 'without one'}" for category, count in evidence.unread.items())
        what = f"the device's half is missing: events of these categories are not understood: {counts}"
    elif evidence.unanswered:
        what = f"the device's half is missing: {evidence.unanswered} launches left no activity"
    else:
        what = "the device's half is missing: no activity of it was recorded"
    reason = f"{what}, so taxes, TKLQT and HDBI are null"
    figures = [figure for figure in Figure if not (activities and figure is Figure.IDLE)]
    return dict.fromkeys(figures, reason)


def without(step: StepBreakdown, evidence: Evidence) -> StepBreakdown:
    """Leave of a step what its evidence is enough for, and say why the rest is gone."""
    withheld = evidence.withheld
    if not withheld:
        return step
    if Figure.TAXES in withheld:
        step = replace(step, taxes=Taxes(), tklqt_ns=None, tklqt_per_kernel_ns=None)
    if Figure.IDLE in withheld:
        step = replace(step, device=replace(step.device, idle_ns=None))
    if Figure.CAUSES in withheld:
        device = replace(step.device, idle=IdleTime.unknown())
        step = replace(step, device=device, exposed=ExposedTax.unknown(), iteration=None)
    if Figure.HDBI in withheld:
        step = replace(step, hdbi=None)
    return replace(step, notes=tuple(dict.fromkeys((*step.notes, *withheld.values()))))


def _named(e: Evidence) -> str:
    return f" ({', '.join(e.set_aside)})" if e.set_aside else ""


def poor_replays(e: Evidence) -> str:
    return f"{e.missing_nodes} graph nodes that other replays of the same graph have are missing in {e.poor_replays}"


def notes_on(e: Evidence, window_ns: int) -> Iterable[str]:
    """Say what was withheld of the trace as a whole, and what was set aside without harm."""
    yield from dict.fromkeys(e.withheld.values())
    if e.out_of_range:
        yield f"records set aside because they lie far from all others in time: {e.out_of_range}{_named(e)}"
    if e.clipped:
        what = "device records cut where the next of their stream begins, having run over it and others"
        yield f"{what}: {e.clipped}{_named(e)}"
    if e.missing_nodes and Figure.HDBI not in e.withheld:
        yield poor_replays(e)
    if e.unanswered and Figure.TAXES not in e.withheld:
        yield f"{e.unanswered} of {e.launches + e.unanswered} launches left no activity: nothing of theirs is counted"
    if e.misplaced:
        yield f"{e.misplaced} activities begin before their own launch: TKLQT takes them to have begun with it"
    if e.unlinked and Figure.HDBI not in e.withheld:
        yield f"{e.unlinked} of {e.kernels} kernels have no launch event: no tax of theirs is in HDBI"
    if e.outside_steps:
        yield (
            f"{e.outside_steps} of {e.launches} launches lie outside all steps: they are in the total and in no step"
        )
    if e.folded_steps:
        yield f"steps that ran beside another on a second thread, and count as part of that one: {e.folded_steps}"
    if e.overhead_ns > MIN_OVERHEAD_RATIO * window_ns > 0:
        yield (
            f"the profiler's own work took {e.overhead_ns / 1e6:.2f} ms of {window_ns / 1e6:.2f} ms, "
            "and it is in whatever it interrupted"
        )
