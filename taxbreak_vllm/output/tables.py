"""Dispatches and steps as pandas data frames.

In: recordings, breakdowns. Out: one row per dispatch with all its spans, one row per step with all its
figures; integer ns, missing values as NA.
"""

import dataclasses
from collections.abc import Callable, Sequence
from operator import attrgetter
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from taxbreak_vllm.model.breakdown import Attribution, Breakdown, StepBreakdown
from taxbreak_vllm.taxes.measured import Measured, group_by_time
from taxbreak_vllm.taxes.recording import Recording, opened
from taxbreak_vllm.taxes.terms import Terms
from taxbreak_vllm.taxes.tiers import TIERS
from taxbreak_vllm.trace.dispatches import Bool
from taxbreak_vllm.trace.intervals import Index, Int64
from taxbreak_vllm.trace.kernels import KernelRules
from taxbreak_vllm.trace.steps import StepWindow, whole_trace

if TYPE_CHECKING:
    from taxbreak_vllm.baselines.store import Baselines


def dispatches(
    source: Recording | str | Path,
    *,
    floor_ns: int | None = None,
    rules: KernelRules | None = None,
    attribution: Attribution = Attribution.EXCLUSIVE,
    baselines: "Baselines | None" = None,
) -> pd.DataFrame:
    """Return one row per dispatch of a trace or capture, in launch order, every time and span in ns.

    The keywords are those of `analyze`; a recording that is open already has its own terms.

    step, phase, thread ("pid:tid") · op (leaf), root_op, launch (the call) · kernel (its first; the copy or fill where
    there is none), family, i_lib, device, stream · t_root, t_launch, t_return, t_dev, t_end on the trace's own clock ·
    t_py_ns, t_dispatch_ns, t_launch_ns (t_dev - t_launch, negative where a trace says so) · delta_ft_ns, delta_ct_ns,
    delta_kt_ns · num_kernels, num_activities, is_graph, tier. Definitions: methodology sections 2 and 3. NA is what
    does not exist (no op around a launch, no step) or could not be measured.

    Raises TraceFormatError for a file that is missing, damaged or not a trace, SpoolError for a capture without its
    StepInfo.
    """
    terms = Terms(rules=rules or KernelRules.load(), floor_ns=floor_ns, attribution=attribution, baselines=baselines)
    with opened(source, terms) as recording:
        return dispatch_table(recording.measured, recording.windows)


def dispatch_table(m: Measured, windows: Sequence[StepWindow]) -> pd.DataFrame:
    """Return one row per dispatch; `windows` are the trace's steps, and a trace without any is one step."""
    a, d, names = m.activities, m.dispatches, m.events.names
    order = np.argsort(d.launch_ns, kind="stable")
    step = group_by_time(windows, d.launch_ns) if windows else np.zeros(len(d), dtype=np.intp)
    windows = windows or [whole_trace(m.events)]
    shown = np.where(d.first_kernel >= 0, d.first_kernel, d.first)
    kind = m.kind[shown]
    # On the CPU backend an op is its own launch: there is no call and no launch path.
    is_launched = np.full(len(d), m.backend.has_launches)
    t_dev = a.start_ns[d.first]
    t_end = np.full(len(d), np.iinfo(np.int64).min)
    linked = a.dispatch >= 0
    np.maximum.at(t_end, a.dispatch[linked], a.end_ns[linked])
    has_root = d.root >= 0
    root_name, t_root = _roots(m)
    threads = [":".join(thread) for thread in m.events.threads]
    columns = {
        "step": _texts([w.name for w in windows], step, step >= 0),
        "phase": _texts([w.phase for w in windows], step, step >= 0),
        "thread": _texts(threads, d.thread),
        "op": _texts(names, d.leaf_name, d.leaf_name >= 0),
        "root_op": _texts(names, root_name, has_root),
        "launch": _texts(names, m.events.name[d.row], is_launched),
        "kernel": _texts(names, a.name[shown]),
        "family": _texts([k.family for k in m.kinds], kind),
        "i_lib": np.array([k.i_lib for k in m.kinds], dtype=bool)[m.kind[d.first]] & ~d.is_graph,
        "device": a.device[shown],
        "stream": a.stream[shown],
        "t_root": _integers(t_root, has_root),
        "t_launch": d.launch_ns,
        "t_return": d.return_ns,
        "t_dev": t_dev,
        "t_end": t_end,
        "t_py_ns": m.spans.t_py,
        "t_dispatch_ns": m.spans.t_dispatch,
        "t_launch_ns": _integers(t_dev - d.launch_ns, is_launched),
        "delta_ft_ns": _integers_or_na(m.taxes.delta_ft_ns, len(d)),
        "delta_ct_ns": _integers_or_na(m.taxes.delta_ct_ns, len(d)),
        "delta_kt_ns": _integers_or_na(m.taxes.delta_kt_ns, len(d)),
        "num_kernels": d.num_kernels,
        "num_activities": d.num_activities,
        "is_graph": d.is_graph,
        "tier": _texts(list(TIERS), m.tier),
    }
    return pd.DataFrame(columns).iloc[order].reset_index(drop=True)


