"""The steps of a time window, or of a request for steps, as one breakdown: sums that SQLite makes of their columns.

SQL's `sum` is over what is known and NULL where nothing is, which is what a sum of breakdowns means. It runs without
the interpreter's lock, so other requests are answered meanwhile.
"""

import sqlite3
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from operator import attrgetter
from typing import Any, TypeVar, get_type_hints

import msgspec

from taxbreak_vllm.model.breakdown import (
    Breakdown,
    Calibration,
    Coverage,
    FamilyShare,
    Source,
    StepBreakdown,
    Tier,
    TopRow,
)
from taxbreak_vllm.model.server import PhaseBalance
from taxbreak_vllm.model.step import Phase
from taxbreak_vllm.taxes.add import derived

MAX_STEPS = 10_000  # some tenths of a second of one core
MAX_LISTED_STEPS = 200
MAX_NOTES = 20  # many name a figure of their own step
MAX_TOP = 50
TIERS = tuple(Tier)

T = TypeVar("T")


def _paths(kind: type, prefix: str = "") -> Iterator[str]:
    """Yield the path of every integer below a dataclass, but for those that no sum makes."""
    for name, hint in get_type_hints(kind).items():
        if isinstance(hint, type) and is_dataclass(hint):
            yield from _paths(hint, f"{prefix}{name}.")
        elif hint in (int, int | None) and name not in ("akd_ns", "unique_kernels"):
            yield prefix + name


STEP_SUMS = tuple(_paths(StepBreakdown))
COVERAGE_SUMS = tuple(_paths(Coverage, "coverage."))
FAMILY_SUMS = tuple(_paths(FamilyShare))
TOP_SUMS = tuple(_paths(TopRow))

TIER_SUMS = tuple(f"replay.{tier}_ns" for tier in TIERS)  # orchestration time that rests on each

SUMMED = (*STEP_SUMS, *COVERAGE_SUMS, *TIER_SUMS)
_step_values = attrgetter(*STEP_SUMS)
_coverage_values = attrgetter(*COVERAGE_SUMS)


def summed_values(breakdown: Breakdown) -> dict[str, int | None]:
    """Return what the one step of a breakdown adds to each of the sums in `SUMMED`."""
    (step,) = breakdown.steps
    shares, weight_ns = breakdown.coverage.replay, step.taxes.orchestration_ns or 0
    tiers_ns = (round(shares[tier] * weight_ns) if tier in shares else None for tier in TIERS)
    return dict(zip(SUMMED, (*_step_values(step), *_coverage_values(breakdown), *tiers_ns), strict=True))


_MAY_BE_UNKNOWN = ("device.idle", "exposed.")  # of all of the steps; without a step they are 0

# What a scrape reads of a step: the balance, over the steps that have one, and the tiers.
BALANCE_SUMS = ", ".join(
    (
        'sum("device.active_ns") FILTER (WHERE hdbi IS NOT NULL)',
        'sum("taxes.orchestration_ns") FILTER (WHERE hdbi IS NOT NULL)',
        "count(hdbi)",
        *(f'sum("{path}")' for path in TIER_SUMS),
    )
)

_OF_WHOLE_DEVICES = tuple(f"device.{name}_ns" for name in ("window", "active", "other_active", "idle"))


def _sum(path: str) -> str:
    """Sum a column over the steps that know it; what the device's window divides into, over those that know all of it,
    as `add_steps` does.
    """
    if path not in _OF_WHOLE_DEVICES:
        return f'sum("{path}")'
    whens = (
        f'WHEN count("{known}") THEN sum("{path}") FILTER (WHERE "{known}" IS NOT NULL)'
        for known in ("device.idle.host_ns", "device.idle_ns")
    )
    return f'CASE {" ".join(whens)} ELSE sum("{path}") END'


