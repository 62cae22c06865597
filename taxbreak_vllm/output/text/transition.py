"""Who decides how long a step takes, over the sizes of batches, as text. In: `Transitions`. Out: lines and tables."""

from collections.abc import Iterable

from taxbreak_vllm.insight.transition import size_words
from taxbreak_vllm.model.transition import Sign, Transition, Transitions
from taxbreak_vllm.output.text.table import Column, Kind, Table
from taxbreak_vllm.output.words import duration, percent, ratio

_SIGNS = {Sign.TKLQT: "TKLQT per launch doubles", Sign.HDBI: "HDBI passes one half"}
_NOT_SIGNS = {Sign.TKLQT: "TKLQT", Sign.HDBI: "HDBI"}


def transition_text(found: Transitions) -> Iterable[str | Table]:
    """Say of each phase from which batch on the device decides, or why that is not known, and show its steps."""
    if found.reason is not None:
        yield f"no transition: {found.reason}"
    for one in found.transitions:
        yield f"{one.phase or 'these steps'}: {turn_words(one)}"
        yield from sign_words(one)
        yield from (f"note: {note}" for note in one.notes)
        if one.buckets:
            yield _table(one)


def turn_words(found: Transition) -> str:
    """Say where it turns, or why it turns nowhere."""
    if found.between is None:
        return f"no transition: {found.reason}"
    host, device = (size_words(size, found.unit) for size in found.between)
    return f"from {device} on the device decides; at {host} the host still did"


def sign_words(found: Transition) -> Iterable[str]:
    """Say what each sign tells, where one of them does."""
    if found.between is None:
        return
    for sign, turn in found.turns.items():
        if turn.between is None:
            yield f"{_NOT_SIGNS[sign]}: {turn.reason}"
        else:
            host, device = turn.between
            yield f"{_SIGNS[sign]} between {host:,} and {size_words(device, found.unit)}"


def _table(found: Transition) -> Table:
    table = Table(
        (
            Column(found.unit.replace("_", " "), 9),
            Column("steps", 2),
            Column("step time", 6),
            Column("TKLQT a launch", 8),
            Column("HDBI", 7),
            Column("waits for the host", 5),
            Column("hardware limit", 4),
            Column("decides", 3, Kind.NAME),
        )
    )
    for bucket in found.buckets:
        size = f"{bucket.least:,}" if bucket.least == bucket.most else f"{bucket.least:,} to {bucket.most:,}"
        table.add(
            size,
            str(bucket.num_steps),
            duration(bucket.window_ns),
            duration(bucket.tklqt_per_launch_ns),
            ratio(bucket.hdbi),
            percent(bucket.exposed_ratio),
            percent(bucket.limit_ratio),
            "" if found.between is None else "host" if bucket.most <= found.between[0] else "device",
        )
    return table
