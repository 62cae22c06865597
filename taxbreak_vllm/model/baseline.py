"""Floors and replayed baselines, and the place they were measured in."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from statistics import median


class Outcome(StrEnum):
    """How the replay of a signature went; all but the first leave it to the next tier."""

    MEASURED = "measured"
    DENIED = "denied"
    FAILED = "failed"
    CRASHED = "crashed"
    TIMED_OUT = "timed_out"
    OUT_OF_MEMORY = "out_of_memory"


class Match(StrEnum):
    """How the replayed kernel was told to be the traced one, best first (methodology section 6)."""

    CONFIGURATION = "configuration"
    NAME = "name"
    SUBSTRING = "substring"
    FREQUENT = "frequent"


class FloorKind(StrEnum):
    """What a floor is the least cost of."""

    KERNEL = "kernel"
    GRAPH = "graph"
    DISPATCH = "dispatch"
    ATEN_DISPATCH = "aten_dispatch"
    PROFILER_OP = "profiler_op"
    PROFILER_LAUNCH = "profiler_launch"


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """What a measurement is valid for; `driver` is the CUDA version the driver offers, as Kineto writes it."""

    device_type: str
    device_name: str
    torch: str
    driver: str = ""

    def fits(self, *, device_type: str = "", device_name: str = "", torch: str = "", driver: str = "") -> bool:
        """Tell whether this agrees with everything a trace tells of itself; what it leaves empty decides nothing."""
        told = {"device_type": device_type, "device_name": device_name, "torch": torch, "driver": driver}
        return all(not value or value == getattr(self, name) for name, value in told.items())


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and median absolute deviation of a duration over its samples, ns."""

    median_ns: int
    mad_ns: int
    samples: int

    @classmethod
    def of(cls, values_ns: Sequence[float]) -> "Spread":
        """Summarize samples, at least one."""
        middle = median(values_ns)
        return cls(round(middle), round(median([abs(value - middle) for value in values_ns])), len(values_ns))


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """One signature replayed alone, or why it was not.

    `dispatch` is T_dispatch,replayed; `library` (CPU backend) the front-end of a library, what unit-size inputs take
    beyond zero-element ones; `launch` is T_launch,replayed, `active` the kernel's own duration; None: not measured.
    `match_ratio` is the share of runs in which the kernel was found.
    """

    signature: str
    op: str
    kernel: str = ""
    outcome: Outcome
    reason: str = ""
    dispatch: Spread | None = None
    library: Spread | None = None
    launch: Spread | None = None
    active: Spread | None = None
    match: Match | None = None
    match_ratio: float | None = None
    measured_unix_ns: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Floor:
    """One floor; `nodes` counts the empty kernels of a graph."""

    kind: FloorKind
    spread: Spread
    nodes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Floors:
    """All floors of one environment, and how they were measured."""

    floors: tuple[Floor, ...] = ()
    clock: str = ""
    kernel_source: str = ""
    host_cpu: str = ""
    governor: str = ""
    measured_unix_ns: int = 0
    notes: tuple[str, ...] = field(default_factory=tuple)

    def median_ns(self, kind: FloorKind, nodes: int = 0) -> int | None:
        """The median of one floor; None where it was not measured."""
        return next((f.spread.median_ns for f in self.floors if f.kind is kind and f.nodes == nodes), None)

    def graph_points(self) -> tuple[tuple[int, int], ...]:
        """(nodes, median ns) of the graph floors, by nodes: linear in between and beyond."""
        return tuple(sorted((f.nodes, f.spread.median_ns) for f in self.floors if f.kind is FloorKind.GRAPH))

    def graph_line(self) -> tuple[int, int] | None:
        """(ns per launch, ns per node) of the straight line through the smallest and the largest graph."""
        points = self.graph_points()
        if len(points) < 2:
            return None
        (first, first_ns), (last, last_ns) = points[0], points[-1]
        slope = (last_ns - first_ns) / (last - first)
        return round(first_ns - slope * first), round(slope)
