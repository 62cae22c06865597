"""What a step did, instant by instant: the host by component, the device at work or idle by cause, and its kernels.

In: a recording. Out: `StepTimeline`, lanes of segments as columns. The segments of the first two lanes are disjoint,
cover their window and sum to the step's `host` and `device` figures; all times are ns from the step's start.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from taxbreak_vllm.model.timeline import DeviceClass, Lane, StepTimeline
from taxbreak_vllm.taxes.measured import Measured, group_by_time
from taxbreak_vllm.taxes.recording import Recording, opened
from taxbreak_vllm.trace.dispatches import Bool
from taxbreak_vllm.trace.intervals import Busy, Int64, Partition
from taxbreak_vllm.trace.steps import StepWindow, engine_spans
from taxbreak_vllm.trace.timeline import HostClass, class_name, main_thread

MAX_SEGMENTS = 6000  # of a lane: about 150 kB of JSON, and more than a screen has pixels

MAX_STREAMS = 4

_MAX_NAME_CHARS = 4000  # templates of templates: whoever shows one shortens it


def step_timelines(
    source: Recording | str | Path,
    *,
    numbers: Sequence[int] = (0,),
    max_segments: int = MAX_SEGMENTS,
) -> list[StepTimeline]:
    """Return the timelines of steps of a trace or capture, by their numbers from 0 on; by default of the first.

    Raises TraceFormatError for a file that is missing, damaged or not a trace, SpoolError for a capture without its
    StepInfo.
    """
    with opened(source) as recording:
        windows = recording.shown_windows
        return list(_timelines(recording, windows, [i for i in numbers if i < len(windows)], max_segments))


def _timelines(
    recording: Recording, windows: tuple[StepWindow, ...], chosen: Sequence[int], max_segments: int
) -> Iterator[StepTimeline]:
    m = recording.measured
    group = group_by_time(windows, m.dispatches.launch_ns)
    thread = main_thread(m.dispatches.thread, group, np.array([w.thread for w in windows], dtype=np.int32))
    owner = group_by_time(windows, m.activities.start_ns)
    linked = m.activities.dispatch >= 0
    owner[linked] = group[m.activities.dispatch[linked]]
    if not recording.windows:
        owner[:] = 0  # what runs after the host's last event is the one step's too
    for index in chosen:
        yield _timeline(m, windows[index], int(thread[index]), owner == index, max_segments)


@dataclass(frozen=True, slots=True)
class _Columns:
    """A lane before its names are shortened to those in use: `name` indexes Events.names."""

    title: str
    kinds: tuple[str, ...]
    start_ns: Int64
    end_ns: Int64
    kind: Int64
    name: Int64


def _timeline(m: Measured, window: StepWindow, thread: int, is_own: Bool, max_segments: int) -> StepTimeline:
    start_ns = window.start_ns
    shown = is_own & (m.activities.device == m.device)
    end_ns = max(window.end_ns, int(m.activities.end_ns[shown].max()) if shown.any() else window.end_ns)
    lanes = [
        _host_lane(m, window, thread),
        *_op_lane(m, window, thread),
        _device_lane(m, shown, start_ns, end_ns),
        *_stream_lanes(m, start_ns, end_ns),
    ]
    drawn_ns = min([end_ns, *(int(lane.start_ns[max_segments]) for lane in lanes if len(lane.kind) > max_segments)])
    keeps = [lane.start_ns < drawn_ns for lane in lanes]
    used = np.unique(np.concatenate([lane.name[keep] for lane, keep in zip(lanes, keeps, strict=True)]))
    used = used[used >= 0]
    return StepTimeline(
        step=window.name,
        device_type=m.backend.device_type,
        window_ns=window.end_ns - start_ns,
        device_window_ns=end_ns - start_ns,
        drawn_ns=drawn_ns - start_ns,
        lanes=tuple(_lane(lane, keep, used, start_ns) for lane, keep in zip(lanes, keeps, strict=True)),
        names=tuple(m.events.names[name][:_MAX_NAME_CHARS] for name in used.tolist()),
    )


def _lane(lane: _Columns, keep: Bool, used: Int64, origin_ns: int) -> Lane:
    name = np.where(lane.name[keep] >= 0, np.searchsorted(used, lane.name[keep]), -1)
    return Lane(
        title=lane.title,
        kinds=lane.kinds,
        start_ns=tuple((lane.start_ns[keep] - origin_ns).tolist()),
        length_ns=tuple((lane.end_ns - lane.start_ns)[keep].tolist()),
        kind=tuple(lane.kind[keep].tolist()),
        name=tuple(name.tolist()),
    )


def _host_lane(m: Measured, window: StepWindow, thread: int) -> _Columns:
    base = thread * m.host.stride_ns - m.host.origin_ns
    edges, kind = _segments(m.partition, window.start_ns + base, window.end_ns + base)
    begin = edges[:-1]
    name = np.full(len(kind), -1, dtype=np.int64)
    in_op = (kind == HostClass.DISPATCH) | (kind == HostClass.LIBRARY)
    roots = np.searchsorted(m.host.root_start, begin[in_op], side="right") - 1
    name[in_op] = _root_names(m)[roots]
    in_call = kind >= HostClass.RUNTIME
    call_start, call_name = _calls(m)
    if len(call_start):
        name[in_call] = call_name[np.searchsorted(call_start, begin[in_call], side="right") - 1]
    kinds = tuple(class_name(cls, m.backend) for cls in HostClass)
    lane = _Columns("host by component", kinds, edges[:-1] - base, edges[1:] - base, kind, name)
    spans = engine_spans(m.events, window)
    return _with_engine(lane, spans) if spans else lane


def _with_engine(lane: _Columns, spans: list[tuple[int, int]]) -> _Columns:
    """Give the engine what of a step's window was its own, which is no host time of the step."""
    bounds = np.array(spans, dtype=np.int64)
    edges = np.unique(np.concatenate((lane.start_ns, lane.end_ns, bounds.ravel())))
    start_ns = edges[:-1]
    index = np.searchsorted(lane.start_ns, start_ns, side="right") - 1
    inside = np.searchsorted(bounds[:, 0], start_ns, side="right") > np.searchsorted(
        bounds[:, 1], start_ns, side="right"
    )
    kind = np.where(inside, len(lane.kinds), lane.kind[index])
    name = np.where(inside, -1, lane.name[index])
    return _Columns(lane.title, (*lane.kinds, "engine"), start_ns, edges[1:], kind, name)


