"""Device time beside what the hardware allows, as text. In: `Limit`, or why there is none. Out: lines and tables."""

from collections.abc import Iterable, Mapping

from taxbreak_vllm.limit.phases import by_phase
from taxbreak_vllm.model.breakdown import Breakdown
from taxbreak_vllm.model.ceilings import Ceilings
from taxbreak_vllm.model.limit import Bar, Bound, Limit, OpLimit
from taxbreak_vllm.model.limits import PhaseLimit
from taxbreak_vllm.model.step import Phase
from taxbreak_vllm.output.text.table import Column, Kind, Table
from taxbreak_vllm.output.words import UNKNOWN, duration, percent

MAX_REASONS = 4

_MEANINGS = {
    Bound.COMPUTE: "its products take longer than its bytes",
    Bound.MEMORY: "its bytes take longer than its products",
    Bound.LATENCY: "the shortest kernel takes longer than either",
}
BAR_WORDS = {
    "limit": "hard limit",
    "above": "kernels above the limit",
    "delta_ft": "waits: framework (ΔFT)",
    "delta_ct": "waits: library (ΔCT)",
    "delta_kt": "waits: launch path (ΔKT)",
    "other": "waits: other runtime calls",
    "engine": "waits: engine loop",
    "other_idle": "other idle",
    "unknown": "unknown",
}


def limit_text(limit: Limit | str | None, top: int) -> Iterable[str | Table]:
    """Say what of the device's time the hardware asks for, and show the ops with most time above that."""
    if limit is None:
        return
    if isinstance(limit, str):
        yield f"hardware limit: not told, {limit}"
        return
    yield from _lines(limit)
    if limit.bar is not None and (limit.mfu, limit.mbu) != (None, None):
        yield _bar_table({None: _as_phase(limit, limit.bar)})
    if limit.bound_ns is not None:
        yield _bound_table(limit)
    if top and limit.ops:
        yield _op_table(limit, top)


def _lines(limit: Limit) -> Iterable[str]:
    yield f"hardware limit (ceilings: {_whose(limit.ceilings)})"
    yield f"the work of {percent(limit.coverage)} of {duration(limit.device_ns)} device time is known"
    if limit.floor_ns is not None:
        least, most = limit.floor_ns
        upto = f" to {duration(most)}" if most > least else ""
        yield (
            f"the least it could take is {duration(least)}{upto}, op by op; {duration(limit.above_ns)} lie above that"
        )
    rates = [f"{tera(limit.flops_per_s)} in matrix products"] if limit.flops_per_s else []
    rates += [f"{giga(limit.bytes_per_s)} moved"] if limit.bytes_per_s else []
    shares = [
        f"{name} {percent(value)}" for name, value in (("MFU", limit.mfu), ("MBU", limit.mbu)) if value is not None
    ]
    yield "; ".join(part for part in (f"achieved {', '.join(rates)}" if rates else "", ", ".join(shares)) if part)
    for part in (*limit.uncovered[:MAX_REASONS], *limit.apart):
        yield f"not counted, {duration(part.device_ns)}: {part.reason}"
    yield from (f"note: {note}" for note in limit.notes)


def _bound_table(limit: Limit) -> Table:
    table = Table(
        (Column("bound by", 4, Kind.NAME), Column("device", 4), Column("share", 3), Column("", 1, Kind.PROSE)),
        title="what the least time of the ops hangs on",
    )
    for bound, time_ns in (limit.bound_ns or {}).items():
        share = time_ns / limit.covered_ns if limit.covered_ns else None
        table.add(bound, duration(time_ns), percent(share), _MEANINGS[bound])
    return table


def _op_table(limit: Limit, top: int) -> Table:
    table = Table(
        (
            Column("op", 7, Kind.NAME),
            Column("shapes", 6, Kind.NAME),
            Column("type", 2),
            Column("count", 3),
            Column("device", 8),
            Column("least", 7),
            Column("above", 7),
            Column("bound by", 5, Kind.NAME),
            Column("TFLOP/s", 1),
            Column("GB/s", 1),
        ),
        title="ops with most time above the limit" if limit.floor_ns else "ops with most device time",
    )
    for row in limit.ops[:top]:
        table.add(*_cells(row))
    return table


