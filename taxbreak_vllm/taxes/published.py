"""The published definitions, for comparison with the papers' figures: `attribution="paper"`.

Where `taxes` is exclusive and counts launches, TaxBreak (arXiv 2603.12465) counts kernels: each takes its leaf op by
External id, T_dispatch from that op's start to the launch, T_py from the enclosing op that is not ATen's, and a T_sys
of its own; time shared by several kernels of an op counts once for each. `nvjet` kernels are framework-native there.
"""

import dataclasses

import numpy as np

from taxbreak_vllm.model.breakdown import Attribution
from taxbreak_vllm.taxes import equations
from taxbreak_vllm.taxes.equations import Spans
from taxbreak_vllm.taxes.measured import Measured, TaxColumns
from taxbreak_vllm.taxes.sums import sum_by
from taxbreak_vllm.trace.dispatches import Activities, Bool, Dispatches, innermost, next_outer, time_line
from taxbreak_vllm.trace.events import EventKind, Events
from taxbreak_vllm.trace.intervals import Index, Int64


def attribute(m: Measured, floor_ns: int | None) -> Measured:
    """Replace the taxes of each dispatch by the sum over its kernels of the published ones."""
    kernels, spans = kernel_spans(m.events, m.activities, m.dispatches)
    dispatch, count = m.activities.dispatch[kernels], len(m.dispatches)
    i_lib = np.array([kind.i_lib_paper for kind in m.kinds], dtype=bool)[m.kind[kernels]]
    all_kernels = np.ones(len(kernels), dtype=bool)
    base_ns = equations.t_base(spans.t_dispatch, i_lib, all_kernels)
    ct_ns = None if base_ns is None else equations.delta_ct(spans.t_dispatch, i_lib, base_ns)
    of_kernels = TaxColumns(
        delta_ft_ns=equations.delta_ft(spans, ct_ns),
        delta_ct_ns=ct_ns,
        delta_kt_ns=None if floor_ns is None else np.full(len(kernels), floor_ns, dtype=np.int64),
    )
    kinds = tuple(dataclasses.replace(kind, i_lib=kind.i_lib_paper) for kind in m.kinds)
    return dataclasses.replace(
        m,
        kinds=kinds,
        basis=dataclasses.replace(m.basis, attribution=Attribution.PAPER),
        taxes=dataclasses.replace(
            of_kernels.each(lambda column: sum_by(dispatch, column, count)),
            delta_kt_excess_ns=m.taxes.delta_kt_excess_ns,
        ),
    )


def kernel_spans(events: Events, activities: Activities, dispatches: Dispatches) -> tuple[Index, Spans]:
    """Return the linked kernels (into Activities) and their T_py and T_dispatch by the published definitions, in ns.

    A kernel whose External id names no op takes the innermost op around its launch; without one both spans are 0.
    """
    kernels = np.flatnonzero(activities.is_kernel & (activities.dispatch >= 0))
    dispatch = activities.dispatch[kernels]
    launch_ns = dispatches.launch_ns[dispatch]
    origin, stride = time_line(events)
    ops = events.rows(EventKind.OP)
    thread = events.thread[ops].astype(np.int64)
    start = thread * stride + (events.start_ns[ops] - origin)
    end = thread * stride + (events.end_ns[ops] - origin)
    order = np.lexsort((-end, start))
    ops, start, end = ops[order], start[order], end[order]

    leaf = _by_external_id(events, ops, events.external[activities.row[kernels]])
    around = innermost(start, end, dispatches.launch_key[dispatch])
    leaf = np.where(leaf >= 0, leaf, around)
    has_leaf = leaf >= 0
    t_dispatch = np.zeros(len(kernels), dtype=np.int64)
    t_py = np.zeros(len(kernels), dtype=np.int64)
    leaf_start = events.start_ns[ops[leaf[has_leaf]]]
    t_dispatch[has_leaf] = np.maximum(launch_ns[has_leaf] - leaf_start, 0)
    outer = _enclosing_other(events, ops, end)[leaf[has_leaf]]
    t_py[has_leaf] = np.where(outer >= 0, leaf_start - events.start_ns[ops[np.maximum(outer, 0)]], 0)
    return kernels, Spans(t_py=t_py, t_dispatch=t_dispatch, num_ops=np.zeros(len(kernels), dtype=np.int64))


def _by_external_id(events: Events, ops: Index, wanted: Int64) -> Index:
    """Return the op that carries each External id, -1 for none."""
    ids = events.external[ops]
    order = np.argsort(ids, kind="stable")
    index = np.searchsorted(ids[order], wanted, side="right") - 1
    found = (wanted >= 0) & (index >= 0)
    found[found] = ids[order[index[found]]] == wanted[found]
    result = np.full(len(wanted), -1, dtype=np.intp)
    result[found] = order[index[found]]
    return result


def _enclosing_other(events: Events, ops: Index, end: Int64) -> Index:
    """Return for each op the nearest op around it that is not ATen's (-1: none), itself where it is none of ATen's."""
    is_aten: Bool = np.array([name.startswith("aten::") for name in events.names] or [False])[events.name[ops]]
    nearest = np.where(is_aten, -1, np.arange(len(ops)))
    for index, outer in enumerate(next_outer(end).tolist()):  # an outer op comes before those inside
        if nearest[index] < 0 and outer >= 0:
            nearest[index] = nearest[outer]
    return nearest
