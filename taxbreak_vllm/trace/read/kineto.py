"""Read a Kineto trace (.json, .json.gz, .json.zst) into columns.

In: a path. Out: `Events`, one row per event that the decomposition needs, as numpy columns over interned strings; of a
large file the rows go where the caller spills them. No event lives longer as a Python object than its block of the
file.
"""

import gc
import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from taxbreak_vllm.model.errors import TraceFormatError
from taxbreak_vllm.trace.events import EventKind, Events, Oddities
from taxbreak_vllm.trace.outliers import Seconds, clipped_ends, ends_too_late
from taxbreak_vllm.trace.read.blocks import BLOCK_BYTES, Envelope, decode, read_blocks
from taxbreak_vllm.trace.read.calls import CallCollector, CallEvent
from taxbreak_vllm.trace.read.event import Event, ExactEvent, exact_ns, is_exact, read_leniently, to_ns
from taxbreak_vllm.trace.read.frames import CATEGORY, FrameCollector
from taxbreak_vllm.trace.read.syncs import CATEGORY as SYNC_CATEGORY
from taxbreak_vllm.trace.read.syncs import SyncCollector

Columns = tuple[NDArray[Any], ...]

# Of `Events`' columns, in their order.
TYPES = (np.int8, np.int64, np.int64, np.int32, np.int32, np.int64, np.int64, np.int64, np.int64)

_YEAR_NS = 366 * 86_400 * 10**9

# Category names since 2021; `Operator`, `Kernel`… are those before PyTorch 1.12. "ProfilerStep#n" was an op then.
_KIND_BY_CATEGORY = {
    category: int(kind)  # an array of enum members takes three times as long to make
    for category, kind in {
        "cpu_op": EventKind.OP,
        "Operator": EventKind.OP,
        "cuda_runtime": EventKind.RUNTIME,
        "cuda_driver": EventKind.RUNTIME,
        "hip_runtime": EventKind.RUNTIME,
        "hip_driver": EventKind.RUNTIME,
        "xpu_runtime": EventKind.RUNTIME,
        "xpu_driver": EventKind.RUNTIME,
        "privateuse1_runtime": EventKind.RUNTIME,
        "privateuse1_driver": EventKind.RUNTIME,
        "Runtime": EventKind.RUNTIME,
        "runtime": EventKind.RUNTIME,
        "driver": EventKind.RUNTIME,
        "kernel": EventKind.KERNEL,
        "concurrent_kernel": EventKind.KERNEL,
        "Kernel": EventKind.KERNEL,
        "gpu_memcpy": EventKind.MEMCPY,
        "Memcpy": EventKind.MEMCPY,
        "gpu_memset": EventKind.MEMSET,
        "Memset": EventKind.MEMSET,
        "user_annotation": EventKind.ANNOTATION,
    }.items()
}

_OVERHEAD = "overhead"
_MAX_NAMES, _NAME_CHARS = 3, 80  # of records that are set aside

# What tells nothing that a decomposition needs; any other category may be the work of a device not understood here.
_KNOWN_CATEGORIES = frozenset(_KIND_BY_CATEGORY) | {
    "ac2g",
    "async_cpu_to_gpu",
    "collective_comm",
    "cpu_instant_event",
    "cuda_event",
    "cuda_profiler_range",
    "fwdbwd",
    "gpu_user_annotation",
    CATEGORY,
    SYNC_CATEGORY,
    "Trace",
}

_THREAD = attrgetter("pid", "tid")

_EVENT = msgspec.json.Decoder(Event)
_EVENTS = msgspec.json.Decoder(list[Event])
_CALL_EVENT = msgspec.json.Decoder(CallEvent)
_CALL_EVENTS = msgspec.json.Decoder(list[CallEvent])

_EXACT_EVENTS = msgspec.json.Decoder(list[ExactEvent])

_RAW_EVENTS = msgspec.json.Decoder(list[msgspec.Raw])


