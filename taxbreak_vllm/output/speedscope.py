"""A trace as a speedscope file: what each host thread did, and what ran on each device stream.

In: recordings. Out: JSON for https://www.speedscope.app (file format: jlfwong/speedscope,
src/lib/file-format-spec.ts), one evented profile per host thread and per stream, in ns since the first event. On a host
thread steps, Python functions where they were recorded, ops and runtime calls nest, and the innermost frame is the
class of the instant (`[python]`, `[dispatch]`, …), so the sandwich view sums to the host partition. On a stream a
kernel stands in its family.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from taxbreak_vllm.insight.findings import Findings
from taxbreak_vllm.output.files import replacing
from taxbreak_vllm.taxes.measured import Measured
from taxbreak_vllm.taxes.recording import Recording, opened
from taxbreak_vllm.trace.dispatches import Bool
from taxbreak_vllm.trace.events import EventKind
from taxbreak_vllm.trace.intervals import Index, Int64
from taxbreak_vllm.trace.steps import StepWindow
from taxbreak_vllm.trace.timeline import HostClass, class_name

SCHEMA = "https://www.speedscope.app/file-format-schema.json"


class _Event(msgspec.Struct, frozen=True, gc=False):
    type: str
    at: int
    frame: int


class _Frame(msgspec.Struct, frozen=True):
    name: str


class _Shared(msgspec.Struct, frozen=True):
    frames: list[_Frame]


class _Profile(msgspec.Struct, frozen=True, rename="camel"):
    name: str
    start_value: int
    end_value: int
    events: list[_Event]
    type: str = "evented"
    unit: str = "nanoseconds"


class _File(msgspec.Struct, frozen=True, rename={"schema": "$schema", "active_profile_index": "activeProfileIndex"}):
    name: str
    shared: _Shared
    profiles: list[_Profile]
    schema: str = SCHEMA
    exporter: str = "taxbreak-vllm"
    active_profile_index: int = 0


@dataclass(frozen=True, slots=True)
class _Events:
    """Frames that open and close, in order of time, ns since the first event of the trace."""

    at_ns: Int64
    frame: Index
    opens: Bool


class _Frames:
    """Numbers frames by name, in the order in which they are first asked for."""

    def __init__(self) -> None:
        self._number_by_name: dict[str, int] = {}

    def __getitem__(self, name: str) -> int:
        return self._number_by_name.setdefault(name, len(self._number_by_name))

    def of(self, names: Sequence[str], index: Index) -> Index:
        """Return the frame of each of many places in `names`."""
        used, first, place = np.unique(index, return_index=True, return_inverse=True)
        frame = np.empty(len(used), dtype=np.intp)
        for number in np.argsort(first).tolist():
            frame[number] = self[names[used[number]]]
        return frame[place]

    def shared(self) -> _Shared:
        return _Shared([_Frame(name) for name in self._number_by_name])


class Speedscope:
    """A speedscope file being made: recordings go in one after the other and may be closed after that."""

    def __init__(self) -> None:
        self._frames = _Frames()
        self._profiles_by_path: dict[str, list[_Profile]] = {}

    def add(self, findings: Findings) -> None:
        """Add what each host thread did and what ran on each stream."""
        self.add_recording(findings.recording)

    def add_recording(self, recording: Recording) -> None:
        """Add the same of a recording of which nothing else is asked."""
        host = _host_profiles(recording.measured, recording.windows, self._frames)
        self._profiles_by_path[recording.path] = [*host, *_stream_profiles(recording.measured, self._frames)]

    def to_json(self) -> bytes:
        """Encode the file; where there are several recordings, the name of each stands before its profiles."""
        is_one = len(self._profiles_by_path) == 1
        profiles = [
            profile if is_one else msgspec.structs.replace(profile, name=f"{Path(path).name} · {profile.name}")
            for path, own in self._profiles_by_path.items()
            for profile in own
        ]
        name = ", ".join(self._profiles_by_path)
        return msgspec.json.encode(_File(name=name, shared=self._frames.shared(), profiles=profiles))

    def write(self, target: str | Path) -> None:
        """Write the file; raises TaxbreakError where the disk refuses."""
        with replacing(target) as temporary:
            temporary.write_bytes(self.to_json())


def write_speedscope(sources: Sequence[Recording | str | Path], target: str | Path) -> None:
    """Write traces or captures as one speedscope file.

    Raises TraceFormatError or SpoolError for what cannot be read, TaxbreakError where the disk refuses.
    """
    file = Speedscope()
    for source in sources:
        with opened(source, with_frames=True) as recording:
            file.add_recording(recording)
    file.write(target)


def _host_profiles(m: Measured, windows: Sequence[StepWindow], frames: _Frames) -> Iterator[_Profile]:
    """One profile per thread that did something, the busiest first."""
    e, origin_ns = m.events, m.host.origin_ns
    rows = np.concatenate((m.host.op_row, e.rows(EventKind.RUNTIME)))
    threads, counts = np.unique(e.thread[rows], return_counts=True)
    for thread in threads[np.argsort(-counts, kind="stable")].tolist():
        own = rows[e.thread[rows] == thread]
        frame = frames.of(e.names, e.name[own])
        steps = [window for window in windows if window.thread == thread]
        functions = _functions(m, thread, frames)
        events = _nested(
            np.concatenate(([step.start_ns for step in steps], functions[0], e.start_ns[own])).astype(np.int64)
            - origin_ns,
            np.concatenate(([step.end_ns for step in steps], functions[1], e.end_ns[own])).astype(np.int64) - origin_ns,
            np.concatenate(([frames[step.name] for step in steps], functions[2], frame)).astype(np.intp),
        )
        yield _profile(f"host thread {':'.join(e.threads[thread])}", _with_classes(m, events, thread, frames))


def _functions(m: Measured, thread: int, frames: _Frames) -> tuple[Int64, Int64, Index]:
    """Return start, end and frame of the Python functions of a thread, as far as the trace goes."""
    e, found = m.events, m.events.frames
    if found is None:
        nothing = np.empty(0, dtype=np.int64)
        return nothing, nothing, nothing.astype(np.intp)
    own = np.flatnonzero(found.thread == thread)
    start_ns, end_ns = (at_ns[own].clip(e.first_ns, e.last_ns) for at_ns in (found.start_ns, found.end_ns))
    return start_ns, end_ns, frames.of(found.names, found.name[own].astype(np.intp))


def _nested(start_ns: Int64, end_ns: Int64, frame: Index) -> _Events:
    """Open and close frames in order of time; what outlives the frame around it is cut there."""
    order = np.lexsort((-end_ns, start_ns))
    at: list[int] = []
    moves: list[int] = []  # the frame that opens, or ~frame where it closes
    stack: list[tuple[int, int]] = []
    for start, end, number in zip(start_ns[order].tolist(), end_ns[order].tolist(), frame[order].tolist(), strict=True):
        while stack and stack[-1][0] <= start:
            closing, closed = stack.pop()
            at.append(closing)
            moves.append(closed)
        at.append(start)
        moves.append(number)
        stack.append((min(end, stack[-1][0]) if stack else end, ~number))
    for closing, closed in reversed(stack):
        at.append(closing)
        moves.append(closed)
    move = np.array(moves, dtype=np.intp)
    return _Events(np.array(at, dtype=np.int64), np.where(move < 0, ~move, move), move >= 0)


def _with_classes(m: Measured, events: _Events, thread: int, frames: _Frames) -> _Events:
    """Put the class of every instant innermost: closed before another frame opens or closes, and opened after."""
    base = thread * m.host.stride_ns
    edges, cls = m.partition.edges_ns, m.partition.cls
    first, last = np.searchsorted(edges, (base + events.at_ns[0], base + events.at_ns[-1]))
    cuts = np.unique(np.concatenate((edges[first:last] - base, events.at_ns)))
    index = np.searchsorted(edges, cuts + base, side="right") - 1
    class_at = np.where(index >= 0, cls[np.maximum(index, 0)], 0) if len(edges) else np.zeros(len(cuts), dtype=int)
    leaf = np.array([frames[f"[{class_name(cls, m.backend)}]"] for cls in HostClass], dtype=np.intp)[class_at]
    is_new = np.isin(cuts, events.at_ns, assume_unique=False)
    is_new[1:] |= leaf[1:] != leaf[:-1]
    opening, closing = np.flatnonzero(is_new[:-1]), np.flatnonzero(is_new[1:]) + 1
    at_ns = np.concatenate((cuts[closing], events.at_ns, cuts[opening]))
    order = np.argsort(at_ns, kind="stable")
    return _Events(
        at_ns[order],
        np.concatenate((leaf[closing - 1], events.frame, leaf[opening]))[order],
        np.concatenate((np.zeros(len(closing), bool), events.opens, np.ones(len(opening), bool)))[order],
    )


def _stream_profiles(m: Measured, frames: _Frames) -> Iterator[_Profile]:
    """One profile per device stream; activities that overlap on one stream (PDL) continue on further ones."""
    a, origin_ns = m.activities, m.host.origin_ns
    texts = [*(f"[{kind.family}]" for kind in m.kinds), *m.events.names]
    for device, stream in np.unique(np.stack((a.device, a.stream)), axis=1).T.tolist():
        own = np.flatnonzero((a.device == device) & (a.stream == stream))
        start_ns, end_ns = a.start_ns[own] - origin_ns, a.end_ns[own] - origin_ns
        index = np.stack((m.kind[own], len(m.kinds) + a.name[own]), axis=1, dtype=np.intp)
        family_name = frames.of(texts, index.reshape(-1)).reshape(index.shape)
        lanes = _lanes(start_ns, end_ns)
        for number in range(lanes.max() + 1):
            in_lane = lanes == number
            frame = family_name[in_lane]
            events = _Events(
                np.stack((start_ns, start_ns, end_ns, end_ns), axis=1)[in_lane].ravel(),
                np.concatenate((frame, frame[:, ::-1]), axis=1).ravel(),
                np.tile([True, True, False, False], len(frame)),
            )
            overlap = f", overlap {number}" if number else ""
            yield _profile(f"device {device} stream {stream}{overlap}", events)


def _lanes(start_ns: Int64, end_ns: Int64) -> Index:
    """Put each interval, in order, on the first lane that is free when it starts."""
    lane = np.zeros(len(start_ns), dtype=np.intp)
    if (start_ns[1:] >= end_ns[:-1]).all():
        return lane
    free_ns: list[int] = []
    for row, (start, end) in enumerate(zip(start_ns.tolist(), end_ns.tolist(), strict=True)):
        number = next((number for number, free in enumerate(free_ns) if free <= start), len(free_ns))
        free_ns[number : number + 1] = [end]
        lane[row] = number
    return lane


def _profile(name: str, events: _Events) -> _Profile:
    types = np.where(events.opens, "O", "C").tolist()
    at = events.at_ns.tolist()
    return _Profile(
        name=name,
        start_value=at[0],
        end_value=at[-1],
        events=list(map(_Event, types, at, events.frame.tolist())),
    )
