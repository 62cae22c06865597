"""A fleet as text: its groups, what changed, which hosts are apart, what one change would bring. Out: lines, tables."""

from collections.abc import Iterator
from datetime import UTC, datetime

from taxbreak_vllm.model.fleet import Change, FleetReport, FleetWin, GroupRow, Outlier, StepKind
from taxbreak_vllm.output.text.table import Column, Kind, Table
from taxbreak_vllm.output.words import UNKNOWN, duration, percent, ratio

FIGURE_WORDS = {
    "plain_ns": "step time",
    "delta_ft_ns": "ΔFT",
    "delta_ct_ns": "ΔCT",
    "active_ns": "device work",
    "engine_ns": "engine loop",
    "hdbi": "HDBI",
}
CHANGE_WORDS = {
    "--graph full": "one CUDA graph a step",
    "--async": "asynchronous scheduling",
    "--fuse": "fused kernels",
    "--compiled": "torch.compile",
    "--host python=0.8 --host dispatch=0.8": "a host core a quarter faster",
}
_ROWS = 20


def fleet_text(found: FleetReport) -> Iterator[str | Table]:
    """Say what a fleet tells, the largest first."""
    yield lead(found)
    if found.groups:
        yield group_table(found)
    told = [change for change in found.changes if change.is_found]
    yield changes_lead(found)
    if told:
        yield _change_table(told[:_ROWS])
    yield outliers_lead(found)
    if found.outliers:
        yield _outlier_table(found.outliers[:_ROWS])
    if found.wins:
        yield _win_table(found.wins[:_ROWS])
    yield from (f"{broken.key} is set aside: {broken.reason}" for broken in found.broken[:_ROWS])
    yield from (f"note: {note}" for note in found.notes)


def lead(found: FleetReport) -> str:
    """Say in one sentence what the report is about."""
    if found.from_unix_ns is None or found.to_unix_ns is None:
        return f"Version {found.version} has analyzed nothing of that in this archive: taxbreak fleet analyze does."
    aside = f", {found.num_broken:,} set aside" if found.num_broken else ""
    return (
        f"{_counted(found.num_captures, 'recorded step')} of {_counted(found.num_servers, 'server')} on "
        f"{_counted(found.num_hosts, 'host')}, "
        f"{instant(found.from_unix_ns)} to {instant(found.to_unix_ns)}{aside}; analyzed by version {found.version}."
    )


def changes_lead(found: FleetReport) -> str:
    """Say how many changes were found among how many comparisons, and how far chance is in it."""
    num = sum(change.is_found for change in found.changes)
    return (
        f"Changed at a deploy or at a time: {num or 'nothing'} of {found.num_comparisons:,} comparisons of a figure of "
        "one kind of step; of those without a change at most one in 1,000 is called one."
    )


def _counted(num: int, what: str) -> str:
    return f"{num:,} {what}" if num == 1 else f"{num:,} {what}s"


def outliers_lead(found: FleetReport) -> str:
    """Say how many hosts are apart."""
    num = len(found.outliers)
    return f"Apart from like hosts: {num or 'none'} of {found.num_compared:,} levels that were held against others'."


def instant(unix_ns: int) -> str:
    """Say a time in UTC, to the minute."""
    return f"{datetime.fromtimestamp(unix_ns // 10**9, UTC):%Y-%m-%d %H:%M}"


def kind_words(kind: StepKind) -> str:
    """Name a kind of step."""
    graphs = "" if kind.graph_mode in ("none", "unknown") else f", {kind.graph_mode} graphs"
    if kind.tokens is None:
        return f"{kind.phase}{graphs}"
    low, high = kind.tokens
    size = f"{low:,}" if low == high else f"{low:,} to {high:,}"
    return f"{kind.phase} of {size} token{'s' if high != 1 else ''}{graphs}"


def change_words(change: Change) -> str:
    """Say between what it changed."""
    if change.before is None or change.after is None:
        return f"{instant(change.from_unix_ns)} to {instant(change.to_unix_ns)}, no deploy"
    return f"{change.before} → {change.after}"