def step_table(breakdown: Breakdown) -> pd.DataFrame:
    """Return one row per step with all its figures, in ns; nested names are joined by dots, `name` is `step`."""
    types = column_types(StepBreakdown)
    readers = {name: _reader(name) for name in types}
    rows = [{name: read(step) for name, read in readers.items()} for step in breakdown.steps]
    table = pd.DataFrame(rows, columns=list(types)).astype(types).rename(columns={"name": "step"})
    return table.assign(notes=pd.Series(["; ".join(step.notes) for step in breakdown.steps], dtype="string"))


def _reader(path: str) -> Callable[[StepBreakdown], Any]:
    """Return what reads a figure by its path; of a part that is None all figures are."""
    read = attrgetter(path)
    parent = attrgetter(path.rpartition(".")[0]) if "." in path else None
    return lambda step: None if parent is not None and parent(step) is None else read(step)


def column_types(cls: type, prefix: str = "") -> dict[str, str]:
    """Return the column type of each figure of a dataclass of `model`, so that an unknown one has its type too."""
    types: dict[str, str] = {}
    for name, hint in get_type_hints(cls).items():
        kind = next((kind for kind in get_args(hint) if kind is not NoneType), hint) if _is_optional(hint) else hint
        if not isinstance(kind, type):
            continue  # families, top and notes are collections
        if dataclasses.is_dataclass(kind):
            types |= column_types(kind, f"{prefix}{name}.")
        else:
            types[prefix + name] = next(column for base, column in _COLUMN_BY_KIND.items() if issubclass(kind, base))
    return types


def _is_optional(hint: object) -> bool:
    return NoneType in get_args(hint)


_COLUMN_BY_KIND = {bool: "boolean", int: "Int64", float: "Float64", str: "string"}


def _roots(m: Measured) -> tuple[Index, Int64]:
    """Return for each dispatch the name of its root op (-1: none) and t_root in trace time."""
    e, d, host = m.events, m.dispatches, m.host
    name, t_root = np.full(len(d), -1, dtype=np.intp), d.launch_ns.copy()
    has_root = d.root >= 0
    start = host.root_start[d.root[has_root]]
    # Ops come by start, the longest first, so the first that starts with the root is the root.
    op_start = host.key(e.thread[host.op_row], e.start_ns[host.op_row])
    name[has_root] = e.name[host.op_row[np.searchsorted(op_start, start, side="left")]]
    t_root[has_root] -= d.launch_key[has_root] - start
    return name, t_root


def _texts(texts: Sequence[str | None], index: NDArray[np.integer[Any]], known: Bool | None = None) -> pd.Series:
    # The spare last entry is NA, and -1 picks it.
    choice = np.array([*(None if text is None else str(text) for text in texts), None], dtype=object)
    return pd.Series(choice[index if known is None else np.where(known, index, -1)], dtype="string")


def _integers(values: Int64, known: Bool) -> pd.Series:
    return pd.Series(values, dtype="Int64").where(known)


def _integers_or_na(values: Int64 | None, length: int) -> pd.Series:
    return pd.Series(pd.NA, index=range(length), dtype="Int64") if values is None else pd.Series(values, dtype="Int64")