def read_events(
    path: str | Path,
    *,
    block_bytes: int = BLOCK_BYTES,
    spill: Callable[[Columns], None] | None = None,
    spill_above_bytes: int = 0,
    with_calls: bool = False,
    with_frames: bool = False,
) -> Events:
    """Read a trace file into columns; `with_calls` also what each op was called with, for replay.

    `with_frames` reads the Python functions of a trace with stacks too.

    With `spill`, a file of more than `spill_above_bytes` of JSON gives it all rows, in file order, as columns (kind,
    start_ns, … device), some at a time; the Events returned have no row then.

    Raises TraceFormatError, in one line naming the file, where it is missing, damaged (truncated gzip), not JSON, not a
    trace, or empty. Text that ends in the middle is read up to its last whole event (`is_truncated`).
    """
    frames = FrameCollector() if with_frames else None
    columns = _Columns(spill, spill_above_bytes, CallCollector() if with_calls else None, frames)
    with _no_garbage_collection():
        around = read_blocks(Path(path), columns.add, block_bytes=block_bytes)
    if columns.num_events == 0:
        raise TraceFormatError(f"{path}: an empty trace, without any event")
    return columns.finish(str(path), around)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    # Nothing here makes cycles; collections during the decode cost a third of its time.
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class _Columns:
    """Collects the columns of all blocks."""

    def __init__(
        self,
        spill: Callable[[Columns], None] | None,
        spill_above_bytes: int,
        calls: CallCollector | None,
        frames: FrameCollector | None,
    ) -> None:
        self._calls = calls
        self._frames = frames
        self._decoder: msgspec.json.Decoder[Any] = _CALL_EVENT if calls else _EVENT
        self._list_decoder: msgspec.json.Decoder[list[Any]] = _CALL_EVENTS if calls else _EVENTS
        self.num_events = 0
        self.num_dropped = 0
        self._spill = spill
        self._spill_above_bytes = spill_above_bytes
        self._read_bytes = 0
        self._name_ids: defaultdict[str, int] = _interner()
        self._thread_ids = _ThreadIds()
        self._old_steps: list[int] = []
        self._last_ns = np.iinfo(np.int64).min
        self._seconds = Seconds()
        self._overhead_us = 0.0
        self._syncs = SyncCollector()
        self._unread: Counter[str] = Counter()
        self._nodes: Counter[tuple[int, int]] = Counter()  # of each (graph, launch)
        # Bytes that grow in place: joining blocks at the end would hold every column twice.
        self._bytes = [bytearray() for _ in TYPES]

    def add(self, text: bytes) -> None:
        """Add the events of a JSON list; raises msgspec.DecodeError, with nothing added, where the text is not one."""
        try:
            events = decode(self._list_decoder, text)
        except (msgspec.ValidationError, UnicodeDecodeError):
            self._add_tolerantly(text)
        else:
            self._append(events, lambda: decode(_EXACT_EVENTS, text))
        self._read_bytes += len(text)
        if self._spill and self._read_bytes > self._spill_above_bytes:
            self._spill(self._take())

    def _add_tolerantly(self, text: bytes) -> None:
        # Somewhere in this block a field has a type nobody writes; keep every event that makes sense by itself.
        raws = decode(_RAW_EVENTS, text)
        pairs = [pair for raw in raws if (pair := read_leniently(raw, self._decoder)) is not None]
        self.num_dropped += len(raws) - len(pairs)
        self.num_events += len(raws) - len(pairs)
        self._append([event for event, _ in pairs], lambda: [exact for _, exact in pairs])

    def _append(self, events: Sequence[Event], decode_exactly: Callable[[], Sequence[ExactEvent]]) -> None:
        self.num_events += len(events)
        spans = [e for e in events if e.ph == "X"]
        rows = [e for e in spans if e.cat in _KIND_BY_CATEGORY]
        if len(rows) < len(spans):
            self._count_others([e for e in spans if e.cat not in _KNOWN_CATEGORIES])
            self._syncs.add(spans)
            if self._frames:
                self._frames.add(spans)
        start_us = np.array([e.ts for e in rows])
        if start_us.dtype == object:  # some have none
            rows = [e for e in rows if e.ts is not None]
            self.num_dropped += len(start_us) - len(rows)
            start_us = np.array([e.ts for e in rows])
        if not rows:
            return
        dur_us = np.array([e.dur for e in rows])
        if is_exact(start_us) and is_exact(dur_us):
            start_ns, dur_ns = to_ns(start_us), to_ns(dur_us)
        else:
            exact = [e for e in decode_exactly() if e.ph == "X" and e.cat in _KIND_BY_CATEGORY]
            start_ns = np.array([exact_ns(e.ts) for e in exact if e.ts is not None], dtype=np.int64)
            dur_ns = np.array([exact_ns(e.dur) for e in exact if e.ts is not None], dtype=np.int64)
        kind = np.array([_KIND_BY_CATEGORY[e.cat] for e in rows], dtype=np.int8)
        timed = (dur_ns != 0) | (start_ns > max(self._last_ns, int(start_ns.max())) - _YEAR_NS) | ~_is_device(kind)
        if not timed.all():  # no time of these was recorded: start and end are the epoch
            self.num_dropped += int(np.count_nonzero(~timed))
            rows = [e for e, is_timed in zip(rows, timed.tolist(), strict=True) if is_timed]
            start_ns, dur_ns, kind = start_ns[timed], dur_ns[timed], kind[timed]
        name_ids = self._name_ids
        args = [e.args for e in rows]
        num_known = len(name_ids)
        name = np.array([name_ids[e.name] for e in rows], dtype=np.int32)
        new = enumerate(itertools.islice(name_ids, num_known, None), num_known)
        self._old_steps += [number for number, text in new if text.startswith("ProfilerStep#")]
        if self._old_steps:
            kind[(kind == EventKind.OP) & np.isin(name, self._old_steps)] = EventKind.ANNOTATION
        if self._calls:
            for event, own in zip(rows, kind.tolist(), strict=True):
                if own == EventKind.OP:
                    self._calls.add_op(event)
                elif own == EventKind.KERNEL:
                    self._calls.add_kernel(event)
        end_ns = np.maximum(start_ns + dur_ns, start_ns)
        self._last_ns = max(self._last_ns, int(end_ns.max()))
        self._seconds.add(start_ns, end_ns, name)
        on_device = itertools.compress(args, _is_device(kind).tolist())
        self._nodes.update([(a.graph, a.correlation) for a in on_device if a.graph > 0])
        parts: Columns = (
            kind,
            start_ns,
            end_ns,
            name,
            np.array([*map(self._thread_ids.__getitem__, map(_THREAD, rows))], dtype=np.int32),
            np.array([a.correlation for a in args], dtype=np.int64),
            np.array([a.external if a.external >= 0 else a.external_old for a in args], dtype=np.int64),
            np.array([a.stream for a in args], dtype=np.int64),
            np.array([a.device for a in args], dtype=np.int64),
        )
        for column, part in zip(self._bytes, parts, strict=True):
            column += part.tobytes()

    def _count_others(self, events: Sequence[Event]) -> None:
        for event in events:
            if event.cat == _OVERHEAD:
                self._overhead_us += event.dur
            else:
                self._unread[event.cat] += 1

    def _take(self) -> Columns:
        columns = tuple(np.frombuffer(part, dtype) for part, dtype in zip(self._bytes, TYPES, strict=True))
        self._bytes = [bytearray() for _ in TYPES]
        return columns

    def finish(self, path: str, around: Envelope) -> Events:
        """Join the blocks."""
        kind, start_ns, end_ns, name, thread, correlation, external, stream, device = self._take()
        first_ns, last_ns, num_strays = self._seconds.extent()
        names = tuple(self._name_ids)
        events = Events(
            path=path,
            kind=kind,
            start_ns=start_ns,
            end_ns=end_ns,
            name=name,
            thread=thread,
            correlation=correlation,
            external=external,
            stream=stream,
            device=device,
            names=names,
            threads=tuple(self._thread_ids.texts),
            metadata=around.metadata,
            first_ns=first_ns,
            last_ns=last_ns,
            num_events=self.num_events,
            num_dropped=self.num_dropped,
            raw_bytes=around.raw_bytes,
            is_truncated=around.is_truncated,
            calls=self._calls.finish() if self._calls else None,
            frames=self._frames.finish(self._thread_ids.texts) if self._frames else None,
            syncs=self._syncs.finish(),
            oddities=Oddities(
                out_of_range=num_strays,
                names=_some(names[number] for number in self._seconds.names_beyond(first_ns, last_ns)),
                overhead_ns=round(self._overhead_us * 1000),
                unread=dict(self._unread),
                missing_nodes=_missing_nodes(self._nodes),
                has_more=around.has_more,
            ),
        )
        return _plausible(events) if len(kind) else events