def shift_words(change: Change) -> str:
    """Say by how much it changed, with the interval."""
    shift = change.shift
    if shift.change is None or shift.low is None or shift.high is None:
        return UNKNOWN
    if change.figure == "hdbi":
        return f"{shift.change:+.3f} ({shift.low:+.3f} to {shift.high:+.3f})"
    return f"{shift.change:+.1%} ({shift.low:+.1%} to {shift.high:+.1%})"


def level_words(change: Change, level: float | None) -> str:
    """Say a level of a figure."""
    return ratio(level) if change.figure == "hdbi" else duration(level)


def apart_words(one: Outlier) -> str:
    """Say what else is different about a host."""
    told = [f"{each.fact} {each.own}, of {each.num_others} others {each.others}" for each in one.differences]
    return "; ".join(told) or "nothing recorded sets it apart"


def win_words(win: FleetWin) -> str:
    """Say what a change would bring, or why that is not known."""
    if win.servers is None or win.low is None or win.high is None:
        return UNKNOWN
    return f"{win.servers:.1f} of {win.num_servers} servers ({win.low:.1f} to {win.high:.1f})"


def remedy_words(change: str) -> str:
    """Name a change."""
    return CHANGE_WORDS.get(change, change)


def tax_words(group: GroupRow, name: str) -> str:
    """Say a tax of a group."""
    return duration(group.taxes_ns.get(name))


def group_table(found: FleetReport) -> Table:
    """Show the groups, a row each."""
    table = Table(
        (
            *(Column(name, 9, Kind.NAME) for name in found.by),
            Column("hosts", 4),
            Column("steps", 3),
            Column("HDBI", 8),
            Column("step time", 6),
            Column("ΔFT", 7),
            Column("ΔCT", 5),
            Column("ΔKT", 5),
            Column("waits for the host", 4),
            Column("engine loop", 4),
            Column("hardware limit", 3),
        ),
        "Medians of recorded steps:",
    )
    for group in found.groups:
        table.add(
            *(group.by[name] or UNKNOWN for name in found.by),
            f"{group.num_hosts:,}",
            f"{group.num_captures:,}",
            ratio(group.hdbi),
            duration(group.step_ns),
            *(tax_words(group, name) for name in ("delta_ft", "delta_ct", "delta_kt")),
            percent(group.exposed_ratio),
            percent(group.engine_ratio),
            percent(group.limit_ratio),
        )
    return table


def _change_table(changes: list[Change]) -> Table:
    table = Table(
        (
            Column("figure", 9, Kind.NAME),
            Column("by (90 %)", 9),
            Column("hosts", 5),
            Column("was", 6),
            Column("is now", 6),
            Column("steps", 8, Kind.NAME),
            Column("model", 7, Kind.NAME),
            Column("gpu", 4, Kind.NAME),
            Column("between", 8, Kind.NAME),
        )
    )
    for change in changes:
        table.add(
            FIGURE_WORDS[change.figure],
            shift_words(change),
            str(change.shift.num_hosts),
            level_words(change, change.was),
            level_words(change, change.is_now),
            kind_words(change.kind),
            change.kind.model,
            change.kind.gpu,
            change_words(change),
        )
    return table


def _outlier_table(outliers: tuple[Outlier, ...]) -> Table:
    table = Table(
        (
            Column("host", 9, Kind.NAME),
            Column("figure", 9, Kind.NAME),
            Column("by", 9),
            Column("deviations", 5),
            Column("like hosts", 4),
            Column("model", 6, Kind.NAME),
            Column("what sets it apart", 8, Kind.PROSE),
        )
    )
    for one in outliers:
        table.add(
            one.host,
            FIGURE_WORDS[one.figure],
            percent(one.ratio, sign="+"),
            f"{one.score:+.1f}",
            str(one.num_like),
            one.model,
            apart_words(one),
        )
    return table


def _win_table(wins: tuple[FleetWin, ...]) -> Table:
    table = Table(
        (
            Column("what one change would bring", 9, Kind.NAME),
            Column("as much as", 9),
            Column("do not tell", 5),
            Column("model", 7, Kind.NAME),
            Column("gpu", 4, Kind.NAME),
            Column("why not", 6, Kind.PROSE),
        )
    )
    for win in wins:
        table.add(remedy_words(win.change), win_words(win), str(win.num_unknown), win.model, win.gpu, win.reason or "")
    return table
