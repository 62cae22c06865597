"""A trace as a speedscope file: what each host thread did, and what ran on each device stream.

In: paths. Out: JSON for https://www.speedscope.app (file format: jlfwong/speedscope, src/lib/file-format-spec.ts), one
evented profile per host thread and per stream, in ns since the first event. On a host thread steps, ops and runtime
calls nest, and the innermost frame is the class of the instant (`[python]`, `[dispatch]`, …), so the sandwich view sums
to the host partition. On a stream a kernel stands in its family.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np

from taxbreak_vllm.output.files import replacing
from taxbreak_vllm.taxes.measured import Measured
from taxbreak_vllm.taxes.recording import Recording, read_recording
from taxbreak_vllm.trace.read.kineto import EventKind
from taxbreak_vllm.trace.timeline import HostClass

SCHEMA = "https://www.speedscope.app/file-format-schema.json"

_Interval = tuple[int, int, int]  # start, end, frame


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


class _Frames:
    """Numbers frames by name."""

    def __init__(self) -> None:
        self._number_by_name: dict[str, int] = {}

    def __getitem__(self, name: str) -> int:
        return self._number_by_name.setdefault(name, len(self._number_by_name))

    def shared(self) -> _Shared:
        return _Shared([_Frame(name) for name in self._number_by_name])


def write_speedscope(paths: Sequence[str | Path], target: str | Path) -> None:
    """Write traces or captures as one speedscope file.

    Raises TraceFormatError or SpoolError for what cannot be read, TaxbreakError where the disk refuses.
    """
    data = to_speedscope({str(path): read_recording(path) for path in paths})
    with replacing(target) as temporary:
        temporary.write_bytes(data)


def to_speedscope(recordings: Mapping[str, Recording]) -> bytes:
    """Encode recordings, by the name they are shown under, as one speedscope file."""
    frames = _Frames()
    profiles = []
    for name, recording in recordings.items():
        measured = recording.measure()
        prefix = f"{Path(name).name} · " if len(recordings) > 1 else ""
        profiles += [*_host_profiles(measured, recording, frames, prefix), *_stream_profiles(measured, frames, prefix)]
    return msgspec.json.encode(_File(name=", ".join(recordings), shared=frames.shared(), profiles=profiles))


def _host_profiles(m: Measured, recording: Recording, frames: _Frames, prefix: str) -> Iterator[_Profile]:
    """One profile per thread that did something, the busiest first."""
    e, origin_ns = m.events, m.host.origin_ns
    rows = np.concatenate((m.host.op_row, e.rows(EventKind.RUNTIME)))
    threads, counts = np.unique(e.thread[rows], return_counts=True)
    for thread in threads[np.argsort(-counts, kind="stable")].tolist():
        own = rows[e.thread[rows] == thread]
        names = [e.names[name] for name in e.name[own].tolist()]
        intervals = [
            (start, end, frames[name])
            for start, end, name in zip(
                (e.start_ns[own] - origin_ns).tolist(), (e.end_ns[own] - origin_ns).tolist(), names, strict=True
            )
        ]
        steps = [
            (window.start_ns - origin_ns, window.end_ns - origin_ns, frames[window.name])
            for window in recording.windows
            if window.thread == thread
        ]
        events = _nested([*steps, *intervals])
        yield _profile(f"{prefix}host thread {':'.join(e.threads[thread])}", _with_classes(m, events, thread, frames))


def _nested(intervals: Iterable[_Interval]) -> list[_Event]:
    """Open and close frames in order of time; what outlives the frame around it is cut there."""
    events: list[_Event] = []
    stack: list[tuple[int, int]] = []
    for start, end, frame in sorted(intervals, key=lambda interval: (interval[0], -interval[1])):
        while stack and stack[-1][0] <= start:
            events.append(_Event("C", *stack.pop()))
        events.append(_Event("O", start, frame))
        stack.append((min(end, stack[-1][0]) if stack else end, frame))
    while stack:
        events.append(_Event("C", *stack.pop()))
    return events


def _with_classes(m: Measured, events: list[_Event], thread: int, frames: _Frames) -> list[_Event]:
    """Put the class of every instant innermost: closed before another frame opens or closes, and opened after."""
    if not events:
        return events
    base = thread * m.host.stride_ns
    edges, cls = m.partition.edges_ns, m.partition.cls
    first, last = np.searchsorted(edges, (base + events[0].at, base + events[-1].at))
    cuts = np.unique(np.concatenate((edges[first:last] - base, [event.at for event in events])))
    index = np.searchsorted(edges, cuts + base, side="right") - 1
    class_at = np.where(index >= 0, cls[np.maximum(index, 0)], 0) if len(edges) else np.zeros(len(cuts), dtype=int)
    leaf_by_class = [frames[_leaf_name(cls, m.device_type)] for cls in HostClass]
    result: list[_Event] = []
    leaf: int | None = None
    at_event = 0
    for at, number in zip(cuts.tolist(), class_at.tolist(), strict=True):
        is_last = at == events[-1].at
        wanted = None if is_last else leaf_by_class[number]
        moves = at_event < len(events) and events[at_event].at == at
        if leaf is not None and (moves or leaf != wanted):
            result.append(_Event("C", at, leaf))
            leaf = None
        while at_event < len(events) and events[at_event].at == at:
            result.append(events[at_event])
            at_event += 1
        if leaf is None and wanted is not None:
            result.append(_Event("O", at, wanted))
            leaf = wanted
    return result


def _leaf_name(cls: HostClass, device_type: str) -> str:
    return "[compute]" if cls is HostClass.BLOCKED and device_type == "cpu" else f"[{cls.name.lower()}]"


def _stream_profiles(m: Measured, frames: _Frames, prefix: str) -> Iterator[_Profile]:
    """One profile per device stream; activities that overlap on one stream (PDL) continue on further ones."""
    a, origin_ns = m.activities, m.host.origin_ns
    for device, stream in np.unique(np.stack((a.device, a.stream)), axis=1).T.tolist():
        own = np.flatnonzero((a.device == device) & (a.stream == stream))
        lanes: list[list[_Event]] = []
        for start, end, kernel, kind in zip(
            (a.start_ns[own] - origin_ns).tolist(),
            (a.end_ns[own] - origin_ns).tolist(),
            a.name[own].tolist(),
            m.kind[own].tolist(),
            strict=True,
        ):
            lane = next((lane for lane in lanes if lane[-1].at <= start), None)
            if lane is None:
                lane = []
                lanes.append(lane)
            family, name = frames[f"[{m.kinds[kind].family}]"], frames[m.events.names[kernel]]
            lane += (
                _Event("O", start, family),
                _Event("O", start, name),
                _Event("C", end, name),
                _Event("C", end, family),
            )
        for number, lane in enumerate(lanes):
            overlap = f", overlap {number}" if number else ""
            yield _profile(f"{prefix}device {device} stream {stream}{overlap}", lane)


def _profile(name: str, events: list[_Event]) -> _Profile:
    return _Profile(name=name, start_value=events[0].at, end_value=events[-1].at, events=events)
