"""The hardware limit of the steps of a window, phase by phase.

In: the condition that chooses steps. Out: sums of what was kept of each, one row a step.
"""

import sqlite3
from collections.abc import Sequence

import msgspec

from taxbreak_vllm.limit.phases import phase_limit
from taxbreak_vllm.model.limit import Bar
from taxbreak_vllm.model.limits import PhaseLimit, StepBar
from taxbreak_vllm.model.step import Phase
from taxbreak_vllm.service.results.steps import NEWEST

_decode = msgspec.json.Decoder(StepBar).decode
_OTHER_VERSION = "analyzed by another version of taxbreak, whose limit this one cannot read"


def read_limits(db: sqlite3.Connection, where: str, values: Sequence[object]) -> dict[Phase, PhaseLimit]:
    """Add up the newest steps that fit `where`, each phase by itself; the last of `values` is how many."""
    tables = "steps JOIN series USING (series_id) LEFT JOIN limits USING (seq)"
    rows = db.execute(f'SELECT phase, step_bar, "device.active_ns" FROM {tables} WHERE {where} {NEWEST}', values)
    found: dict[Phase, list[StepBar]] = {phase: [] for phase in Phase}
    for phase, data, active_ns in rows:
        found.setdefault(Phase(phase), []).append(_step_bar(data, active_ns))
    return {phase: phase_limit(steps) for phase, steps in found.items() if steps}


def _step_bar(data: bytes | None, active_ns: int) -> StepBar:
    if data is not None:
        try:
            return _decode(data)
        except msgspec.ValidationError:
            pass
    return StepBar(bar=Bar(window_ns=active_ns, unknown_ns=active_ns), active_ns=active_ns, reason=_OTHER_VERSION)
