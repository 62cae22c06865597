"""Where a command's result goes: one JSON object or text for people on stdout, progress and errors on stderr."""

import sys
from typing import TYPE_CHECKING

from taxbreak_vllm.output.text.printed import print_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from taxbreak_vllm.model.advice import AdviceReport
    from taxbreak_vllm.model.breakdown import Breakdown
    from taxbreak_vllm.model.engine import IterationReport
    from taxbreak_vllm.model.limit import Limit
    from taxbreak_vllm.model.server import DeviceSecond

TOP_ROWS = 12


def say(message: str) -> None:
    """Tell how it goes, in one line on stderr."""
    from taxbreak_vllm.output.text.names import visible

    sys.stderr.write(f"taxbreak: {visible(' '.join(message.split()))}\n")


def with_advice(
    breakdown: "Breakdown",
    report: "AdviceReport",
    *,
    seconds: "Sequence[DeviceSecond] | None" = None,
    limit: "Limit | str | None" = None,
) -> bytes:
    """Return the JSON object of a breakdown with its advice, and what its server's devices' time went to.

    `limit` is what the hardware allows where it was asked for, or why that is not known.
    """
    import msgspec

    whole = breakdown.to_builtins() | {"advice": report.to_builtins()}
    if seconds is not None:
        whole["device_seconds"] = msgspec.to_builtins(seconds, str_keys=True)
    if isinstance(limit, str):
        whole |= {"limit": None, "limit_reason": limit}
    elif limit is not None:
        whole["limit"] = limit.to_builtins()
    return msgspec.json.encode(whole)


def print_breakdown(
    breakdown: "Breakdown",
    advice: "AdviceReport",
    top: int,
    *,
    seconds: "Sequence[DeviceSecond]" = (),
    limit: "Limit | str | None" = None,
) -> None:
    """Print where the figures come from, the balance, the steps, the dearest kernels, what the hardware allows, the
    server's account, advice.
    """
    from taxbreak_vllm.output.text.advice import advice_lines
    from taxbreak_vllm.output.text.breakdown import balance_table, shown_step, step_table, summary_lines, top_table
    from taxbreak_vllm.output.text.second import second_account

    step = shown_step(breakdown)
    steps = [step_table(breakdown)] if len(breakdown.steps) > 1 else []
    dearest = [top_table(step, top)] if top and step.top else []
    account = second_account(seconds)
    beside = []
    if limit is not None or any(each.limit or each.limit_reason for each in breakdown.steps):
        from taxbreak_vllm.output.text.limit import bar_text, limit_text

        beside = [*bar_text(breakdown), *limit_text(limit, top)]
    shown = (*summary_lines(breakdown), balance_table(breakdown), *steps, *dearest, *beside, *account)
    print_text(*shown, *advice_lines(advice))


def print_iterations(report: "IterationReport") -> None:
    """Print what an engine's iterations went to, phase by phase."""
    from taxbreak_vllm.output.text.iterations import iteration_lines, iteration_tables

    print_text(*iteration_lines(report), *iteration_tables(report))


def print_json(data: bytes) -> None:
    """Print one JSON object."""
    sys.stdout.buffer.write(data + b"\n")
    sys.stdout.buffer.flush()
