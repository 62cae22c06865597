"""What a change would do as text for people. In: `WhatIf`. Out: lines and a table."""

from collections.abc import Iterator

from taxbreak_vllm.model.whatif import Prediction, WhatIf
from taxbreak_vllm.output.text.table import Column, Kind, Table
from taxbreak_vllm.output.words import duration

_COLUMNS = (
    Column("", 4, Kind.NAME),
    Column("recorded", 3),
    Column("predicted", 4),
    Column("low", 4),
    Column("high", 4),
    Column("no host", 2),
    Column("no kernels", 1),
)


def whatif_text(answer: WhatIf) -> Iterator[str | Table]:
    """Say what was asked, what comes of it with interval and bounds, what would refute it, and the gates."""
    yield f"{answer.path}: {answer.change or 'nothing changed'}"
    if answer.refused is not None:
        yield f"refused: {answer.refused}"
    if answer.window is not None:
        table = Table(_COLUMNS)
        for row in answer.steps:
            if row.plain_ns is not None:
                table.add(f"plain {row.phase or 'step'}", *_plain_times(row))
        for name, row in (
            ("recording", answer.window),
            *((f"{r.phase or 'step'} ×{r.steps}", r) for r in answer.steps),
        ):
            table.add(name, *_times(row))
        yield table
    if answer.dilation is not None:
        times = f"{answer.dilation:.2f} times"
        known = any(row.plain_ns is not None for row in answer.steps)
        yield f"a recorded step takes {times} as long as a plain one" + (
            "" if known else ": read the ratios, not the times"
        )
        if not known and answer.no_plain is not None:
            yield f"the plain step is not told: {answer.no_plain}"
    for note in answer.notes:
        yield f"note: {note}"
    if answer.window is not None:
        yield f"refuted if, {answer.refuted_by}"
        yield f"to measure that: {answer.command}"
    if answer.gates:
        yield "gates:"
    for gate in answer.gates:
        said = "passes" if gate.passes else "fails"
        limit = f"{'at least' if gate.is_least else 'at most'} {gate.limit:.0%}"
        yield f"  {gate.name} {gate.value:.2%} ({limit}: {said}): {gate.reason}"


def _plain_times(row: Prediction) -> Iterator[str]:
    return map(duration, (row.plain_ns, row.plain_predicted_ns, row.plain_low_ns, row.plain_high_ns, None, None))


def _times(row: Prediction) -> Iterator[str]:
    times = (row.observed_ns, row.predicted_ns, row.low_ns, row.high_ns, row.host_free_ns, row.kernels_free_ns)
    return map(duration, times)
