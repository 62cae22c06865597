"""What comes of running a server: all that a profiler could see, and what no profiler sees."""

from dataclasses import dataclass

from rig.program import MAIN, Server

STEP, ENGINE = "taxbreak.step:", "taxbreak.engine"  # annotations of the recorder


@dataclass(frozen=True, slots=True)
class Span:
    """What a profiler sees of the host: `kind` is op, call, step, or engine (where the worker waits for that)."""

    kind: str
    name: str
    start_ns: int
    end_ns: int
    thread: int = MAIN
    correlation: int = -1
    external: int = -1


@dataclass(frozen=True, slots=True)
class Sync:
    """What the runtime tells of a wait, in Kineto's words: which call it was, and on or for which stream.

    Of an event, which call recorded it, and on which stream.
    """

    name: str
    start_ns: int
    end_ns: int
    correlation: int
    stream: int = -1
    record: int = -1
    record_stream: int = -1


@dataclass(frozen=True, slots=True)
class Activity:
    """Work of the device: `launch_ns` is the start of its call, `step` where that was made."""

    name: str
    start_ns: int
    end_ns: int
    stream: int
    correlation: int
    launch_ns: int
    step: int
    external: int = -1
    graph_id: int = 0
    node: int = 0

    @property
    def is_kernel(self) -> bool:
        return not self.name.startswith("Mem")


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of the worker's thread: what it was (a field of HostTime without `_ns`), and where.

    `place` is execute, gap or sample within a step; get_output, engine, waiting (for work) or profiler between two.
    """

    start_ns: int
    end_ns: int
    cls: str
    place: str


@dataclass(slots=True)
class Orchestration:
    """What the launches of a step cost the host, by their definitions, and what came of them."""

    ft_ns: int = 0
    ct_ns: int = 0
    launches: int = 0
    kernel_launches: int = 0


@dataclass(frozen=True, slots=True)
class Run:
    """All that happened: `windows` are the steps, `segments` tile the worker's thread from 0 to `end_ns`."""

    server: Server
    windows: tuple[tuple[int, int], ...]
    spans: tuple[Span, ...]
    activities: tuple[Activity, ...]
    syncs: tuple[Sync, ...]
    segments: tuple[Segment, ...]
    orchestration: tuple[Orchestration, ...]
    end_ns: int
