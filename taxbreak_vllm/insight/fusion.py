"""Which kernels always run one after another: SKIP's proximity score, and the launches their fusion would save.

In: a trace's kernels in stream order. Out: `FusionReport`. Source: SKIP (ISPASS 2025, doi
10.1109/ISPASS64960.2025.00015); methodology section 8. A chain's id is built from the id of the chain without its last
kernel and that kernel, so every length costs one sort of integers, whatever the length.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from taxbreak_vllm.model.errors import SettingsError
from taxbreak_vllm.model.fusion import Chain, FusionReport, LengthReport
from taxbreak_vllm.taxes.evidence import joined
from taxbreak_vllm.taxes.kinds import classify, ops_of
from taxbreak_vllm.taxes.recording import Recording, opened
from taxbreak_vllm.taxes.terms import Terms
from taxbreak_vllm.trace.dispatches import Activities, Dispatches, Host
from taxbreak_vllm.trace.intervals import Index, Int64
from taxbreak_vllm.trace.kernels import Family
from taxbreak_vllm.trace.steps import StepWindow

LENGTHS = range(2, 9)

_APART = (Family.COLLECTIVE, Family.COPY)  # one waits for other devices, the other only moves data
MIN_COUNT = 2  # what happened once is no pattern


@dataclass(frozen=True, slots=True)
class KernelOrder:
    """The kernels of a trace, stream by stream in the order they ran, as columns of one length.

    `kernel` indexes `names`; a chain stays inside a run of equal `segment`; `launch` numbers the launch that made each
    kernel (a graph launch makes many). Kernels without a launch event are counted in `num_unlinked` and end a segment;
    collectives and copies, `num_apart` of them, are in no chain.
    """

    kernel: Int64
    segment: Int64
    launch: Index
    names: Sequence[str]
    num_unlinked: int = 0
    num_apart: int = 0


def fusion(
    source: Recording | str | Path,
    *,
    lengths: Iterable[int] = LENGTHS,
    min_score: float = 1.0,
    rank: int | None = None,
) -> FusionReport:
    """Find the chains of a trace (.json, .json.gz, .json.zst) or of a capture (its folder).

    `rank` chooses one process, from 0 on, of a file that joins several; without it such a file has no chains.
    Raises TraceFormatError for a file that is missing, damaged or not a trace, SettingsError for a length below 2 or a
    score outside (0, 1].
    """
    with opened(source, Terms(rank=rank)) as recording:
        processes = len(recording.survey.processes)
        nothing = np.empty(0, dtype=np.int64)
        order = KernelOrder(kernel=nothing, segment=nothing, launch=nothing, names=())
        notes: tuple[str, ...]
        if not recording.backend.has_launches:
            notes = ("the CPU backend launches no kernels, so there is nothing to fuse",)
        elif processes > 1:
            notes = (joined(processes, "which kernels follow each other cannot be told"),)
        else:
            host, activities, dispatches = recording.linked
            op = ops_of(recording.events, activities, dispatches)
            kinds, kind = classify(recording.events, activities, op, recording.terms.rules.classify)
            is_apart = np.array([each.family in _APART for each in kinds], dtype=bool)[kind]
            order = order_kernels(recording.head.names, host, activities, dispatches, recording.windows, is_apart)
            notes = _notes(order, dispatches, recording.head.is_truncated)
        report = find_chains(order, lengths=lengths, min_score=min_score)
        return dataclasses.replace(report, path=recording.path, notes=notes)


def order_kernels(
    names: Sequence[str],
    host: Host,
    activities: Activities,
    dispatches: Dispatches,
    windows: Sequence[StepWindow],
    is_apart: NDArray[np.bool_],
) -> KernelOrder:
    """Put kernels into stream order and cut that where no chain may pass.

    A segment ends at another stream or launching thread, at a blocking call of that thread between two launches, at a
    step boundary between them, at a copy or fill, and at a kernel without a launch event. Activities that `is_apart`
    marks are segments of their own.
    """
    a, d = activities, dispatches
    rows = np.lexsort((a.dispatch, a.start_ns, a.stream, a.device))
    launch = a.dispatch[rows]
    linked = (launch >= 0) & a.is_kernel[rows]
    own = launch[linked]
    blocked_until = np.sort(host.call_end[host.call_is_blocking])
    boundary = np.sort(np.array([t for w in windows for t in (w.start_ns, w.end_ns)], dtype=np.int64))
    place = np.full((6, len(rows)), -1, dtype=np.int64)
    place[0], place[1] = a.device[rows], a.stream[rows]
    place[2, linked] = d.thread[own]
    place[3, linked] = np.searchsorted(blocked_until, d.launch_key[own], side="right")
    place[4, linked] = np.searchsorted(boundary, d.launch_ns[own], side="right")
    place[5, is_apart[rows]] = np.flatnonzero(is_apart[rows])
    segment = np.zeros(len(rows), dtype=np.int64)
    segment[1:] = np.cumsum((place[:, 1:] != place[:, :-1]).any(axis=0))
    return KernelOrder(
        kernel=a.name[rows][linked].astype(np.int64),
        segment=segment[linked],
        launch=own,
        names=names,
        num_unlinked=int((a.is_kernel & (a.dispatch < 0)).sum()),
        num_apart=int((is_apart[rows] & linked).sum()),
    )


def find_chains(order: KernelOrder, *, lengths: Iterable[int] = LENGTHS, min_score: float = 1.0) -> FusionReport:
    """Count all chains of the given lengths, score them, and fuse the candidates.

    A candidate scores at least `min_score` and occurs at least twice. Raises SettingsError for a length below 2 or a
    score outside (0, 1].
    """
    wanted = sorted(set(lengths))
    if not wanted or wanted[0] < 2:
        raise SettingsError(f"chains have 2 kernels or more: lengths {wanted} make no sense")
    if not 0 < min_score <= 1:
        raise SettingsError(f"a proximity score lies above 0 and up to 1: min_score {min_score} makes no sense")
    names, kernel = np.unique(order.kernel, return_inverse=True)
    first_count = np.bincount(kernel, minlength=len(names))
    num_launches = len(np.unique(order.launch))
    starts_by_length: dict[int, Index] = {}
    candidates: dict[tuple[int, ...], tuple[int, float]] = {}
    by_length = []
    for level in _levels(kernel, order.segment, wanted):
        score = level.counts / first_count[kernel[level.first]]
        chosen = (score >= min_score) & (level.counts >= MIN_COUNT)
        chains = kernel[level.first[chosen][:, np.newaxis] + np.arange(level.length)]
        for ids, count, value in zip(
            chains.tolist(), level.counts[chosen].tolist(), score[chosen].tolist(), strict=True
        ):
            candidates[tuple(ids)] = (count, value)
        starts_by_length[level.length] = level.at[chosen[level.gram]]
        kept, fused = _fuse(len(kernel), {level.length: starts_by_length[level.length]})
        launches_after = len(np.unique(order.launch[kept]))
        by_length.append(
            LengthReport(
                length=level.length,
                distinct=len(level.counts),
                occurrences=len(level.at),
                candidates=len(chains),
                fused=fused,
                kernels_after=int(kept.sum()),
                launches_after=launches_after,
                ideal_speedup=num_launches / launches_after if launches_after else None,
            )
        )
    kept, _ = _fuse(len(kernel), starts_by_length)
    launches_after = len(np.unique(order.launch[kept]))
    return FusionReport(
        min_score=min_score,
        kernels=len(kernel),
        unlinked=order.num_unlinked,
        launches=num_launches,
        kernels_after=int(kept.sum()),
        launches_after=launches_after,
        ideal_speedup=num_launches / launches_after if launches_after else None,
        by_length=tuple(by_length),
        chains=_chains(candidates, [order.names[name] for name in names.tolist()], first_count.tolist()),
    )


@dataclass(frozen=True, slots=True)
class _Level:
    """Chains of one length: where each occurrence starts and which chain it is; each chain's first start and count."""

    length: int
    at: Index
    gram: Index
    first: Index
    counts: Int64


