"""Energy per output token of an engine, from counters that are read apart: those of its GPUs, and that of its tokens.

In: readings of GPUs, some a window, and the token counter of the states that workers publish, each with its time. Out:
the joules and the tokens between two states at least 10 s apart. GPUs are read at other times than states are
published, so between two readings energy is taken to grow evenly.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

LEAST_WINDOW_NS = 10 * 10**9


@dataclass(frozen=True, slots=True)
class Reading:
    """A GPU's energy counter at a time."""

    unix_ns: int
    energy_mj: int


@dataclass(frozen=True, slots=True)
class Point:
    """Both counters at the time of a state: energy of all GPUs, and output tokens."""

    unix_ns: int
    energy_mj: float
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Window:
    """What two points tell."""

    window_ns: int
    joules: float
    num_tokens: int

    @property
    def joules_per_token(self) -> float | None:
        return self.joules / self.num_tokens if self.num_tokens > 0 else None


def energy_at(readings: Sequence[Reading], unix_ns: int) -> float | None:
    """Return the energy (mJ) of a GPU at a time; None where no two readings lie around it."""
    for before, after in pairwise(readings):
        if before.unix_ns <= unix_ns <= after.unix_ns and before.unix_ns < after.unix_ns:
            share = (unix_ns - before.unix_ns) / (after.unix_ns - before.unix_ns)
            return before.energy_mj + share * (after.energy_mj - before.energy_mj)
    return None


def was_reset(readings: Iterable[Reading]) -> bool:
    """Tell a counter that fell."""
    return any(after.energy_mj < before.energy_mj for before, after in pairwise(readings))


def window_of(points: Sequence[Point]) -> Window | None:
    """Return the shortest window of at least 10 s that ends with the newest point; None before there is one.

    A token counter that fell is of a server that began anew: it gives none either.
    """
    if not points:
        return None
    last = points[-1]
    for first in reversed(points):
        if last.unix_ns - first.unix_ns >= LEAST_WINDOW_NS:
            num_tokens = last.num_tokens - first.num_tokens
            if num_tokens < 0:
                return None
            return Window(last.unix_ns - first.unix_ns, (last.energy_mj - first.energy_mj) / 1000, num_tokens)
    return None