def _segments(partition: Partition, start: int, end: int) -> tuple[Int64, Int64]:
    """Cut [start, end) of a partition's time line into segments of one class: their edges, and the classes."""
    edges = partition.edges_ns
    first, last = np.searchsorted(edges, start, side="right"), np.searchsorted(edges, end, side="left")
    cuts = np.concatenate(([start], edges[first:last], [end]))
    before = partition.cls[first - 1 : first] if first else [0]
    kind = np.concatenate((before, partition.cls[first:last])).astype(np.int64)
    some = np.diff(cuts) > 0
    return np.concatenate((cuts[:-1][some], [end])), kind[some]


def _root_names(m: Measured) -> Int64:
    return m.events.name[m.host.op_row[np.searchsorted(m.host.op_start, m.host.root_start)]].astype(np.int64)


def _calls(m: Measured) -> tuple[Int64, Int64]:
    """Return start and name of every call, in the order of their place on the shared time line."""
    order = np.argsort(m.host.call_start, kind="stable")
    return m.host.call_start[order], m.events.name[m.host.call_row[order]].astype(np.int64)


def _op_lane(m: Measured, window: StepWindow, thread: int) -> Iterator[_Columns]:
    """The outermost ops; where ops compute on the host, the streams' lane has them."""
    if not m.backend.has_launches:
        return
    base = thread * m.host.stride_ns - m.host.origin_ns
    begin, end = m.host.root_start - base, m.host.root_end - base
    own = (end > window.start_ns) & (begin < window.end_ns)
    start_ns, end_ns = np.maximum(begin[own], window.start_ns), np.minimum(end[own], window.end_ns)
    yield _Columns("ops", ("op",), start_ns, end_ns, np.zeros(len(start_ns), dtype=np.int64), _root_names(m)[own])


