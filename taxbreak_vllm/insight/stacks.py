"""ΔFT as stacks: the phase of the step, the Python functions where they were recorded, and the ops down to the leaf.

In: a recording. Out: `HostStacks`, whose frames sum to the ΔFT of the breakdown, and those exposed to the exposed ΔFT,
to the nanosecond. `stretches` are cut where a class or a frame begins; what the profiler's own cost takes off a ΔFT is
taken off its stretches in proportion.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from taxbreak_vllm.insight.stretches import ChosenSteps, Stretches, joined
from taxbreak_vllm.model.evidence import Figure
from taxbreak_vllm.model.stacks import KINDS, FrameKind, HostStacks
from taxbreak_vllm.taxes.measured import Measured
from taxbreak_vllm.taxes.recording import Recording
from taxbreak_vllm.trace.intervals import Index, Int64
from taxbreak_vllm.trace.nesting import TOP, Nesting, nest
from taxbreak_vllm.trace.timeline import HostClass

_PYTHON, _DISPATCH = "[python]", "[dispatch]"  # outside every frame


def host_stacks(recording: Recording, numbers: Sequence[int] | None = None) -> HostStacks:
    """Return the ΔFT of steps, by their numbers from 0 on, as stacks; by default that of the whole trace.

    Python functions are in it where the recording was opened `with_frames`. Raises TraceFormatError where there is
    nothing to decompose.
    """
    breakdown = recording.breakdown
    if numbers is None and recording.survey.is_live and len(breakdown.steps) == 1:
        numbers = (0,)  # its total is that of the step
    wanted = [breakdown.total] if numbers is None else [breakdown.steps[number] for number in numbers]
    title = Path(recording.path).name
    if any(step.taxes.delta_ft_ns is None for step in wanted):
        reason = breakdown.evidence.withheld.get(Figure.TAXES) or "; ".join(wanted[0].notes) or "ΔFT is not known"
        return HostStacks(title=title, reason=reason)
    steps = ChosenSteps.of(recording, numbers)
    return _tree(recording.measured, steps, title, has_exposed=all(s.exposed.delta_ft_ns is not None for s in wanted))


def _tree(m: Measured, steps: ChosenSteps, title: str, *, has_exposed: bool) -> HostStacks:
    stretches, amount_ns = steps.delta_ft()
    exposed = steps.exposed() if has_exposed else None
    nesting = _nesting(m, stretches if exposed is None else joined((stretches, exposed)), steps.whole_ns)
    cuts = np.union1d(m.partition.edges_ns, nesting.key)
    cell, ns, share = _cells(m, stretches.cut(cuts), nesting)
    columns = [(cell, _scaled(ns, share, amount_ns))]
    if exposed is not None:
        columns.append(_cells(m, exposed.cut(cuts), nesting)[:2])
    used, place = np.unique(np.concatenate([cells[ns > 0] for cells, ns in columns]), return_inverse=True)
    sums = np.zeros((len(columns), len(used)), dtype=np.int64)
    begin = 0
    for own, (_, ns) in zip(sums, columns, strict=True):
        some = int(np.count_nonzero(ns > 0))
        np.add.at(own, place[begin : begin + some], ns[ns > 0])
        begin += some
    return _named(m, steps, nesting, used, sums, title)


def _nesting(m: Measured, stretches: Stretches, whole_ns: tuple[int, int]) -> Nesting:
    """Nest the frames from each thread's first stretch to its last."""
    num_threads, some = len(m.events.threads), stretches.end > stretches.start
    thread = stretches.start[some] // m.host.stride_ns
    begin, end = np.full(num_threads, np.iinfo(np.int64).max), np.full(num_threads, -1, dtype=np.int64)
    np.minimum.at(begin, thread, stretches.start[some])
    np.maximum.at(end, thread, stretches.end[some])
    return nest(m.events, m.host, begin, end, whole_ns)


