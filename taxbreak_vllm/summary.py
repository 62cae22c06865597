"""Sum the columns of a trace into StepBreakdowns.

In: `Measured` (one value a dispatch or activity) and step windows. Out: the nouns of `model`. Every figure is a sum
grouped by step, so the cost is a few passes over the columns whatever the number of steps.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from taxbreak_vllm import taxes
from taxbreak_vllm.model import (
    Attribution,
    Coverage,
    DeviceShare,
    DeviceTime,
    ExposedTax,
    FamilyShare,
    HostTime,
    IdleTime,
    StepBreakdown,
    Taxes,
    ThreadShare,
    TopRow,
    hdbi,
)
from taxbreak_vllm.taxes import Spans
from taxbreak_vllm.tiers import TIERS, shares
from taxbreak_vllm.trace.dispatches import Activities, Bool, Dispatches, Host
from taxbreak_vllm.trace.intervals import Index, Int64, Partition, union_by_group
from taxbreak_vllm.trace.kernels import Family, Kind
from taxbreak_vllm.trace.kineto import Events
from taxbreak_vllm.trace.steps import StepWindow
from taxbreak_vllm.trace.timeline import DeviceTimeline, DeviceWindow, HostClass, main_thread

_FAMILIES = list(Family)
_LOST_GRAPH = "a graph launch left no recorded node, so device time is incomplete and HDBI null"


@dataclass(frozen=True, slots=True)
class Measured:
    """A trace with everything measured: columns of `trace`; raw spans, ΔFT, ΔCT, ΔKT of each dispatch (None: unknown).

    `excess_ns` is ΔKT_excess of each dispatch, `tier` (into `TIERS`) where its baseline is from, `is_denied` marks
    those that are never replayed.

    For each activity `kind` indexes `kinds` and `op` Events.names: the leaf op around its launch, the launch call where
    there is none, len(names) where it has no launch event. `device` is the one whose device figures are shown.
    """

    events: Events
    device_type: str
    host: Host
    activities: Activities
    dispatches: Dispatches
    partition: Partition
    timeline: DeviceTimeline
    device: int
    kinds: tuple[Kind, ...]
    kind: Index
    op: Int64
    spans: Spans
    ft_ns: Int64
    ct_ns: Int64 | None
    kt_ns: Int64 | None
    excess_ns: Int64 | None
    tier: NDArray[np.int8]
    is_denied: Bool
    attribution: Attribution = Attribution.EXCLUSIVE
    op_cost_ns: int = 0


def group_by_time(windows: Sequence[StepWindow], at_ns: Int64) -> Index:
    """Return for each instant the index of the step window it falls in, -1 for none."""
    start = np.array([window.start_ns for window in windows], dtype=np.int64)
    end = np.array([window.end_ns for window in windows], dtype=np.int64)
    index = np.searchsorted(start, at_ns, side="right") - 1
    return np.where((index >= 0) & (at_ns < end[np.maximum(index, 0)]), index, -1)


def named(step: StepBreakdown, name: str | None) -> StepBreakdown:
    """Return the same figures under another name."""
    return dataclasses.replace(step, name=name)


def summarize(
    m: Measured, windows: Sequence[StepWindow], group: Index, *, is_total: bool = False
) -> list[StepBreakdown]:
    """Sum everything per step; `group` gives each dispatch's step (-1: none).

    Activities belong to the step that launched them, those without a launch event to the step they began in.
    """
    a, d = m.activities, m.dispatches
    count = len(windows)
    start = np.array([window.start_ns for window in windows], dtype=np.int64)
    end = np.array([window.end_ns for window in windows], dtype=np.int64)
    linked = a.dispatch >= 0
    owner = np.zeros(len(a.row), dtype=np.intp) if is_total else group_by_time(windows, a.start_ns)
    owner[linked] = group[a.dispatch[linked]]
    shown = (owner >= 0) & (a.device == m.device)
    own = np.where(shown, owner, -1)

    device_end = end.copy()
    np.maximum.at(device_end, own[shown], a.end_ns[shown])
    window = m.timeline.windows(start, device_end)
    begin = np.maximum(a.start_ns, start[own]) if count else a.start_ns
    active = union_by_group(own, begin, np.maximum(a.end_ns, begin), count)
    is_kernel = a.is_kernel & shown
    duration = a.end_ns - a.start_ns
    kernels = np.bincount(own[is_kernel], minlength=count)
    kernel_sum = sum_by(own, duration, count, is_kernel)
    num_names = len(m.events.names)
    unique_kernels = np.bincount(
        np.unique(own[is_kernel] * num_names + a.name[is_kernel]) // num_names, minlength=count
    )

    thread = main_thread(d.thread, group, np.array([window.thread for window in windows], dtype=np.int32))
    host = m.partition.between(m.host.key(thread, start), m.host.key(thread, end))
    num_ops = taxes.ops_between(m.host, m.host.key(thread, start), m.host.key(thread, end))
    tax = [_sum_or_none(group, column, count) for column in (m.ft_ns, m.ct_ns, m.kt_ns, m.excess_ns)]
    launch_delay, kernel_delay = _launch_delays(m, group, owner, count)
    launches = np.bincount(group[group >= 0], minlength=count)
    latency = _inference_latency(m, thread, start, end, own, count)
    families = _families(m, own, group, count)
    tops = _top_rows(m, own, group, count)
    lost = (
        np.bincount(np.maximum(_lost(m, windows, is_total), 0), minlength=count) if len(m.host.lost_graph_ns) else None
    )
    is_cpu = m.device_type == "cpu"
    t_device = kernel_sum if m.attribution is Attribution.PAPER else active

    steps = []
    for i, step in enumerate(windows):
        ft, ct, kt, excess = (None if column is None else int(column[i]) for column in tax)
        if is_cpu:  # what comes after the last computing op is the host's too
            ft = int(taxes.observed(host[HostClass.PYTHON, i] + host[HostClass.DISPATCH, i], num_ops[i], m.op_cost_ns))
        # An unknown ΔCT is still in ΔFT (a GPU) or in device time (the CPU backend): the sum is whole all the same.
        orchestration = None if ft is None or kt is None else ft + (ct or 0) + kt
        is_lost = lost is not None and lost[i] > 0
        tokens = step.batch.output_tokens
        steps.append(
            StepBreakdown(
                name=step.name,
                phase=step.phase,
                batch=step.batch,
                window_ns=int(end[i] - start[i]),
                host=HostTime(**{f"{cls.name.lower()}_ns": int(host[cls, i]) for cls in HostClass}),
                device=_device_time(window, i, int(active[i]), int(kernel_sum[i]), int(device_end[i] - start[i])),
                taxes=Taxes(
                    delta_ft_ns=ft,
                    delta_ct_ns=ct,
                    delta_kt_ns=kt,
                    delta_kt_excess_ns=excess,
                    orchestration_ns=orchestration,
                ),
                exposed=_exposed(window, i),
                hdbi=None if is_lost or not active[i] else hdbi(int(t_device[i]), orchestration),
                tklqt_ns=None if is_cpu else int(launch_delay[i]),
                tklqt_per_kernel_ns=None if is_cpu else int(kernel_delay[i]),
                akd_ns=int(kernel_sum[i] // kernels[i]) if kernels[i] else None,
                inference_latency_ns=latency[i],
                launches=None if is_cpu else int(launches[i]),
                kernels=int(kernels[i]),
                unique_kernels=int(unique_kernels[i]),
                kernels_per_output_token=float(kernels[i] / tokens) if tokens else None,
                families=families[i],
                top=tuple(tops[i]),
                notes=(_LOST_GRAPH,) if is_lost else (),
            )
        )
    return steps


def sum_by(group: Index, values: Int64, num_groups: int, chosen: Bool | None = None) -> Int64:
    """Sum integers per group, leaving out negative groups; queueing delays add up beyond the exact part of a float."""
    keep = group >= 0 if chosen is None else chosen & (group >= 0)
    total = np.zeros(num_groups, dtype=np.int64)
    np.add.at(total, group[keep], values[keep])
    return total


def _sum_or_none(group: Index, values: Int64 | None, num_groups: int) -> Int64 | None:
    return None if values is None else sum_by(group, values, num_groups)


def _device_time(window: DeviceWindow, i: int, active_ns: int, kernel_sum_ns: int, length_ns: int) -> DeviceTime:
    busy_ns = int(window.busy_ns[i])
    return DeviceTime(
        window_ns=length_ns,
        active_ns=active_ns,
        other_active_ns=busy_ns - active_ns,
        kernel_sum_ns=kernel_sum_ns,
        idle_ns=length_ns - busy_ns,
        idle=IdleTime(
            host_ns=int(window.host_ns[i]),
            blocked_ns=int(window.blocked_ns[i]),
            queue_ns=int(window.queue_ns[i]),
            edge_ns=int(window.edge_ns[i]),
        ),
    )


def _exposed(window: DeviceWindow, i: int) -> ExposedTax:
    by_class = window.exposed[:, i]
    return ExposedTax(
        delta_ft_ns=int(by_class[HostClass.PYTHON] + by_class[HostClass.DISPATCH]),
        delta_ct_ns=int(by_class[HostClass.LIBRARY]),
        delta_kt_ns=int(by_class[HostClass.LAUNCH]),
        other_ns=int(by_class[HostClass.RUNTIME]),
    )


def _launch_delays(m: Measured, group: Index, owner: Index, count: int) -> tuple[Int64, Int64]:
    """TKLQT per kernel launch (its first kernel) and per kernel, as SKIP counts (methodology section 8)."""
    a, d = m.activities, m.dispatches
    has_kernel = d.num_kernels > 0
    per_launch = a.start_ns[d.first_kernel] - d.launch_ns if len(d) else d.launch_ns
    linked = a.is_kernel & (a.dispatch >= 0)
    per_kernel = a.start_ns - d.launch_ns[a.dispatch] if len(d) else np.zeros(len(a.row), dtype=np.int64)
    return sum_by(group, per_launch, count, has_kernel), sum_by(owner, per_kernel, count, linked)


def _inference_latency(
    m: Measured, thread: NDArray[np.int32], start: Int64, end: Int64, own: Index, count: int
) -> list[int | None]:
    """IL = end of the last activity - start of the first root op (SKIP); None where a step lacks either."""
    roots = m.host.root_start
    begin, finish = m.host.key(thread, start), m.host.key(thread, end)
    index = np.searchsorted(roots, begin, side="left")
    last = np.full(count, np.iinfo(np.int64).min)
    np.maximum.at(last, own[own >= 0], m.activities.end_ns[own >= 0])
    latency: list[int | None] = []
    for i in range(count):
        has_root = index[i] < len(roots) and roots[index[i]] < finish[i]
        if has_root and last[i] >= start[i]:
            first_ns = int(roots[index[i]] - begin[i] + start[i])
            latency.append(int(last[i]) - first_ns)
        else:
            latency.append(None)
    return latency


def _families(m: Measured, own: Index, group: Index, count: int) -> list[dict[str, FamilyShare]]:
    a, d = m.activities, m.dispatches
    width = len(_FAMILIES)
    number = np.array([_FAMILIES.index(kind.family) for kind in m.kinds], dtype=np.intp)
    family = number[m.kind] if len(number) else m.kind
    cell = np.where(own >= 0, own * width + family, -1)
    active = union_by_group(cell, a.start_ns, a.end_ns, count * width)
    kernels = np.bincount(cell[(cell >= 0) & a.is_kernel], minlength=count * width)
    launch_cell = np.where(group >= 0, group * width + family[d.first], -1) if len(d) else group
    launches = np.bincount(launch_cell[launch_cell >= 0], minlength=count * width)
    result: list[dict[str, FamilyShare]] = [{} for _ in range(count)]
    for index in np.flatnonzero((active > 0) | (kernels > 0) | (launches > 0)).tolist():
        result[index // width][str(_FAMILIES[index % width])] = FamilyShare(
            kernels=int(kernels[index]), active_ns=int(active[index]), launches=int(launches[index])
        )
    return result


def _top_rows(m: Measured, own: Index, group: Index, count: int) -> list[list[TopRow]]:
    """One row per step, op and kernel, dearest first; a dispatch's taxes go to the row of its first activity."""
    a, d, op, names = m.activities, m.dispatches, m.op, m.events.names
    unlinked = len(names)
    cell = np.where(own >= 0, (own * (unlinked + 1) + op) * (unlinked + 1) + a.name, -1)
    keys, first, row = np.unique(cell, return_index=True, return_inverse=True)
    num_rows = len(keys)
    counts = np.bincount(row, minlength=num_rows)
    active = sum_by(row, a.end_ns - a.start_ns, num_rows)
    row_of_dispatch = np.where(group >= 0, row[d.first], -1) if len(d) else group
    tax = [_sum_or_none(row_of_dispatch, column, num_rows) for column in (m.ft_ns, m.ct_ns, m.kt_ns)]
    tier = np.zeros(num_rows, dtype=np.intp)  # of a row that several carry, the least
    np.maximum.at(tier, row_of_dispatch[row_of_dispatch >= 0], m.tier[row_of_dispatch >= 0])
    result: list[list[TopRow]] = [[] for _ in range(count)]
    for index, (key, at) in enumerate(zip(keys.tolist(), first.tolist(), strict=True)):
        if key < 0:
            continue
        kind = m.kinds[m.kind[at]]
        ft, ct, kt = (None if column is None else int(column[index]) for column in tax)
        result[int(own[at])].append(
            TopRow(
                op=names[op[at]] if op[at] < unlinked else "(no launch event)",
                kernel=names[a.name[at]],
                family=str(kind.family),
                i_lib=kind.i_lib,
                count=int(counts[index]),
                delta_ft_ns=ft,
                delta_ct_ns=ct,
                delta_kt_ns=kt,
                active_ns=int(active[index]),
                tier=TIERS[tier[index]],
            )
        )
    for rows in result:
        rows.sort(key=lambda r: (-(r.active_ns + (r.delta_ft_ns or 0) + (r.delta_ct_ns or 0)), r.op, r.kernel))
    return result