def _cells(row: OpLimit) -> tuple[str, ...]:
    seconds = row.device_ns / 1e9
    return (
        row.op,
        row.shapes,
        row.dtype,
        str(row.count),
        duration(row.device_ns),
        duration(row.floor_ns),
        duration(row.above_ns),
        (row.bound or "") + (" (cache)" if row.reads_cache else ""),
        f"{row.flops / seconds / 1e12:,.1f}" if row.flops and seconds else UNKNOWN,
        f"{row.bytes / seconds / 1e9:,.0f}" if seconds else UNKNOWN,
    )


def _whose(ceilings: Ceilings | None) -> str:
    return "none known" if ceilings is None else ceilings.words


def tera(flops_per_s: float) -> str:
    """Say a rate of FLOPs."""
    return f"{flops_per_s / 1e12:,.1f} TFLOP/s"


def giga(bytes_per_s: float) -> str:
    """Say a rate of bytes."""
    return f"{bytes_per_s / 1e9:,.0f} GB/s"


def bar_text(breakdown: Breakdown) -> Iterable[str | Table]:
    """Show what the time of recorded steps' devices went to, phase by phase, from what hardware asks for on."""
    if not any(step.limit for step in breakdown.steps):
        reasons = dict.fromkeys(step.limit_reason for step in breakdown.steps if step.limit_reason)
        yield from (f"hardware limit: not told, {reason}" for reason in reasons)
        return
    phases = by_phase(breakdown.steps)
    every = list(phases.values())
    ceilings = dict.fromkeys(origin for each in every for origin in each.ceilings)
    yield f"hardware limit (ceilings: {' | '.join(ceilings) or 'none known'})"
    yield "from the model and the requests of each step"
    said = dict.fromkeys(words for each in every for words in (*each.reasons, *each.notes))
    yield from (f"note: {words}" for words in said)
    yield _bar_table(phases)


def _as_phase(limit: Limit, bar: Bar) -> PhaseLimit:
    bounds = {bound: ns for bound, ns in (limit.bound_ns or {}).items() if ns}
    return PhaseLimit(
        num_steps=1,
        bar=bar,
        bound=max(bounds, key=lambda bound: bounds[bound], default=None),
        mfu=limit.mfu,
        mbu=limit.mbu,
        flops_per_s=limit.flops_per_s,
        bytes_per_s=limit.bytes_per_s,
    )


def _bar_table(phases: Mapping[Phase | None, PhaseLimit]) -> Table:
    names = [phase or "time" for phase in phases]
    table = Table(
        (Column("device", 4, Kind.NAME), *(Column(name, 4) for name in names)), title="to the hardware's limit"
    )
    bars = [each.bar for each in phases.values()]
    for part in dict.fromkeys(part for bar in bars for part in bar.parts_ns()):
        table.add(BAR_WORDS.get(part, part), *(_part_words(each, part) for each in phases.values()))
    for name, words in (
        ("MFU", [percent(each.mfu) for each in phases.values()]),
        ("MBU", [percent(each.mbu) for each in phases.values()]),
        ("bound by", [each.bound or UNKNOWN for each in phases.values()]),
        (
            "achieved in products",
            [UNKNOWN if each.flops_per_s is None else tera(each.flops_per_s) for each in phases.values()],
        ),
        (
            "achieved of memory",
            [UNKNOWN if each.bytes_per_s is None else giga(each.bytes_per_s) for each in phases.values()],
        ),
    ):
        table.add(name, *words)
    return table


def _part_words(limit: PhaseLimit, part: str) -> str:
    time_ns, window_ns = limit.bar.parts_ns().get(part, 0), limit.bar.window_ns
    return f"{duration(time_ns / limit.num_steps)} {percent(time_ns / window_ns if window_ns else None):>6}"
