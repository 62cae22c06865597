"""From sums to StepBreakdowns: the last stage, where columns become the nouns of `model`.

In: `Measured`, step windows and `Sums`. Out: one StepBreakdown a window.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from taxbreak_vllm.model.breakdown import (
    Attribution,
    DeviceTime,
    ExposedTax,
    FamilyShare,
    HostTime,
    IdleTime,
    StepBreakdown,
    Taxes,
    TopRow,
    hdbi,
)
from taxbreak_vllm.model.evidence import Evidence
from taxbreak_vllm.taxes import equations
from taxbreak_vllm.taxes.evidence import Losses, judged, without
from taxbreak_vllm.taxes.iteration import MeasuredIteration, host_without_engine, measure_iteration
from taxbreak_vllm.taxes.measured import FAMILIES, NONE, Basis, Measured, group_by_time
from taxbreak_vllm.taxes.sums import Sums
from taxbreak_vllm.trace.dispatches import Host
from taxbreak_vllm.trace.intervals import Int64
from taxbreak_vllm.trace.steps import StepWindow
from taxbreak_vllm.trace.timeline import DeviceWindow, HostClass, main_thread

Judged = tuple[StepBreakdown, Evidence]  # a step, and what it stands on


def summarize(m: Measured, windows: Sequence[StepWindow], first: int = 0) -> list[Judged]:
    """Sum everything per step; `first` is the number of the first.

    Launches belong to the step they began in, activities to that of their launch, those without a launch event to the
    step they began in themselves.
    """
    if not windows:
        return []
    a, d = m.activities, m.dispatches
    count = len(windows)
    start = np.array([window.start_ns for window in windows], dtype=np.int64)
    end = np.array([window.end_ns for window in windows], dtype=np.int64)
    group, owner = group_by_time(windows, d.launch_ns), group_by_time(windows, a.start_ns)
    linked = a.dispatch >= 0
    owner[linked] = group[a.dispatch[linked]]
    sums = Sums.of(m, group, owner, count, np.maximum(a.start_ns, start[owner]))

    device_end = np.maximum(end, sums.last_end_ns)
    thread = main_thread(d.thread, group, np.array([window.thread for window in windows], dtype=np.int32))
    begin, finish = m.host.key(thread, start), m.host.key(thread, end)
    unanswered, lost = (group_by_time(windows, at_ns) for at_ns in (m.host.unanswered_ns, m.host.lost_graph_ns))
    found = build(
        windows,
        sums,
        host_ns=host_without_engine(m, windows, thread, m.partition.between(begin, finish)),
        num_ops=equations.ops_between(m.host, begin, finish),
        first_root_ns=first_root(m.host, thread, start, end),
        device=m.timeline.windows(start, device_end),
        device_end_ns=device_end,
        losses=Losses.of(m, group, owner, unanswered, lost, count),
        basis=m.basis,
        first=first,
    )
    return [
        (step, evidence)
        if window.next_ns is None or None in (step.device.idle_ns, step.device.idle.host_ns)
        else (_within(step, measure_iteration(m, window, int(on_thread), owner == index)), evidence)
        for index, ((step, evidence), window, on_thread) in enumerate(zip(found, windows, thread, strict=True))
    ]


def _within(step: StepBreakdown, found: MeasuredIteration) -> StepBreakdown:
    """Give a step the idle time of its iteration: that of its own device window lies in part in the next one."""
    idle_ns = found.iteration.idle_ns
    device = replace(
        step.device,
        window_ns=step.device.active_ns + idle_ns,
        other_active_ns=0,
        idle_ns=idle_ns,
        idle=found.idle,
    )
    return replace(step, device=device, exposed=found.exposed, iteration=found.iteration)


def first_root(host: Host, thread: NDArray[np.int32], start_ns: Int64, end_ns: Int64) -> Int64:
    """Return when the first root op of a thread in each [start, end) began, in ns; NONE without one."""
    index = np.searchsorted(host.root_start, host.key(thread, start_ns), side="left")
    begin = np.append(host.root_start, np.iinfo(np.int64).max)[index]
    has_root = begin < host.key(thread, end_ns)
    return np.where(has_root, begin - host.key(thread, start_ns) + start_ns, NONE)


def build(
    windows: Sequence[StepWindow],
    sums: Sums,
    *,
    host_ns: NDArray[np.int64],
    num_ops: Int64,
    first_root_ns: Int64,
    device: DeviceWindow,
    device_end_ns: Int64,
    losses: Losses,
    basis: Basis,
    first: int = 0,
) -> list[Judged]:
    """Make a StepBreakdown of each window from its sums; `host_ns` is int64[HostClass, windows]."""
    t_device = sums.kernel_sum_ns if basis.attribution is Attribution.PAPER else sums.active_ns
    taxes = sums.taxes
    if not basis.backend.has_launches:
        taxes = replace(taxes, delta_ft_ns=equations.delta_ft_cpu(host_ns, num_ops, basis.op_cost_ns))
    steps = []
    for i, window in enumerate(windows):
        tax = {name: _at(column, i) for name, column in taxes.by_name().items()}
        # An unknown ΔCT is still in ΔFT (a GPU) or in device time (the CPU backend): the sum is whole all the same.
        ft, ct, kt = tax["delta_ft_ns"], tax["delta_ct_ns"], tax["delta_kt_ns"]
        orchestration = None if ft is None or kt is None else ft + (ct or 0) + kt
        active, kernels, last = int(sums.active_ns[i]), int(sums.kernels[i]), int(sums.last_end_ns[i])
        has_latency = first_root_ns[i] != NONE and last >= window.start_ns
        tokens = window.batch.output_tokens
        evidence = judged(losses.evidence(i, _at(sums.launches, i)), has_launches=basis.backend.has_launches)
        step = StepBreakdown(
            name=window.name,
            number=first + i,
            phase=window.phase,
            batch=window.batch,
            window_ns=int(host_ns[:, i].sum()),
            host=HostTime(**{f"{cls.name.lower()}_ns": int(host_ns[cls, i]) for cls in HostClass}),
            device=_device_time(device, i, sums, int(device_end_ns[i] - window.start_ns)),
            taxes=Taxes(**tax, orchestration_ns=orchestration),
            exposed=_exposed(device, i),
            hdbi=hdbi(int(t_device[i]), orchestration) if active else None,
            tklqt_ns=_at(sums.launch_delay_ns, i),
            tklqt_per_kernel_ns=_at(sums.kernel_delay_ns, i),
            akd_ns=int(sums.kernel_sum_ns[i]) // kernels if kernels else None,
            inference_latency_ns=last - int(first_root_ns[i]) if has_latency else None,
            launches=_at(sums.launches, i),
            kernels=kernels,
            unique_kernels=int(sums.unique_kernels[i]),
            kernels_per_output_token=kernels / tokens if tokens else None,
            families=_family_shares(sums.families[:, i]),
            top=tuple(sorted(sums.top[i], key=_by_cost)),
        )
        steps.append((without(step, evidence), evidence))
    return steps


def _at(column: Int64 | None, index: int) -> int | None:
    return None if column is None else int(column[index])


def _device_time(window: DeviceWindow, i: int, sums: Sums, length_ns: int) -> DeviceTime:
    busy_ns, active_ns = int(window.busy_ns[i]), int(sums.active_ns[i])
    return DeviceTime(
        window_ns=length_ns,
        active_ns=active_ns,
        other_active_ns=busy_ns - active_ns,
        kernel_sum_ns=int(sums.kernel_sum_ns[i]),
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


def _family_shares(families: NDArray[np.int64]) -> dict[str, FamilyShare]:
    return {
        str(FAMILIES[index]): FamilyShare(kernels=kernels, active_ns=active, launches=launches)
        for index, (kernels, active, launches) in enumerate(families.T.tolist())
        if kernels or active or launches
    }


def _by_cost(row: TopRow) -> tuple[int, str, str]:
    return -(row.active_ns + (row.delta_ft_ns or 0) + (row.delta_ct_ns or 0)), row.op, row.kernel
