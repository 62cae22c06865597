"""Dispatches, steps and rows as named columns: what data frames and Parquet files are made of.

In: what was measured, breakdowns. Out: a `Column` per figure, in integer ns where it is a time, with what is missing
told from what is 0.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import NoneType
from typing import Any, Literal, get_args, get_type_hints

import numpy as np
from numpy.typing import NDArray

from taxbreak_vllm.model.breakdown import Breakdown, StepBreakdown, TopRow
from taxbreak_vllm.taxes.measured import Measured, group_by_time
from taxbreak_vllm.taxes.tiers import TIERS
from taxbreak_vllm.trace.dispatches import Bool
from taxbreak_vllm.trace.intervals import Index, Int64
from taxbreak_vllm.trace.steps import StepWindow, whole_trace

Kind = Literal["boolean", "Int64", "Float64", "string"]  # pandas' words for what may be missing
Columns = Mapping[str, "Column"]

_KIND_BY_TYPE: dict[type, Kind] = {bool: "boolean", int: "Int64", float: "Float64", str: "string"}
_DTYPE_BY_KIND = {"boolean": np.bool_, "Int64": np.int64, "Float64": np.float64}


@dataclasses.dataclass(frozen=True, slots=True)
class Column:
    """The values of one column, one for each row.

    `values` hold what is `known` (None: all, and none could be missing); of a string they are places in `texts`.
    """

    kind: Kind
    values: NDArray[Any]
    known: Bool | None = None
    texts: tuple[str, ...] = ()

    @classmethod
    def of(cls, kind: Kind, values: Sequence[Any]) -> "Column":
        """Make a column of plain values, None where one is missing."""
        known = np.array([value is not None for value in values], dtype=bool)
        if kind == "string":
            places: dict[str, int] = {}
            index = [0 if text is None else places.setdefault(str(text), len(places)) for text in values]
            return cls(kind, np.array(index, dtype=np.intp), known, tuple(places))
        return cls(kind, np.array([value or 0 for value in values], dtype=_DTYPE_BY_KIND[kind]), known)


def dispatch_columns(m: Measured, windows: Sequence[StepWindow]) -> Columns:
    """Return the columns of `tables.dispatches`; `windows` are the trace's steps, and one without any is one step."""
    a, d, names = m.activities, m.dispatches, m.events.names
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
    columns = {
        "step": _texts([w.name for w in windows], step, step >= 0),
        "phase": _texts([w.phase for w in windows], step, step >= 0),
        "thread": _texts([":".join(thread) for thread in m.events.threads], d.thread),
        "op": _texts(names, d.leaf_name, d.leaf_name >= 0),
        "root_op": _texts(names, root_name, has_root),
        "launch": _texts(names, m.events.name[d.row], is_launched),
        "kernel": _texts(names, a.name[shown]),
        "family": _texts([k.family for k in m.kinds], kind),
        "i_lib": Column("boolean", np.array([k.i_lib for k in m.kinds], dtype=bool)[m.kind[d.first]] & ~d.is_graph),
        "device": Column("Int64", a.device[shown]),
        "stream": Column("Int64", a.stream[shown]),
        "t_root": Column("Int64", t_root, has_root),
        "t_launch": Column("Int64", d.launch_ns),
        "t_return": Column("Int64", d.return_ns),
        "t_dev": Column("Int64", t_dev),
        "t_end": Column("Int64", t_end),
        "t_py_ns": Column("Int64", m.spans.t_py),
        "t_dispatch_ns": Column("Int64", m.spans.t_dispatch),
        "t_launch_ns": Column("Int64", t_dev - d.launch_ns, is_launched),
        "delta_ft_ns": _known_or_not(m.taxes.delta_ft_ns, len(d)),
        "delta_ct_ns": _known_or_not(m.taxes.delta_ct_ns, len(d)),
        "delta_kt_ns": _known_or_not(m.taxes.delta_kt_ns, len(d)),
        "num_kernels": Column("Int64", d.num_kernels),
        "num_activities": Column("Int64", d.num_activities),
        "is_graph": Column("boolean", d.is_graph),
        "tier": _texts(list(TIERS), m.tier),
    }
    order = np.argsort(d.launch_ns, kind="stable")
    return {name: _taken(column, order) for name, column in columns.items()}


def step_columns(breakdown: Breakdown) -> Columns:
    """Return a row for each step with all its figures; nested names are joined by dots, `name` is `step`."""
    columns = {
        "step" if name == "name" else name: Column.of(kind, [read(step) for step in breakdown.steps])
        for name, kind, read in figures(StepBreakdown)
    }
    return columns | {"notes": Column.of("string", ["; ".join(step.notes) for step in breakdown.steps])}


def row_columns(breakdown: Breakdown) -> Columns:
    """Return a row for each step, op and kernel."""
    rows = [(step, row) for step in breakdown.steps for row in step.top]
    return {
        "step": Column.of("string", [step.name for step, _ in rows]),
        "phase": Column.of("string", [step.phase for step, _ in rows]),
    } | {name: Column.of(kind, [read(row) for _, row in rows]) for name, kind, read in figures(TopRow)}


def figures(cls: type, prefix: str = "") -> Iterable[tuple[str, Kind, Callable[[Any], Any]]]:
    """Yield each figure of a dataclass of `model`: its name, the kind of its column, and what reads it.

    The type says what a column holds, as its values may all be missing; of a part that is None all figures are.
    """
    for name, hint in get_type_hints(cls).items():
        is_optional = NoneType in get_args(hint)
        kind = next(kind for kind in get_args(hint) if kind is not NoneType) if is_optional else hint
        if not isinstance(kind, type):
            continue  # families, top and notes are collections
        if dataclasses.is_dataclass(kind):
            yield from figures(kind, f"{prefix}{name}.")
        else:
            yield (
                prefix + name,
                next(_KIND_BY_TYPE[base] for base in _KIND_BY_TYPE if issubclass(kind, base)),
                _reader(prefix + name),
            )


def _reader(path: str) -> Callable[[Any], Any]:
    names = path.split(".")

    def read(part: Any) -> Any:  # noqa: ANN401
        for name in names:
            part = None if part is None else getattr(part, name)
        return part

    return read


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


def _texts(texts: Sequence[str | None], index: NDArray[np.integer[Any]], known: Bool | None = None) -> Column:
    is_text = np.array([text is not None for text in texts], dtype=bool)
    index = index if known is None else np.where(known, index, 0)
    known = is_text[index] if known is None else known & is_text[index]
    used, place = np.unique(np.where(known, index, -1), return_inverse=True)
    return Column("string", place, known, tuple("" if number < 0 else str(texts[number]) for number in used.tolist()))


def _known_or_not(values: Int64 | None, length: int) -> Column:
    known = np.full(length, values is not None)
    return Column("Int64", np.zeros(length, dtype=np.int64) if values is None else values, known)


def _taken(column: Column, order: Index) -> Column:
    known = None if column.known is None else column.known[order]
    return dataclasses.replace(column, values=column.values[order], known=known)
