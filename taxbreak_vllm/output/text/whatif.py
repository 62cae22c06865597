"""What a change would do as text for people, at most 80 columns wide. In: `WhatIf`. Out: lines."""

import textwrap
from collections.abc import Iterator

from taxbreak_vllm.model.whatif import Prediction, WhatIf
from taxbreak_vllm.output.text.names import visible
from taxbreak_vllm.output.words import duration

_WIDTH = 80
_TITLES = ("recorded", "predicted", "low", "high", "no host", "no kernels")


def whatif_lines(answer: WhatIf) -> Iterator[str]:
    """Say what was asked, what comes of it with interval and bounds, what would refute it, and the gates."""
    yield from _wrapped(f"{answer.path}: {answer.change or 'nothing changed'}")
    if answer.refused is not None:
        yield from _wrapped(f"refused: {answer.refused}")
    if answer.window is not None:
        yield ""
        yield f"{'':<14}" + "".join(f"{title:>11}" for title in _TITLES)
        yield _row("recording", answer.window)
        for row in answer.steps:
            yield _row(f"{row.phase or 'step'} ×{row.steps}", row)
        yield ""
    if answer.dilation is not None:
        yield from _wrapped(
            f"a recorded step takes {answer.dilation:.2f} times as long as a plain one: read the ratios, not the times"
        )
    for note in answer.notes:
        yield from _wrapped(f"note: {note}")
    if answer.window is not None:
        yield from _wrapped(f"refuted if, {answer.refuted_by}")
        yield from _wrapped(f"to measure that: {answer.command}")
    if answer.gates:
        yield "gates:"
        for gate in answer.gates:
            said = "passes" if gate.passes else "fails"
            limit = f"{'at least' if gate.is_least else 'at most'} {gate.limit:.0%}"
            yield from _wrapped(f"{gate.name} {gate.value:.2%} ({limit}: {said}): {gate.reason}", "  ")


def _row(name: str, row: Prediction) -> str:
    times = (row.observed_ns, row.predicted_ns, row.low_ns, row.high_ns, row.host_free_ns, row.kernels_free_ns)
    return f"{name[:14]:<14}" + "".join(f"{duration(ns):>11}" for ns in times)


def _wrapped(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(
        visible(text), _WIDTH, initial_indent=indent, subsequent_indent=indent + "  ", break_on_hyphens=False
    )
