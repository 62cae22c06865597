"""A trace as a speedscope file: what each host thread did, and what ran on each device stream.

In: recordings. Out: JSON for https://www.speedscope.app (file format: jlfwong/speedscope,
src/lib/file-format-spec.ts), one evented profile per host thread and per stream, in ns since the first event. On a host
thread steps, ops and runtime calls nest, and the innermost frame is the class of the instant (`[python]`, `[dispatch]`,
…), so the sandwich view sums to the host partition. On a stream a kernel stands in its family.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np

from taxbreak_vllm.insight.findings import Findings
from taxbreak_vllm.output.files import replacing
from taxbreak_vllm.taxes.measured import Measured
from taxbreak_vllm.taxes.recording import Recording, opened
from taxbreak_vllm.trace.events import EventKind
from taxbreak_vllm.trace.steps import StepWindow
from taxbreak_vllm.trace.timeline import HostClass, class_name

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
        with opened(source) as recording:
            file.add_recording(recording)
    file.write(target)


def _host_profiles(m: Measured, windows: Sequence[StepWindow], frames: _Frames) -> Iterator[_Profile]:
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
            for window in windows
            if window.thread == thread
        ]
        events = _nested([*steps, *intervals])
        yield _profile(f"host thread {':'.join(e.threads[thread])}", _with_classes(m, events, thread, frames))


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
    leaf_by_class = [frames[f"[{class_name(cls, m.backend)}]"] for cls in HostClass]
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


def _stream_profiles(m: Measured, frames: _Frames) -> Iterator[_Profile]:
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
            yield _profile(f"device {device} stream {stream}{overlap}", lane)


def _profile(name: str, events: list[_Event]) -> _Profile:
    return _Profile(name=name, start_value=events[0].at, end_value=events[-1].at, events=events)