def _lost(m: Measured, windows: Sequence[StepWindow], is_total: bool) -> Index:
    lost_ns = m.host.lost_graph_ns
    group = np.zeros(len(lost_ns), dtype=np.intp) if is_total else group_by_time(windows, lost_ns)
    return group[group >= 0]


def coverage(m: Measured) -> Coverage:
    """Count what was read, joined and lost."""
    a, d = m.activities, m.dispatches
    linked = int((a.is_kernel & (a.dispatch >= 0)).sum())
    kernels = int(a.is_kernel.sum())
    known = [column for column in (m.ft_ns, m.ct_ns, m.kt_ns) if column is not None]
    weight_ns = np.asarray(np.sum(known, axis=0, dtype=np.int64))
    return Coverage(
        activities=len(a.row),
        kernels=kernels,
        linked=linked,
        unlinked=kernels - linked,
        launches=len(d),
        kernel_launches=int((d.num_kernels > 0).sum()),
        graph_launches=int(d.is_graph.sum()) + len(m.host.lost_graph_ns),
        launches_without_activity=m.host.num_launches_without_activity,
        events=m.events.num_events,
        dropped_events=m.events.num_dropped,
        replay=shares(m.tier, weight_ns),
        denied_ns=int(weight_ns[m.is_denied].sum()),
    )


def devices(activities: Activities) -> tuple[DeviceShare, ...]:
    """List all devices with the union of their activity."""
    ids, group = np.unique(activities.device, return_inverse=True)
    active = union_by_group(group, activities.start_ns, activities.end_ns, len(ids))
    counts = np.bincount(group, minlength=len(ids))
    return tuple(
        DeviceShare(device=int(ids[i]), activities=int(counts[i]), active_ns=int(active[i])) for i in range(len(ids))
    )


def threads(m: Measured) -> tuple[ThreadShare, ...]:
    """List the host threads that launched, busiest first."""
    ids, group = np.unique(m.dispatches.thread, return_inverse=True)
    launches = np.bincount(group, minlength=len(ids))
    host_tax = m.ft_ns if m.ct_ns is None else m.ft_ns + m.ct_ns
    tax = sum_by(group, host_tax, len(ids))
    order = np.argsort(-launches, kind="stable")
    names = [":".join(m.events.threads[thread]) for thread in ids.tolist()]
    return tuple(
        ThreadShare(thread=names[i], launches=int(launches[i]), host_tax_ns=int(tax[i])) for i in order.tolist()
    )