_TOTALS = f"""
SELECT count(*), max(unique_kernels),
    CASE WHEN min(graph_mode) = max(graph_mode) THEN min(graph_mode) END,
    {BALANCE_SUMS}, {", ".join(map(_sum, (*STEP_SUMS, *COVERAGE_SUMS)))}
FROM chosen JOIN steps USING (seq)
"""
_PHASES = f"""
SELECT phase, {BALANCE_SUMS} FROM chosen JOIN steps USING (seq) JOIN series USING (series_id) GROUP BY phase
"""
_FAMILIES = f"""
SELECT family, {", ".join(f'sum("{path}")' for path in FAMILY_SUMS)} FROM chosen JOIN families USING (seq)
GROUP BY family ORDER BY family
"""
_TOP = f"""
SELECT op, kernel, family, i_lib, worst, {", ".join(f'sums."{path}"' for path in TOP_SUMS)}
FROM (
    SELECT op_id, max(tier) AS worst, {", ".join(f'sum("{path}") AS "{path}"' for path in TOP_SUMS)}
    FROM chosen JOIN top USING (seq) GROUP BY op_id
) AS sums JOIN ops USING (op_id)
ORDER BY coalesce(delta_ft_ns, 0) + coalesce(delta_ct_ns, 0) + active_ns DESC, op_id
"""
_LISTED = """
SELECT breakdown FROM chosen JOIN steps USING (seq) JOIN breakdowns USING (seq)
ORDER BY started_unix_ns DESC, seq DESC LIMIT ?
"""


@dataclass(frozen=True, slots=True)
class Window:
    """All steps chosen, as one: how many, their sum, and the newest of them, named by their ids, as JSON.

    `num_top` counts the rows that `top` of the sum was taken from. `balances` are, by phase, of the steps that have an
    HDBI.
    """

    num_steps: int
    num_top: int
    breakdown: Breakdown
    steps: tuple[msgspec.Raw, ...]
    balances: dict[Phase, PhaseBalance]

    def to_builtins(self) -> dict[str, Any]:
        """Return the JSON object of a breakdown, for msgspec to encode: the steps in it are JSON already."""
        return self.breakdown.to_builtins() | {"steps": self.steps}


def read_window(
    db: sqlite3.Connection,
    *,
    listed: int = MAX_LISTED_STEPS,
    with_ops: bool = True,
    top: slice = slice(MAX_TOP),
) -> Window:
    """Add up the steps whose `seq` the table `chosen` holds; of source, phase and graph mode what all share is kept.

    Without ops, which are most of the rows, the total has neither `top` nor `families`; else `top` says which rows of
    all it has.
    """
    row = db.execute(_TOTALS).fetchone()
    num_steps, unique_kernels, graph_mode, active_ns, orchestration_ns, _, *sums = row
    unknown = _MAY_BE_UNKNOWN if num_steps else ()
    tree = _tree(zip((*STEP_SUMS, *COVERAGE_SUMS), sums[len(TIERS) :], strict=True), unknown)
    coverage = msgspec.convert(tree.pop("coverage", {}), Coverage)
    total = msgspec.convert(tree, StepBreakdown)
    balances = {
        Phase(phase): PhaseBalance(num_steps=num, active_ns=active or 0, orchestration_ns=orchestration or 0)
        for phase, active, orchestration, num, *_ in db.execute(_PHASES)
    }
    families = db.execute(_FAMILIES) if with_ops else ()
    top_rows = db.execute(_TOP).fetchall() if with_ops else []
    total = replace(
        derived(total, active_ns=active_ns or 0, orchestration_ns=orchestration_ns),
        phase=next(iter(balances)) if len(balances) == 1 else None,
        graph_mode=graph_mode,
        unique_kernels=unique_kernels or 0,
        families={family: _family_share(values) for family, *values in families},
        top=tuple(_top_row(*row) for row in top_rows[top]),
        notes=_notes(db, "step_notes"),
    )
    steps = tuple(_decode_stored(data).steps[0] for (data,) in db.execute(_LISTED, (listed,)))
    notes = _notes(db, "notes")
    if 0 < len(steps) < num_steps:
        notes = (f"{len(steps)} newest of {num_steps} steps listed, all in total", *notes)
    breakdown = Breakdown(
        source=_common(Source, [msgspec.json.decode(text, type=Source) for text in _distinct(db, "source")]),
        calibration=_calibration(db),
        coverage=replace(coverage, replay=replay_shares(sums[: len(TIERS)])),
        total=total,
        notes=notes,
    )
    return Window(num_steps, len(top_rows), breakdown, steps, balances)


