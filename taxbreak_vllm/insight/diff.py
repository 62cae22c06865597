"""What moved between two breakdowns: by phase, by op and kernel, by family.

In: two `Breakdown`s. Out: `Diff`. The two may hold different numbers of steps, so headline figures are medians over
steps with their quartiles, and rows are averages per step. What is unknown on either side stays `None`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Literal

import msgspec
import numpy as np

from taxbreak_vllm.model.breakdown import (
    Breakdown,
    DeviceTime,
    ExposedTax,
    FamilyShare,
    HostTime,
    IdleTime,
    Source,
    StepBreakdown,
    Taxes,
    TopRow,
)
from taxbreak_vllm.model.step import Phase

DIFF_SCHEMA = "taxbreak.diff/1"
MIN_STEPS = 3  # quartiles of fewer steps say nothing about spread

Number = int | float
Status = Literal["both", "new", "vanished"]

_Entries = Sequence[TopRow] | Sequence[FamilyShare]
_ROW_TIMES = ("delta_ft_ns", "delta_ct_ns", "delta_kt_ns", "active_ns")


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One value in a and in b: `absolute` = b - a, `relative` = absolute / a; None where it cannot be told."""

    a: Number | None
    b: Number | None
    absolute: Number | None
    relative: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Quartiles:
    """A figure over steps: median, first and third quartile."""

    median: Number
    low: Number
    high: Number


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A headline figure over the steps of both sides; `absolute` and `relative` compare the medians.

    `is_clear`: the ranges between the quartiles do not overlap; None with fewer than `MIN_STEPS` steps on a side.
    """

    name: str
    a: Quartiles | None
    b: Quartiles | None
    absolute: Number | None
    relative: float | None
    is_clear: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RowDiff:
    """One (op, kernel) pair, averages per step."""

    op: str
    kernel: str
    family: str
    status: Status
    count: Change
    delta_ft_ns: Change
    delta_ct_ns: Change
    delta_kt_ns: Change
    active_ns: Change


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyDiff:
    """One family of kernels, averages per step."""

    family: str
    status: Status
    kernels: Change
    launches: Change
    active_ns: Change


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """The steps of one phase, or of all (`name` is "total"); rows and families those first that moved most.

    A side without such a step (`steps_a` or `steps_b` is 0) has None everywhere, and no row is new or vanished then.
    """

    name: str
    phase: Phase | None
    steps_a: int
    steps_b: int
    figures: tuple[Figure, ...]
    rows: tuple[RowDiff, ...]
    families: tuple[FamilyDiff, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Diff:
    """Two breakdowns side by side."""

    a: Source
    b: Source
    sections: tuple[Section, ...]
    notes: tuple[str, ...] = ()
    schema: str = DIFF_SCHEMA

    def to_builtins(self) -> dict[str, Any]:
        """Return the difference as dicts, lists and numbers."""
        tree: dict[str, Any] = msgspec.to_builtins(self)
        return tree

    def to_json(self) -> bytes:
        """Encode as one JSON object."""
        return msgspec.json.encode(self)


def diff(a: Breakdown, b: Breakdown) -> Diff:
    """Compare two breakdowns, from a to b: phase by phase where both know a phase in common, else over all steps."""
    phases_a, phases_b = ({step.phase for step in side.steps} for side in (a, b))
    notes = list(_differences(a, b))
    if (phases_a & phases_b) - {None}:
        wanted = [phase for phase in (*Phase, None) if phase in phases_a | phases_b]
        sections = [
            _section(
                str(phase) if phase else "unknown phase",
                phase,
                [step for step in a.steps if step.phase is phase],
                [step for step in b.steps if step.phase is phase],
            )
            for phase in wanted
        ]
    else:
        if phases_a | phases_b != {None}:
            notes.append("no phase is known on both sides, so all steps are compared, whatever their phase")
        sections = [_section("total", None, a.steps, b.steps)]
    return Diff(a=a.source, b=b.source, sections=tuple(sections), notes=tuple(notes))


def _differences(a: Breakdown, b: Breakdown) -> Iterable[str]:
    """Say what else differs, so that nobody takes it for the change that was made."""
    for what, of in _CIRCUMSTANCES.items():
        left, right = of(a), of(b)
        if left != right:
            yield f"{what} differs: {left or 'unknown'} in a, {right or 'unknown'} in b"
    for side, breakdown in (("a", a), ("b", b)):
        yield from dict.fromkeys(f"of {side}: {reason}" for reason in breakdown.evidence.withheld.values())


_CIRCUMSTANCES: Mapping[str, Callable[[Breakdown], str]] = {
    "attribution": lambda breakdown: breakdown.attribution,
    "calibration": lambda breakdown: breakdown.calibration.state,
    "device": lambda breakdown: breakdown.source.device_name or breakdown.source.device_type,
    "model": lambda breakdown: breakdown.source.model_name,
    "dtype": lambda breakdown: breakdown.source.dtype,
    "torch": lambda breakdown: breakdown.source.torch,
    "vllm": lambda breakdown: breakdown.source.vllm,
    "graph mode": lambda breakdown: ", ".join(sorted({step.graph_mode or "" for step in breakdown.steps})),
    "source of the floor": lambda breakdown: ", ".join(sorted(breakdown.coverage.replay)),
}


def _section(name: str, phase: Phase | None, a: Sequence[StepBreakdown], b: Sequence[StepBreakdown]) -> Section:
    return Section(
        name=name,
        phase=phase,
        steps_a=len(a),
        steps_b=len(b),
        figures=tuple(_figure(path, a, b) for path in _FIGURES),
        rows=_rows(a, b),
        families=_families(a, b),
    )


# Paths into a StepBreakdown, dotted as in its JSON.
_FIGURES = (
    "window_ns",
    "hdbi",
    *(f"host.{name}" for name in HostTime.__dataclass_fields__),
    *(f"device.{name}" for name in DeviceTime.__dataclass_fields__ if name != "idle"),
    *(f"device.idle.{name}" for name in IdleTime.__dataclass_fields__),
    *(f"taxes.{name}" for name in Taxes.__dataclass_fields__),
    *(f"exposed.{name}" for name in ExposedTax.__dataclass_fields__),
    "tklqt_ns",
    "tklqt_per_kernel_ns",
    "akd_ns",
    "inference_latency_ns",
    "launches",
    "kernels",
    "unique_kernels",
    "kernels_per_output_token",
)


def _figure(path: str, a: Sequence[StepBreakdown], b: Sequence[StepBreakdown]) -> Figure:
    read = attrgetter(path)
    left, right = (_spread([read(step) for step in steps], is_time=path.endswith("_ns")) for steps in (a, b))
    change = _change(left.median if left else None, right.median if right else None)
    is_clear = None
    if left and right and min(len(a), len(b)) >= MIN_STEPS:
        is_clear = left.high < right.low or right.high < left.low
    return Figure(name=path, a=left, b=right, absolute=change.absolute, relative=change.relative, is_clear=is_clear)


def _spread(values: Sequence[Number | None], *, is_time: bool) -> Quartiles | None:
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None  # a median of the steps that happen to be known would stand for others
    low, median, high = np.percentile(known, (25, 50, 75)).tolist()
    if is_time:
        low, median, high = round(low), round(median), round(high)
    return Quartiles(median=median, low=low, high=high)


def _change(a: Number | None, b: Number | None) -> Change:
    if a is None or b is None:
        return Change(a=a, b=b, absolute=None, relative=None)
    return Change(a=a, b=b, absolute=b - a, relative=(b - a) / a if a else None)


def _changes(fields: Sequence[str], of_a: _Entries, of_b: _Entries, num_a: int, num_b: int) -> dict[str, Change]:
    """Compare fields of the entries of one pair or family, averaged over all steps of each side."""
    return {
        field: _change(
            _average([getattr(entry, field) for entry in of_a], num_a, is_time=field.endswith("_ns")),
            _average([getattr(entry, field) for entry in of_b], num_b, is_time=field.endswith("_ns")),
        )
        for field in fields
    }


def _average(values: Sequence[int | None], num_steps: int, *, is_time: bool) -> Number | None:
    """Average over all steps of a side, those without the entry included; None without steps or with one unknown."""
    known = [value for value in values if value is not None]
    if not num_steps or len(known) < len(values):
        return None
    return round(sum(known) / num_steps) if is_time else sum(known) / num_steps


def _status(of_a: _Entries, of_b: _Entries, num_a: int, num_b: int) -> Status:
    if not num_a or not num_b or (of_a and of_b):
        return "both"
    return "vanished" if of_a else "new"


def _rows(a: Sequence[StepBreakdown], b: Sequence[StepBreakdown]) -> tuple[RowDiff, ...]:
    left, right = _rows_by_pair(a), _rows_by_pair(b)
    rows = []
    for pair in left.keys() | right.keys():
        of_a, of_b = left.get(pair, []), right.get(pair, [])
        changes = _changes(("count", *_ROW_TIMES), of_a, of_b, len(a), len(b))
        op, kernel = pair
        family = (of_b or of_a)[0].family
        status = _status(of_a, of_b, len(a), len(b))
        rows.append(RowDiff(op=op, kernel=kernel, family=family, status=status, **changes))
    return tuple(sorted(rows, key=lambda row: (-_moved(row, _ROW_TIMES), row.op, row.kernel)))


def _rows_by_pair(steps: Sequence[StepBreakdown]) -> dict[tuple[str, str], list[TopRow]]:
    rows: dict[tuple[str, str], list[TopRow]] = {}
    for step in steps:
        for row in step.top:
            rows.setdefault((row.op, row.kernel), []).append(row)
    return rows


def _families(a: Sequence[StepBreakdown], b: Sequence[StepBreakdown]) -> tuple[FamilyDiff, ...]:
    families = []
    for name in {name for step in (*a, *b) for name in step.families}:
        of_a, of_b = ([step.families[name] for step in steps if name in step.families] for steps in (a, b))
        changes = _changes(tuple(FamilyShare.__dataclass_fields__), of_a, of_b, len(a), len(b))
        families.append(FamilyDiff(family=name, status=_status(of_a, of_b, len(a), len(b)), **changes))
    return tuple(sorted(families, key=lambda family: (-_moved(family, ("active_ns",)), family.family)))


def _moved(entry: RowDiff | FamilyDiff, fields: Sequence[str]) -> float:
    """How far an entry moved in all, for sorting; where a side has no steps, how much the other has."""
    changes: list[Change] = [getattr(entry, field) for field in fields]
    return sum(abs(c.absolute if c.absolute is not None else c.b or c.a or 0) for c in changes)
