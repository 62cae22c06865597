"""The events of a trace as numpy columns: what reading a file gives, and all that follows works on."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from taxbreak_vllm.trace.calls import Calls
from taxbreak_vllm.trace.frames import Frames
from taxbreak_vllm.trace.syncs import Syncs

Int64 = NDArray[np.int64]
Int32 = NDArray[np.int32]


class EventKind(IntEnum):
    """What an event is, whatever its category was called when it was written."""

    OP = 0
    RUNTIME = 1
    KERNEL = 2
    MEMCPY = 3
    MEMSET = 4
    ANNOTATION = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Oddities:
    """What a reader found besides events that make sense.

    `out_of_range` records lay far from all others in time and were set aside, `clipped` ones ended later than their
    stream allows, `names` are those of some of them; `overhead_ns` is the profiler's time for its own work as it
    recorded that; `unread` counts events by a category that is not understood; `missing_nodes` has, by the correlation
    id of a graph launch, how many nodes fewer it left than another launch of the same graph. `has_more` where the file
    goes on after what was read of it.
    """

    out_of_range: int = 0
    clipped: int = 0
    names: tuple[str, ...] = ()
    overhead_ns: int = 0
    unread: Mapping[str, int] = field(default_factory=dict)
    missing_nodes: Mapping[int, int] = field(default_factory=dict)
    has_more: bool = False


COLUMNS = ("kind", "start_ns", "end_ns", "name", "thread", "correlation", "external", "stream", "device")


@dataclass(frozen=True, slots=True)
class Events:
    """The events of a trace as columns, all of length n, in file order.

    `kind` int8 (EventKind), `start_ns` and `end_ns` int64, `name` int32 into `names`, `thread` int32 into `threads`
    ((pid, tid) pairs), `correlation`, `external` (External id), `stream` and `device` int64, -1 where absent.
    `first_ns` and `last_ns` are the trace's first start and last end, also where these are some of its events only.
    `num_events` counts everything in the file, `num_dropped` what could not be read as an event at all. `calls` has the
    call of each op and the configuration of each kernel, `frames` the Python functions, where they were asked for;
    `syncs` who waits for whom, as far as the recording tells.
    """

    path: str
    kind: NDArray[np.int8]
    start_ns: Int64
    end_ns: Int64
    name: Int32
    thread: Int32
    correlation: Int64
    external: Int64
    stream: Int64
    device: Int64
    names: tuple[str, ...]
    threads: tuple[tuple[str, str], ...]
    metadata: dict[str, object]
    first_ns: int
    last_ns: int
    num_events: int
    num_dropped: int
    raw_bytes: int
    is_truncated: bool
    calls: Calls | None = None
    frames: Frames | None = None
    syncs: Syncs = field(default_factory=Syncs.none)
    oddities: Oddities = field(default_factory=Oddities)

    def rows(self, *kinds: EventKind) -> NDArray[np.intp]:
        """Return the indices of all events of these kinds, in file order."""
        wanted = np.zeros(len(EventKind), dtype=bool)
        wanted[list(kinds)] = True
        return np.flatnonzero(wanted[self.kind])

    def chosen(self, rows: NDArray[np.bool_]) -> "Events":
        """Return some of the events, without their calls."""
        return replace(self, **{name: getattr(self, name)[rows] for name in COLUMNS}, calls=None)

    def kept(self, rows: NDArray[np.bool_]) -> "Events":
        """Return some of the events as if the file held no others; at least one."""
        calls = self.calls
        if calls is not None:
            calls = calls.kept(rows[self.rows(EventKind.OP)], rows[self.rows(EventKind.KERNEL)])
        some = self.chosen(rows)
        return replace(some, calls=calls, first_ns=int(some.start_ns.min()), last_ns=int(some.end_ns.max()))

    def chunks(self) -> Iterator["Events"]:
        """Return all events at once, as a spilled trace returns some at a time."""
        yield self

    @classmethod
    def joined(cls, parts: Sequence["Events"]) -> "Events":
        """Join events of one trace, at least one part."""
        return replace(parts[0], **{name: np.concatenate([getattr(part, name) for part in parts]) for name in COLUMNS})

    @property
    def head(self) -> "Events":
        """What is known of the trace beside its rows: these events, or those without rows of a spilled trace."""
        return self

    @property
    def base_ns(self) -> int:
        """Unix time of timestamp 0, for traces written with a base time; 0 for those with absolute times."""
        base = self.metadata.get("baseTimeNanoseconds", 0)
        return base if isinstance(base, int) else 0

    @property
    def device_name(self) -> str:
        """Name of the first device in the trace's own device table that has one, else empty."""
        devices = self.metadata.get("deviceProperties")
        names = [d.get("name", "") for d in devices if isinstance(d, dict)] if isinstance(devices, list) else []
        return next((name for name in names if isinstance(name, str) and name), "")
