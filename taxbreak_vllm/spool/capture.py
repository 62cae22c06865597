"""One complete capture in the spool."""

import os
from dataclasses import dataclass
from pathlib import Path

from taxbreak_vllm.model.errors import SpoolError
from taxbreak_vllm.model.step import StepInfo
from taxbreak_vllm.model.worker import WorkerState
from taxbreak_vllm.spool.layout import ANALYZED, STATE, STEP, TRACE
from taxbreak_vllm.spool.values import read_value


@dataclass(frozen=True, slots=True)
class Capture:
    """One complete capture in the spool."""

    path: Path

    @property
    def step_id(self) -> str:
        return self.path.name

    @property
    def trace_path(self) -> Path:
        return self.path / TRACE

    @property
    def is_analyzed(self) -> bool:
        return (self.path / ANALYZED).exists()

    def read_info(self) -> StepInfo:
        """Read `step.json`; raises SpoolError where it is missing or not one."""
        return read_value(self.path / STEP, StepInfo)

    def read_state(self) -> WorkerState | None:
        """Read what its worker published beside it; None where that is not there or not readable."""
        try:
            return read_value(self.path.absolute().parent / STATE, WorkerState)
        except SpoolError:
            return None

    def size_bytes(self) -> int:
        """Bytes on disk, 0 once it is gone or where we may not look into it."""
        try:
            return sum(entry.stat().st_size for entry in os.scandir(self.path))
        except (FileNotFoundError, PermissionError):
            return 0