def _levels(kernel: Index, segment: Int64, wanted: Sequence[int]) -> Iterable[_Level]:
    num_kernels = int(kernel.max()) + 1 if len(kernel) else 1
    segment_end = np.searchsorted(segment, segment, side="right")
    at, gram = np.arange(len(kernel)), kernel
    for length in range(2, wanted[-1] + 1):
        fits = at + length <= segment_end[at]
        at, gram = at[fits], gram[fits]
        key = gram * num_kernels + kernel[at + length - 1]
        _, first, gram, counts = np.unique(key, return_index=True, return_inverse=True, return_counts=True)
        if length in wanted:
            yield _Level(length, at, gram, at[first], counts)


def _fuse(num_kernels: int, starts_by_length: dict[int, Index]) -> tuple[NDArray[np.bool_], int]:
    """Fuse greedily, longest chains first and each from left to right; return which kernels stay, and how many fused.

    A fused chain stays as its first kernel.
    """
    kept = np.ones(num_kernels, dtype=bool)
    taken = np.zeros(num_kernels, dtype=bool)
    fused = 0
    for length, starts in sorted(starts_by_length.items(), reverse=True):
        before = np.concatenate(([0], np.cumsum(taken)))
        free = starts[before[starts + length] == before[starts]]
        heads = _non_overlapping(free, length)
        members = heads[:, np.newaxis] + np.arange(length)
        taken[members] = True
        kept[members[:, 1:]] = False
        fused += len(heads)
    return kept, fused


def _non_overlapping(starts: Index, length: int) -> Index:
    chosen, free_from = [], 0
    for start in starts.tolist():
        if start >= free_from:
            chosen.append(start)
            free_from = start + length
    return np.array(chosen, dtype=np.intp)


def _chains(
    candidates: dict[tuple[int, ...], tuple[int, float]], names: Sequence[str], first_count: Sequence[int]
) -> tuple[Chain, ...]:
    """Name the candidates, those first that save most kernels."""
    longest: dict[tuple[int, ...], int] = {}
    for ids, (count, _) in candidates.items():
        for length in range(2, len(ids)):
            for start in range(len(ids) - length + 1):
                part = ids[start : start + length]
                longest[part] = max(longest.get(part, 0), count)
    chains = [
        Chain(
            kernels=tuple(names[number] for number in ids),
            length=len(ids),
            count=count,
            first_count=first_count[ids[0]],
            score=score,
            is_maximal=longest.get(ids) != count,
        )
        for ids, (count, score) in candidates.items()
    ]
    return tuple(sorted(chains, key=lambda chain: (-chain.count * (chain.length - 1), -chain.length, chain.kernels)))


def _notes(order: KernelOrder, dispatches: Dispatches, is_truncated: bool) -> tuple[str, ...]:
    notes = []
    if not len(order.kernel):
        notes.append("no kernel with a launch event, so there is nothing to fuse")
    if order.num_unlinked:
        notes.append(f"{order.num_unlinked} kernels have no launch event: they are in no chain and end the one before")
    if order.num_apart:
        notes.append(f"{order.num_apart} collectives and copies are in no chain and end the one before")
    if in_graph := int(dispatches.is_graph[order.launch].sum()):
        notes.append(f"{in_graph} kernels run in graphs: fusing those saves kernels, but launches only across graphs")
    if is_truncated:
        notes.append("the file ends in the middle: read up to its last whole event")
    return tuple(notes)