def _cells(m: Measured, pieces: Stretches, nesting: Nesting) -> tuple[Index, Int64, Index]:
    """Return for each piece its cell (label, place or one of the two that stand for none), its ΔFT and its share."""
    edges = m.partition.edges_ns
    index = np.searchsorted(edges, pieces.start, side="right") - 1
    cls = np.where(index >= 0, m.partition.cls[np.maximum(index, 0)], 0) if len(edges) else np.zeros_like(index)
    ns = np.where(cls <= HostClass.DISPATCH, pieces.end - pieces.start, 0)
    place = nesting.at(pieces.start)
    num_places = len(nesting.parent)
    place = np.where(place != TOP, place, num_places + (cls != HostClass.PYTHON))
    return pieces.label * (num_places + 2) + place, ns, pieces.share


def _scaled(ns: Int64, share: Index, amount_ns: Int64) -> Int64:
    """Stretch what each share has to its amount, in proportion and exactly; a share of nothing has it at its end."""
    order = np.argsort(share, kind="stable")
    num = np.bincount(share, minlength=len(amount_ns))
    last = np.cumsum(num) - 1
    total = np.cumsum(ns[order])
    before = np.concatenate(([0], total[last]))[:-1]
    whole = np.concatenate(([0], total))[last + 1] - before
    if np.array_equal(whole, amount_ns):
        return ns
    ratio = amount_ns / np.maximum(whole, 1)
    until = np.minimum((total - np.repeat(before, num)) * np.repeat(ratio, num), np.repeat(amount_ns, num))
    until = until.astype(np.int64)
    until[last] = amount_ns
    scaled = np.diff(until, prepend=0)
    first = last - num + 1
    scaled[first] = until[first]
    result = np.empty_like(ns)
    result[order] = scaled
    return result


def _named(m: Measured, steps: ChosenSteps, nesting: Nesting, used: Index, sums: Int64, title: str) -> HostStacks:
    """Put the cells in use and all that they stand under into a tree, with names."""
    frames = m.events.frames
    functions = () if frames is None else frames.names
    num_places, num_ops = len(nesting.parent), len(m.events.names)
    numbers: dict[str, int] = {}
    at: dict[int, int] = {}
    parents: list[int] = []
    names: list[int] = []
    kinds: list[int] = []

    def add(parent: int, name: str, kind: FrameKind) -> int:
        parents.append(parent)
        names.append(numbers.setdefault(name, len(numbers)))
        kinds.append(KINDS.index(kind))
        return len(parents) - 1

    def make(cell: int) -> int:
        """Return the frame of a cell, made with those around it where they are new."""
        label, place = divmod(cell, num_places + 2)
        missing = []
        while cell not in at and place != TOP:
            missing.append((cell, place))
            place = int(nesting.parent[place]) if place < num_places else TOP
            cell = label * (num_places + 2) + place
        if cell not in at:
            at[cell] = add(-1, steps.labels[label], FrameKind.PHASE)
        for new, place in reversed(missing):
            frame = int(nesting.frame[place]) if place < num_places else -1
            if frame >= num_ops:
                at[new] = add(at[cell], functions[frame - num_ops], FrameKind.PYTHON)
            elif frame >= 0:
                at[new] = add(at[cell], m.events.names[frame], FrameKind.OP)
            else:
                is_python = place == num_places
                name, kind = (_PYTHON, FrameKind.PYTHON) if is_python else (_DISPATCH, FrameKind.OP)
                at[new] = add(at[cell], name, kind)
            cell = new
        return at[cell]

    places = [make(cell) for cell in used.tolist()]
    own = np.zeros((len(sums), len(parents)), dtype=np.int64)
    own[:, places] = sums
    label_of = [steps.labels[steps.label[number]] for number in steps.numbers]
    return HostStacks(
        title=title,
        names=tuple(numbers),
        parent=tuple(parents),
        name=tuple(names),
        kind=tuple(kinds),
        delta_ft_ns=tuple(own[0].tolist()),
        exposed_ns=tuple(own[1].tolist()) if len(own) > 1 else None,
        num_steps={label: label_of.count(label) for label in dict.fromkeys(label_of)},
        has_python=bool(functions),
    )