def top_values(row: TopRow) -> dict[str, int | None]:
    """Return what a row adds to each of the sums of its op and kernel in `TOP_SUMS`."""
    return {name: getattr(row, name) for name in TOP_SUMS}


def family_values(share: FamilyShare) -> dict[str, int]:
    """Return what the share of a step adds to each of the sums of its family in `FAMILY_SUMS`."""
    return {name: getattr(share, name) for name in FAMILY_SUMS}


def replay_shares(tier_sums: Iterable[int | None]) -> dict[Tier, float]:
    """Return the share of each tier that was seen, of the orchestration time that rests on each in `Tier`'s order."""
    known = {tier: value for tier, value in zip(TIERS, tier_sums, strict=True) if value is not None}
    total = sum(known.values())
    return {tier: value / total for tier, value in known.items()} if total else {}


def median(values: Iterable[float | None]) -> float | None:
    """Return the median of what is known."""
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _tree(values: Iterable[tuple[str, int | None]], unknown: tuple[str, ...] = ()) -> dict[str, Any]:
    """Put values back where their paths say; what is None is left to the default of its dataclass, or is `unknown`."""
    tree: dict[str, Any] = {}
    for path, value in values:
        if value is not None or path.startswith(unknown):
            *parents, name = path.split(".")
            branch = tree
            for parent in parents:
                branch = branch.setdefault(parent, {})
            branch[name] = value
    return tree


class _Stored(msgspec.Struct):
    steps: tuple[msgspec.Raw, ...]


_decode_stored = msgspec.json.Decoder(_Stored).decode


def _distinct(db: sqlite3.Connection, column: str) -> list[Any]:
    return [value for (value,) in db.execute(f"SELECT DISTINCT {column} FROM chosen JOIN steps USING (seq)")]


def _notes(db: sqlite3.Connection, column: str) -> tuple[str, ...]:
    lists = (msgspec.json.decode(text, type=list[str]) for text in _distinct(db, column))
    notes = tuple(dict.fromkeys(note for found in lists for note in found))
    if len(notes) > MAX_NOTES:
        notes = (*notes[:MAX_NOTES], f"{len(notes) - MAX_NOTES} more notes are with the single steps")
    return notes


def _family_share(values: Sequence[int | None]) -> FamilyShare:
    return msgspec.convert(_tree(zip(FAMILY_SUMS, values, strict=True)), FamilyShare)


def _top_row(op: str, kernel: str, family: str, i_lib: int, tier: int, *values: int) -> TopRow:
    sums: dict[str, Any] = dict(zip(TOP_SUMS, values, strict=True))
    return TopRow(op=op, kernel=kernel, family=family, i_lib=bool(i_lib), tier=TIERS[tier], **sums)


def _common(kind: type[T], rows: Sequence[T]) -> T:
    """Keep the fields that are the same in all rows, and the default of the others."""
    values: dict[str, Any] = {field.name: {getattr(row, field.name) for row in rows} for field in fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: found.pop() for name, found in values.items() if len(found) == 1})


def _calibration(db: sqlite3.Connection) -> Calibration:
    rows = db.execute("SELECT dilation, residual, calibration FROM chosen JOIN steps USING (seq)").fetchall()
    states = {state for _, _, state in rows}
    return Calibration(
        dilation=median(dilation for dilation, _, _ in rows),
        residual=median(residual for _, residual, _ in rows),
        state=states.pop() if len(states) == 1 else Calibration().state,
    )
