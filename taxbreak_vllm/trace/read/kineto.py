"""Read a Kineto trace (.json, .json.gz, .json.zst) into columns.

In: a path. Out: `Events`, one row per event that the decomposition needs, as numpy columns over interned strings; of a
large file the rows go where the caller spills them. No event lives longer as a Python object than its block of the
file. Times become integer ns exactly: a float of microseconds tells its ns below 2^43 µs (its spacing is under 1 ns
there); larger fractions are decoded as decimals.
"""

import gc
import itertools
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from enum import IntEnum
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from taxbreak_vllm.model.errors import TraceFormatError
from taxbreak_vllm.trace.read.blocks import BLOCK_BYTES, Envelope, decode, read_blocks

Int64 = NDArray[np.int64]
Int32 = NDArray[np.int32]
Columns = tuple[NDArray[Any], ...]

# Of `Events`' columns, in their order.
TYPES = (np.int8, np.int64, np.int64, np.int32, np.int32, np.int64, np.int64, np.int64, np.int64)

_EXACT_FLOAT_US = 2.0**43

# Starts and ends fit 64 bits of ns; an event outside is damaged (2^53 µs is inside).
_MAX_START_US, _MAX_LENGTH_US = 9_150_000_000_000_000, 2**46
_YEAR_NS = 366 * 86_400 * 10**9


class EventKind(IntEnum):
    """What an event is, whatever its category was called when it was written."""

    OP = 0
    RUNTIME = 1
    KERNEL = 2
    MEMCPY = 3
    MEMSET = 4
    ANNOTATION = 5


# Category names since 2021; `Operator`, `Kernel`… are those before PyTorch 1.12. "ProfilerStep#n" was an op then.
_KIND_BY_CATEGORY = {
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
}


