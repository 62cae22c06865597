"""Sum the columns of a trace over its steps, or over the whole of it.

In: `Measured` (one value a dispatch or activity) and whose each is. Out: `Sums`. Every figure is a sum grouped by step,
so the cost is a few passes over the columns whatever the number of steps.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from taxbreak_vllm.model.breakdown import Tier, TopRow
from taxbreak_vllm.taxes.measured import FAMILIES, NONE, Measured, TaxColumns
from taxbreak_vllm.taxes.tiers import TIERS
from taxbreak_vllm.trace.dispatches import Bool
from taxbreak_vllm.trace.intervals import Index, Int64, union_by_group


@dataclass(frozen=True, slots=True)
class Sums:
    """What adds up over the launches and activities of each group (a step, or a trace), int64[groups].

    Launches and their delays are None where the device has no launch path; `families` is int64[3, groups, families]:
    kernels, device time, launches; `kernel_cells` are the distinct (group, name) of kernels as group * number of names
    + name; `top` has the rows of each group, in no order.
    """

    taxes: TaxColumns
    active_ns: Int64
    kernel_sum_ns: Int64
    kernels: Int64
    launches: Int64 | None
    launch_delay_ns: Int64 | None
    kernel_delay_ns: Int64 | None
    last_end_ns: Int64
    families: NDArray[np.int64]
    unique_kernels: Int64
    kernel_cells: Int64
    top: list[list[TopRow]]

    @classmethod
    def of(
        cls, m: Measured, group: Index, owner: Index, count: int, begin_ns: Int64, cover: Index | None = None
    ) -> "Sums":
        """Add up; `group` gives each dispatch's group, `owner` each activity's (-1: none).

        An activity's device time counts from `begin_ns`. Where `cover` gives groups to activities without an owner
        too, a union of device time holds only what those with one add to it.
        """
        a, d = m.activities, m.dispatches
        own = np.where(a.device == m.device, owner, -1)
        over = own if cover is None else np.where(a.device == m.device, cover, -1)
        is_kernel = a.is_kernel & (own >= 0)
        num_names = len(m.events.names)
        cells = np.unique(own[is_kernel] * np.int64(num_names) + a.name[is_kernel])
        last = np.full(count, NONE)
        np.maximum.at(last, own[own >= 0], a.end_ns[own >= 0])

        has_launches = m.backend.has_launches
        has_kernel, linked = d.num_kernels > 0, a.is_kernel & (a.dispatch >= 0)
        per_launch = a.start_ns[d.first_kernel] - d.launch_ns if len(d) else d.launch_ns
        per_kernel = a.start_ns - d.launch_ns[a.dispatch] if len(d) else np.zeros(len(a.row), dtype=np.int64)
        return cls(
            taxes=m.taxes.each(lambda column: sum_by(group, column, count)),
            active_ns=union_by_group(over, begin_ns, np.maximum(a.end_ns, begin_ns), count, own >= 0),
            kernel_sum_ns=sum_by(own, a.end_ns - a.start_ns, count, is_kernel),
            kernels=np.bincount(own[is_kernel], minlength=count),
            launches=np.bincount(group[group >= 0], minlength=count) if has_launches else None,
            launch_delay_ns=sum_by(group, np.maximum(per_launch, 0), count, has_kernel) if has_launches else None,
            kernel_delay_ns=sum_by(owner, np.maximum(per_kernel, 0), count, linked) if has_launches else None,
            last_end_ns=last,
            families=_families(m, own, over, group, count),
            unique_kernels=np.bincount(cells // max(num_names, 1), minlength=count),
            kernel_cells=cells,
            top=_top_rows(m, own, group, count),
        )


def sum_by(group: Index, values: Int64, num_groups: int, chosen: Bool | None = None) -> Int64:
    """Sum integers per group, leaving out negative groups; queueing delays add up beyond the exact part of a float."""
    keep = group >= 0 if chosen is None else chosen & (group >= 0)
    total = np.zeros(num_groups, dtype=np.int64)
    np.add.at(total, group[keep], values[keep])
    return total


def _families(m: Measured, own: Index, over: Index, group: Index, count: int) -> NDArray[np.int64]:
    a, d = m.activities, m.dispatches
    width = len(FAMILIES)
    number = np.array([FAMILIES.index(kind.family) for kind in m.kinds], dtype=np.intp)
    family = number[m.kind] if len(number) else m.kind
    cell = np.where(own >= 0, own * width + family, -1)
    union_cell = np.where(over >= 0, over * width + family, -1)
    launch_cell = np.where(group >= 0, group * width + family[d.first], -1) if len(d) else group
    kernels = np.bincount(cell[(cell >= 0) & a.is_kernel], minlength=count * width)
    active = union_by_group(union_cell, a.start_ns, a.end_ns, count * width, own >= 0)
    launches = np.bincount(launch_cell[launch_cell >= 0], minlength=count * width)
    return np.array([kernels, active, launches], dtype=np.int64).reshape(3, count, width)


def _top_rows(m: Measured, own: Index, group: Index, count: int) -> list[list[TopRow]]:
    """One row per step, op and kernel; a launch's taxes go to the row of its first activity, whatever its device."""
    a, d, op, names = m.activities, m.dispatches, m.op, m.events.names
    unlinked = len(names)
    # A row is opened by the activities shown and by all launches: the first activity of some is on another device.
    opens = np.concatenate((np.arange(len(own)), d.first))
    step = np.concatenate((own, group))
    opens, step, is_launch = opens[step >= 0], step[step >= 0], (np.arange(len(opens)) >= len(own))[step >= 0]
    keys, first, row = np.unique(
        (step * (unlinked + 1) + op[opens]) * (unlinked + 1) + a.name[opens], return_index=True, return_inverse=True
    )
    num_rows = len(keys)
    counts = np.bincount(row[~is_launch], minlength=num_rows)
    active = sum_by(row, (a.end_ns - a.start_ns)[opens], num_rows, ~is_launch)
    by_launch, launched = row[is_launch], group >= 0
    taxes = m.taxes.each(lambda column: sum_by(by_launch, column[launched], num_rows))
    tax = (taxes.delta_ft_ns, taxes.delta_ct_ns, taxes.delta_kt_ns)
    tier = np.zeros(num_rows, dtype=np.intp)  # of a row that several launches carry, the least
    np.maximum.at(tier, by_launch, m.tier[launched])
    of_launch = np.append(m.tier, TIERS.index(Tier.FLOOR))  # the last where there is no launch event
    np.maximum.at(tier, row[~is_launch], of_launch[a.dispatch[opens[~is_launch]]])
    result: list[list[TopRow]] = [[] for _ in range(count)]
    for index, (place, at) in enumerate(zip(step[first].tolist(), opens[first].tolist(), strict=True)):
        kind = m.kinds[m.kind[at]]
        ft, ct, kt = (None if column is None else int(column[index]) for column in tax)
        result[place].append(
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
    return result
