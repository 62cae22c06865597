"""What a simulated device and the engine over it wrote, as numbers of 64 bits: a folder in, tables out.

`TRUTH` has a row for each step of the device, `ROWS` one of stamps for each turn of the engine's loop.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from taxbreak_vllm.iterations.account import Iterations, Turns
from taxbreak_vllm.iterations.rows import NUM_COLUMNS

TRUTH, ROWS = "truth", "rows"


class Truth(NamedTuple):
    """What one step was: when the host came to each of its calls, and how long the device had been idle by then."""

    number: int
    execute_ns: int
    idle_ns: int
    sample_ns: int
    sample_idle_ns: int
    done_ns: int


@dataclass(frozen=True)
class Logs:
    """All that is there at the first look at each."""

    folder: Path

    @cached_property
    def rows(self) -> np.ndarray:
        return _read(self.folder / ROWS, NUM_COLUMNS)

    @cached_property
    def truth(self) -> Truth:
        """The steps, each field an array."""
        return Truth(*_read(self.folder / TRUTH, len(Truth._fields)).T)

    @cached_property
    def turns(self) -> Turns:
        return Turns(self.rows)

    @cached_property
    def found(self) -> Iterations:
        return self.turns.iterations()

    @cached_property
    def steps(self) -> np.ndarray:
        """For each iteration found the place of its step in `truth`."""
        return np.searchsorted(self.truth.number, self.found.step)

    def spans_ns(self) -> dict[str, np.ndarray]:
        """Return for each iteration found what of it was whose, and what of it was between calls (`idle`)."""
        found = self.found
        parts = {str(label): parts_ns for label, parts_ns in found.parts_ns.items()}
        return parts | {"worker": found.worker_ns, "idle": found.total_ns - found.worker_ns, "total": found.total_ns}


def num_steps(folder: Path) -> int:
    """Return how many steps the device has been given so far."""
    path = folder / TRUTH
    return path.stat().st_size // (8 * len(Truth._fields)) if path.exists() else 0


def _read(path: Path, num_columns: int) -> np.ndarray:
    values = np.fromfile(path, dtype=np.int64)
    return values[: len(values) // num_columns * num_columns].reshape(-1, num_columns)