def _device_lane(m: Measured, shown: Bool, start_ns: int, end_ns: int) -> _Columns:
    """Cut the device's window as `DeviceTimeline` counts it: gaps between its stretches by cause, the rest edge."""
    a, busy = m.activities, m.timeline.busy
    first = int(np.searchsorted(busy.end_ns, start_ns, side="right"))
    last = int(np.searchsorted(busy.start_ns, end_ns, side="left"))
    gap_start, gap_end = busy.end_ns[first:last][:-1], busy.start_ns[first:last][1:]
    opener = np.flatnonzero(a.device == m.device)[busy.first[first:last][1:]]
    dispatch = a.dispatch[opener]
    launched = np.where(dispatch >= 0, m.dispatches.launch_ns[dispatch], gap_start) if len(m.dispatches) else gap_start
    host_end = np.clip(launched, gap_start, gap_end)
    thread = m.dispatches.thread[dispatch] if len(m.dispatches) else np.zeros(len(dispatch), dtype=np.int32)
    blocked = _blocked(m, thread, gap_start, host_end)
    own = Busy.of(np.maximum(a.start_ns[shown], start_ns), a.end_ns[shown])
    covers = [(gap_start, gap_end), (gap_start, host_end), blocked]
    covers += [(busy.start_ns[first:last], busy.end_ns[first:last]), (own.start_ns, own.end_ns)]
    partition = Partition.of(
        [(np.maximum(s, start_ns) - start_ns, np.maximum(e, start_ns) - start_ns) for s, e in covers]
    )
    edges, kind = _segments(partition, 0, end_ns - start_ns)
    edges = edges + start_ns
    name = np.full(len(kind), -1, dtype=np.int64)
    kinds = tuple(cls.name.lower() for cls in DeviceClass)
    return _Columns("device", kinds, edges[:-1], edges[1:], kind, name)


def _blocked(m: Measured, thread: NDArray[np.int32], start_ns: Int64, end_ns: Int64) -> tuple[Int64, Int64]:
    """Return what of these stretches of host time lies in blocking calls."""
    begins, ends = m.host.key(thread, start_ns), m.host.key(thread, end_ns)
    some = np.flatnonzero(m.partition.between(begins, ends)[HostClass.BLOCKED] > 0)
    found: list[tuple[Int64, Int64]] = []
    for index in some.tolist():
        edges, kind = _segments(m.partition, int(begins[index]), int(ends[index]))
        edges = edges - begins[index] + start_ns[index]
        found.append((edges[:-1][kind == HostClass.BLOCKED], edges[1:][kind == HostClass.BLOCKED]))
    nothing = np.empty(0, dtype=np.int64)
    starts, stops = zip(*found, strict=True) if found else ((nothing,), (nothing,))
    return np.concatenate(starts), np.concatenate(stops)


def _stream_lanes(m: Measured, start_ns: int, end_ns: int) -> Iterator[_Columns]:
    """One lane per stream of the device, the busiest first; what other steps run there is shown too."""
    a = m.activities
    inside = (a.device == m.device) & (a.end_ns > start_ns) & (a.start_ns < end_ns)
    streams, counts = np.unique(a.stream[inside], return_counts=True)
    families = tuple(dict.fromkeys(str(kind.family) for kind in m.kinds))
    number = np.array([families.index(str(kind.family)) for kind in m.kinds], dtype=np.int64)
    for stream in streams[np.argsort(-counts, kind="stable")][:MAX_STREAMS].tolist():
        rows = np.flatnonzero(inside & (a.stream == stream))
        yield _Columns(
            f"kernels, stream {stream}" if m.backend.has_launches else "computing ops",
            families,
            np.maximum(a.start_ns[rows], start_ns),
            np.minimum(a.end_ns[rows], end_ns),
            number[m.kind[rows]],
            a.name[rows].astype(np.int64),
        )