def _missing_nodes(nodes: Counter[tuple[int, int]]) -> dict[int, int]:
    most: dict[int, int] = {}
    for (graph, _), count in nodes.items():
        most[graph] = max(most.get(graph, 0), count)
    return {launch: most[graph] - count for (graph, launch), count in nodes.items() if count < most[graph]}


def _names_of(events: Events, rows: NDArray[Any]) -> Iterator[str]:
    return (events.names[number] for number in events.name[rows][:_MAX_NAMES].tolist())


def _some(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(name[:_NAME_CHARS] for name in itertools.islice(dict.fromkeys(names), _MAX_NAMES))


def _plausible(events: Events) -> Events:
    """Set aside the records that lie far from all others, and clip those that their stream contradicts."""
    is_within = (events.start_ns >= events.first_ns) & (events.start_ns <= events.last_ns)
    is_within[is_within] = ~ends_too_late(events.start_ns[is_within], events.end_ns[is_within])
    if not is_within.all():
        strays = int(np.count_nonzero(~is_within))
        named = _some((*events.oddities.names, *_names_of(events, ~is_within)))
        oddities = replace(events.oddities, out_of_range=strays, names=named)
        events = replace(events.kept(is_within), oddities=oddities)
    rows = np.flatnonzero(_is_device(events.kind))
    ends_ns = clipped_ends(events.start_ns[rows], events.end_ns[rows], events.device[rows], events.stream[rows])
    clipped = np.flatnonzero(ends_ns != events.end_ns[rows])
    if not len(clipped):
        return events
    end_ns = events.end_ns.copy()
    end_ns[rows] = ends_ns
    return replace(
        events,
        end_ns=end_ns,
        last_ns=int(end_ns.max()),
        oddities=replace(
            events.oddities,
            clipped=len(clipped),
            names=_some((*events.oddities.names, *_names_of(events, rows[clipped]))),
        ),
    )


class _ThreadIds(dict[tuple[int | str, int | str], int]):
    """Numbers (pid, tid) pairs as they come; old traces write one thread as 5 here and as "5" there."""

    def __init__(self) -> None:
        self.texts: defaultdict[tuple[str, str], int] = _interner()

    def __missing__(self, key: tuple[int | str, int | str]) -> int:
        self[key] = number = self.texts[str(key[0]), str(key[1])]
        return number


def _is_device(kind: NDArray[np.int8]) -> NDArray[np.bool_]:
    return np.asarray((kind >= EventKind.KERNEL) & (kind <= EventKind.MEMSET))


def _interner() -> defaultdict[Any, int]:
    ids: defaultdict[Any, int] = defaultdict()
    ids.default_factory = ids.__len__
    return ids
