"""The traces and captures that an agent may read: those below one folder, by their names in it."""

import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from taxbreak_vllm.baselines.store import Baselines
from taxbreak_vllm.insight.evidence import with_plain_step
from taxbreak_vllm.insight.findings import Findings
from taxbreak_vllm.limit.live import limited
from taxbreak_vllm.limit.phases import by_phase
from taxbreak_vllm.limit.trace import limit_of
from taxbreak_vllm.model.advice import AdviceReport
from taxbreak_vllm.model.breakdown import Breakdown
from taxbreak_vllm.model.errors import SettingsError
from taxbreak_vllm.model.limit import Limit
from taxbreak_vllm.model.limits import PhaseLimit
from taxbreak_vllm.model.step import Phase
from taxbreak_vllm.model.whatif import WhatIf
from taxbreak_vllm.taxes.analyze import choose
from taxbreak_vllm.taxes.recording import Recording
from taxbreak_vllm.taxes.terms import Terms
from taxbreak_vllm.whatif.asked import Asked


class Traces:
    """One folder of traces; they are read one at a time, as each may take much of the memory."""

    def __init__(self, folder: Path, *, baselines: Path | None = None) -> None:
        """`baselines` is a store with floors of the places they were recorded in."""
        self._folder = folder.resolve()
        self._baselines = baselines
        self._one_at_a_time = threading.Lock()

    def read(
        self,
        name: str,
        *,
        phase: Phase | None = None,
        step: str | None = None,
        rank: int | None = None,
        floor_ns: int | None = None,
        plain_ns: int | None = None,
    ) -> tuple[Breakdown, AdviceReport]:
        """Return breakdown and advice of a trace or capture.

        Raises SettingsError for a name that leads out of the folder, TraceFormatError and SpoolError as `analyze` does.
        """
        with self._one_at_a_time, Recording.open(self._path(name), Terms(floor_ns=floor_ns, rank=rank)) as recording:
            shown = choose(recording.breakdown, phase=phase, step=step)
            findings = Findings(recording, shown if plain_ns is None else with_plain_step(shown, plain_ns))
            return findings.breakdown, findings.advice

    def limit(self, name: str, *, phase: Phase | None = None) -> tuple[Mapping[Phase | None, PhaseLimit], Limit | str]:
        """Return the bar of each phase of a trace or capture, and what its recorded shapes tell, or why nothing."""
        with self._one_at_a_time, Recording.open(self._path(name), Terms(), with_calls=True) as recording:
            shown = choose(limited(recording), phase=phase)
            is_all = len(shown.steps) == len(recording.breakdown.steps)
            return by_phase(shown.steps), limit_of(
                recording, steps=None if is_all else [step.number or 0 for step in shown.steps]
            )

    def predict(self, name: str, change: Asked, *, rank: int | None = None) -> WhatIf:
        """Return what a trace or capture says of a change; raises as `read` and `Asked.of` do."""
        with (
            self._one_at_a_time,
            self._store() as store,
            Recording.open(self._path(name), Terms(rank=rank, baselines=store)) as recording,
        ):
            return change.of(recording)

    def _store(self) -> AbstractContextManager[Baselines | None]:
        return Baselines(self._baselines) if self._baselines is not None else nullcontext()

    def _path(self, name: str) -> Path:
        path = (self._folder / name).resolve()
        if not path.is_relative_to(self._folder):
            raise SettingsError(f"{name}: not in {self._folder}, the one folder that traces are read from (--traces)")
        return path