@dataclass(frozen=True, slots=True)
class Events:
    """The events of a trace as columns, all of length n, in file order.

    `kind` int8 (EventKind), `start_ns` and `end_ns` int64, `name` int32 into `names`, `thread` int32 into `threads`
    ((pid, tid) pairs), `correlation`, `external` (External id), `stream` and `device` int64, -1 where absent.
    `first_ns` and `last_ns` are the trace's first start and last end, also where these are some of its events only.
    `num_events` counts everything in the file, `num_dropped` what could not be read as an event at all.
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

    def rows(self, *kinds: EventKind) -> NDArray[np.intp]:
        """Return the indices of all events of these kinds, in file order."""
        wanted = np.zeros(len(EventKind), dtype=bool)
        wanted[list(kinds)] = True
        return np.flatnonzero(wanted[self.kind])

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


_Id = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
_START_LIMIT = msgspec.Meta(ge=-_MAX_START_US, le=_MAX_START_US)
_LENGTH_LIMIT = msgspec.Meta(ge=-_MAX_LENGTH_US, le=_MAX_LENGTH_US)


class _Args(msgspec.Struct, gc=False, frozen=True, rename={"external": "External id", "external_old": "external id"}):
    correlation: _Id = -1
    external: _Id = -1
    external_old: _Id = -1
    stream: _Id = -1
    device: _Id = -1


class _Event(msgspec.Struct, gc=False):
    ph: str = ""
    cat: str = ""
    name: str = ""
    pid: int | str = 0
    tid: int | str = 0
    ts: Annotated[int, _START_LIMIT] | Annotated[float, _START_LIMIT] | None = None
    dur: Annotated[int, _LENGTH_LIMIT] | Annotated[float, _LENGTH_LIMIT] = 0
    args: _Args = _Args()


class _ExactEvent(msgspec.Struct, gc=False):
    ph: str = ""
    cat: str = ""
    ts: Decimal | None = None
    dur: Decimal = Decimal(0)


_EVENT = msgspec.json.Decoder(_Event)
_EVENTS = msgspec.json.Decoder(list[_Event])
_EXACT_EVENT = msgspec.json.Decoder(_ExactEvent)
_EXACT_EVENTS = msgspec.json.Decoder(list[_ExactEvent])
_RAW_EVENTS = msgspec.json.Decoder(list[msgspec.Raw])


def read_events(
    path: str | Path,
    *,
    block_bytes: int = BLOCK_BYTES,
    spill: Callable[[Columns], None] | None = None,
    spill_above_bytes: int = 0,
) -> Events:
    """Read a trace file into columns.

    With `spill`, a file of more than `spill_above_bytes` of JSON gives it all rows, in file order, as columns (kind,
    start_ns, … device), some at a time; the Events returned have no row then.

    Raises TraceFormatError, in one line naming the file, where it is missing, damaged (truncated gzip), not JSON, not a
    trace, or empty. Text that ends in the middle is read up to its last whole event (`is_truncated`).
    """
    columns = _Columns(spill, spill_above_bytes)
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

    def __init__(self, spill: Callable[[Columns], None] | None = None, spill_above_bytes: int = 0) -> None:
        self.num_events = 0
        self.num_dropped = 0
        self._spill = spill
        self._spill_above_bytes = spill_above_bytes
        self._read_bytes = 0
        self._name_ids: defaultdict[str, int] = _interner()
        self._thread_ids = _ThreadIds()
        self._old_steps: list[int] = []
        self._first_ns, self._last_ns = np.iinfo(np.int64).max, np.iinfo(np.int64).min
        # Bytes that grow in place: joining blocks at the end would hold every column twice.
        self._bytes = [bytearray() for _ in TYPES]

    def add(self, text: bytes) -> None:
        """Add the events of a JSON list; raises msgspec.DecodeError, with nothing added, where the text is not one."""
        try:
            events = decode(_EVENTS, text)
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
        pairs = [pair for pair in map(_lenient, raws) if pair is not None]
        self.num_dropped += len(raws) - len(pairs)
        self.num_events += len(raws) - len(pairs)
        self._append([event for event, _ in pairs], lambda: [exact for _, exact in pairs])

    def _append(self, events: Sequence[_Event], decode_exactly: Callable[[], Sequence[_ExactEvent]]) -> None:
        self.num_events += len(events)
        rows = [e for e in events if e.ph == "X" and e.cat in _KIND_BY_CATEGORY]
        if any(e.ts is None for e in rows):
            self.num_dropped += sum(e.ts is None for e in rows)
            rows = [e for e in rows if e.ts is not None]
        if not rows:
            return
        start_us, dur_us = np.array([e.ts for e in rows]), np.array([e.dur for e in rows])
        if _is_exact(start_us) and _is_exact(dur_us):
            start_ns, dur_ns = _to_ns(start_us), _to_ns(dur_us)
        else:
            exact = [e for e in decode_exactly() if e.ph == "X" and e.cat in _KIND_BY_CATEGORY]
            start_ns = np.array([_exact_ns(e.ts) for e in exact if e.ts is not None], dtype=np.int64)
            dur_ns = np.array([_exact_ns(e.dur) for e in exact if e.ts is not None], dtype=np.int64)
        kind = np.array([_KIND_BY_CATEGORY[e.cat] for e in rows], dtype=np.int8)
        timed = (dur_ns != 0) | (start_ns > max(self._last_ns, int(start_ns.max())) - _YEAR_NS) | ~_is_device(kind)
        if not timed.all():  # no time of these was recorded: start and end are the epoch
            self.num_dropped += int(np.count_nonzero(~timed))
            rows = [e for e, is_timed in zip(rows, timed.tolist(), strict=True) if is_timed]
            start_ns, dur_ns, kind = start_ns[timed], dur_ns[timed], kind[timed]
        name_ids, thread_ids = self._name_ids, self._thread_ids
        args = [e.args for e in rows]
        num_known = len(name_ids)
        name = np.array([name_ids[e.name] for e in rows], dtype=np.int32)
        new = enumerate(itertools.islice(name_ids, num_known, None), num_known)
        self._old_steps += [number for number, text in new if text.startswith("ProfilerStep#")]
        if self._old_steps:
            kind[(kind == EventKind.OP) & np.isin(name, self._old_steps)] = EventKind.ANNOTATION
        end_ns = np.maximum(start_ns + dur_ns, start_ns)
        self._first_ns = min(self._first_ns, int(start_ns.min()))
        self._last_ns = max(self._last_ns, int(end_ns.max()))
        parts: Columns = (
            kind,
            start_ns,
            end_ns,
            name,
            np.array([thread_ids[e.pid, e.tid] for e in rows], dtype=np.int32),
            np.array([a.correlation for a in args], dtype=np.int64),
            np.array([a.external if a.external >= 0 else a.external_old for a in args], dtype=np.int64),
            np.array([a.stream for a in args], dtype=np.int64),
            np.array([a.device for a in args], dtype=np.int64),
        )
        for column, part in zip(self._bytes, parts, strict=True):
            column += part.tobytes()

    def _take(self) -> Columns:
        columns = tuple(np.frombuffer(part, dtype) for part, dtype in zip(self._bytes, TYPES, strict=True))
        self._bytes = [bytearray() for _ in TYPES]
        return columns

    def finish(self, path: str, around: Envelope) -> Events:
        """Join the blocks."""
        has_rows = self._first_ns <= self._last_ns
        kind, start_ns, end_ns, name, thread, correlation, external, stream, device = self._take()
        return Events(
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
            names=tuple(self._name_ids),
            threads=tuple(self._thread_ids.texts),
            metadata=around.metadata,
            first_ns=self._first_ns if has_rows else 0,
            last_ns=self._last_ns if has_rows else 0,
            num_events=self.num_events,
            num_dropped=self.num_dropped,
            raw_bytes=around.raw_bytes,
            is_truncated=around.is_truncated,
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


def _is_exact(us: NDArray[Any]) -> bool:
    return us.dtype.kind == "i" or (us.dtype.kind == "f" and bool(np.all(np.abs(us) < _EXACT_FLOAT_US)))


def _to_ns(us: NDArray[Any]) -> Int64:
    if us.dtype.kind == "i":
        return us.astype(np.int64) * 1000
    # Whole µs apart: us * 1000.0 rounds a second time, which between 2^42 µs and 2^52 ns costs a quarter of them 1 ns.
    whole = np.floor(us)
    return np.asarray(whole.astype(np.int64) * 1000 + np.rint((us - whole) * 1000.0).astype(np.int64))


def _exact_ns(us: Decimal) -> int:
    return int((us * 1000).to_integral_value())


def _lenient(raw: msgspec.Raw) -> tuple[_Event, _ExactEvent] | None:
    """Read an event by itself, its numbers from texts where need be; None where it has no time or is no event."""
    with suppress(msgspec.ValidationError, UnicodeDecodeError):
        return _EVENT.decode(raw), _EXACT_EVENT.decode(raw)
    try:
        tree = json.loads(bytes(raw).decode(errors="replace"), parse_float=Decimal)
    except ValueError:
        return None
    if not isinstance(tree, dict):
        return None
    if tree.get("ph") != "X":
        return _Event(), _ExactEvent()
    start_us, dur_us = _number(tree.get("ts")), _number(tree.get("dur", 0))
    if start_us is None or dur_us is None:
        return None
    args = tree.get("args")
    ids = {key: _number(value) for key, value in args.items()} if isinstance(args, dict) else {}
    texts = {key: str(tree.get(key, "")) for key in ("ph", "cat", "name", "pid", "tid")}
    known = {key: int(value) for key, value in ids.items() if value is not None and abs(value) < 2**63}
    if abs(start_us) > _MAX_START_US or abs(dur_us) > _MAX_LENGTH_US:
        return None
    event = _Event(**texts, ts=float(start_us), dur=float(dur_us), args=msgspec.convert(known, _Args))
    return event, _ExactEvent(ph=event.ph, cat=event.cat, ts=start_us, dur=dur_us)


def _number(value: object) -> Decimal | None:
    """Read a number, also one written as a text; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | Decimal | str):
        return None
    try:
        number = Decimal(value)
    except InvalidOperation:
        return None
    return number if number.is_finite() else None
