"""Read a Kineto trace (.json, .json.gz, .json.zst) into columns.

In: a path. Out: `Events`, one row per event that the decomposition needs, as numpy columns over interned strings.
The file is read and decoded in blocks cut between events, so memory holds the columns and one block, never the file,
and no event lives longer as a Python object than its block. Times become integer ns exactly: a float of microseconds is
exact below 2^43 µs (its spacing is under 1 ns there); a block with larger fractional ones is decoded again as decimals.
"""

import gc
import gzip
import re
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from enum import IntEnum
from pathlib import Path
from typing import IO, Any, cast

import msgspec
import numpy as np
from numpy.typing import NDArray

from taxbreak_vllm.errors import TraceFormatError

Int64 = NDArray[np.int64]
Int32 = NDArray[np.int32]

BLOCK_BYTES = 4 * 2**20
_HEADER_LIMIT_BYTES = 64 * 2**20
_EXACT_FLOAT_US = 2.0**43


class Kind(IntEnum):
    """What an event is, whatever its category was called when it was written."""

    OP = 0
    RUNTIME = 1
    KERNEL = 2
    MEMCPY = 3
    MEMSET = 4
    ANNOTATION = 5


# Category names since 2021; `Operator`, `Kernel`… are those before PyTorch 1.12. "ProfilerStep#n" was an op then.
_KIND_BY_CATEGORY = {
    "cpu_op": Kind.OP,
    "Operator": Kind.OP,
    "cuda_runtime": Kind.RUNTIME,
    "cuda_driver": Kind.RUNTIME,
    "hip_runtime": Kind.RUNTIME,
    "hip_driver": Kind.RUNTIME,
    "xpu_runtime": Kind.RUNTIME,
    "xpu_driver": Kind.RUNTIME,
    "privateuse1_runtime": Kind.RUNTIME,
    "privateuse1_driver": Kind.RUNTIME,
    "Runtime": Kind.RUNTIME,
    "runtime": Kind.RUNTIME,
    "driver": Kind.RUNTIME,
    "kernel": Kind.KERNEL,
    "concurrent_kernel": Kind.KERNEL,
    "Kernel": Kind.KERNEL,
    "gpu_memcpy": Kind.MEMCPY,
    "Memcpy": Kind.MEMCPY,
    "gpu_memset": Kind.MEMSET,
    "Memset": Kind.MEMSET,
    "user_annotation": Kind.ANNOTATION,
}


@dataclass(frozen=True, slots=True)
class Events:
    """The events of a trace as columns, all of length n, in file order.

    `kind` int8 (Kind), `start_ns` and `end_ns` int64, `name` int32 into `names`, `thread` int32 into `threads`
    ((pid, tid) pairs), `correlation`, `external` (External id), `stream` and `device` int64, -1 where absent.
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
    num_events: int
    num_dropped: int
    raw_bytes: int
    is_truncated: bool

    def rows(self, *kinds: Kind) -> NDArray[np.intp]:
        """Return the indices of all events of these kinds, in file order."""
        return np.flatnonzero(np.isin(self.kind, kinds))

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


class _Args(msgspec.Struct, gc=False, frozen=True, rename={"external": "External id", "external_old": "external id"}):
    correlation: int = -1
    external: int = -1
    external_old: int = -1
    stream: int = -1
    device: int = -1


class _Event(msgspec.Struct, gc=False):
    ph: str = ""
    cat: str = ""
    name: str = ""
    pid: int | str = 0
    tid: int | str = 0
    ts: int | float = 0
    dur: int | float = 0
    args: _Args = _Args()


class _ExactEvent(msgspec.Struct, gc=False):
    ph: str = ""
    cat: str = ""
    ts: Decimal = Decimal(0)
    dur: Decimal = Decimal(0)


_EVENTS = msgspec.json.Decoder(list[_Event])
_EXACT_EVENTS = msgspec.json.Decoder(list[_ExactEvent])
_RAW_EVENTS = msgspec.json.Decoder(list[msgspec.Raw])

# `{"` cannot occur inside a JSON string (its quote would be escaped), so these match between events only, or between
# objects of a list nested in one; a block cut there does not decode and is cut elsewhere.
_CUT = re.compile(rb'\}\s*,\s*(?=\{\s*"[^"\\]{1,64}"\s*:)')
_START = re.compile(rb'"traceEvents"\s*:\s*\[')
_TRAILING = re.compile(r"trailing characters \(byte (\d+)\)")


def read_events(path: str | Path) -> Events:
    """Read a trace file into columns.

    Raises TraceFormatError, in one line naming the file, where it is missing, damaged (truncated gzip), not JSON, not a
    trace, or empty. A plain JSON file that ends in the middle is read up to its last whole event (`is_truncated`).
    """
    path = Path(path)
    columns = _Columns()
    try:
        with _no_garbage_collection(), _open(path) as file:
            metadata, truncated, raw_bytes = _read_blocks(file, columns, str(path))
    except OSError as error:
        raise TraceFormatError(f"{path}: {error.strerror or error}") from None
    except (EOFError, zlib.error) as error:
        raise TraceFormatError(f"{path}: damaged or truncated compressed file ({error})") from None
    if columns.num_events == 0:
        raise TraceFormatError(f"{path}: an empty trace, without any event")
    return columns.finish(str(path), metadata, raw_bytes, truncated)


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


def _open(path: Path) -> IO[bytes]:
    with open(path, "rb") as file:
        magic = file.read(4)
    if magic[:2] == b"\x1f\x8b":
        return cast(IO[bytes], gzip.open(path, "rb"))
    if magic == b"\x28\xb5\x2f\xfd":
        try:
            import zstandard
        except ImportError:
            raise TraceFormatError(
                f"{path}: reading .zst needs the package zstandard (pip install zstandard)"
            ) from None
        return cast(IO[bytes], zstandard.open(path, "rb"))
    return open(path, "rb")


def _read_blocks(file: IO[bytes], columns: "_Columns", path: str) -> tuple[dict[str, object], bool, int]:
    """Feed all events to `columns`; return the metadata around them, whether the text broke off, and its bytes."""
    head, buffer, raw_bytes = _read_head(file, path)
    while True:
        block = file.read(BLOCK_BYTES)
        raw_bytes += len(block)
        if not block:
            break
        buffer += block
        cut = _last_cut(buffer)
        if cut is None:
            continue
        if columns.add(b"[" + buffer[:cut] + b"]"):
            buffer = buffer[buffer.index(b",", cut) + 1 :]
        elif (end := _add_until_end(buffer, columns)) is not None:
            rest = buffer[end:] + file.read()
            return _metadata(head, rest), False, raw_bytes + len(rest) - len(buffer) + end
    end = _add_until_end(buffer, columns)
    if end is not None:
        return _metadata(head, buffer[end:]), False, raw_bytes
    for match in reversed(list(_CUT.finditer(buffer))):
        if columns.add(b"[" + buffer[: match.start() + 1] + b"]"):
            return _metadata(head, b"}"), True, raw_bytes
    if columns.num_events == 0:
        raise TraceFormatError(f"{path}: not valid JSON after the start of its traceEvents")
    return _metadata(head, b"}"), True, raw_bytes


def _read_head(file: IO[bytes], path: str) -> tuple[bytes, bytes, int]:
    """Read up to the opening bracket of the events; return the text before it, what was read after it, and bytes."""
    buffer = file.read(BLOCK_BYTES)
    if not buffer.strip():
        raise TraceFormatError(f"{path}: an empty file")
    if buffer.lstrip()[:1] == b"[":
        return b"", buffer.lstrip()[1:], len(buffer)
    if buffer.lstrip()[:1] != b"{":
        raise TraceFormatError(f"{path}: not JSON, so not a Kineto trace")
    while True:
        match = _START.search(buffer)
        if match:
            return buffer[: match.end()], buffer[match.end() :], len(buffer)
        block = file.read(BLOCK_BYTES)
        if not block or len(buffer) > _HEADER_LIMIT_BYTES:
            raise TraceFormatError(f"{path}: JSON without a traceEvents list, so not a Kineto trace")
        buffer += block


def _last_cut(buffer: bytes) -> int | None:
    """Find the last place between two events; search the tail first, since one event is rarely over a few KB."""
    for tail in (1 << 14, 1 << 18, len(buffer)):
        start = max(0, len(buffer) - tail)
        last = None
        for last in _CUT.finditer(buffer, start):  # noqa: B007 - the last match is what is wanted
            pass
        if last is not None:
            return last.start() + 1
        if start == 0:
            break
    return None


def _add_until_end(buffer: bytes, columns: "_Columns") -> int | None:
    """Add the events up to the closing bracket of their list; return the position after it, None if there is none."""
    text = b"[" + buffer
    try:
        _RAW_EVENTS.decode(text)
        end = len(text)
    except msgspec.DecodeError as error:
        # The decoder stops right after the list and says where: no scan of ours could find that place in one pass.
        trailing = _TRAILING.search(str(error))
        if trailing is None:
            return None
        end = int(trailing[1]) - 1
    return end - 1 if columns.add(text[:end]) else None


def _metadata(head: bytes, rest: bytes) -> dict[str, object]:
    for text in (head + b"]" + rest, head + b"]}"):
        try:
            tree = msgspec.json.decode(text, type=dict[str, object])
        except msgspec.MsgspecError:
            continue
        tree.pop("traceEvents", None)
        return tree
    return {}


class _Columns:
    """Collects the columns of all blocks."""

    def __init__(self) -> None:
        self.num_events = 0
        self.num_dropped = 0
        self._name_ids: defaultdict[str, int] = _interner()
        self._thread_ids: defaultdict[tuple[int | str, int | str], int] = _interner()
        self._blocks: list[tuple[NDArray[Any], ...]] = []

    def add(self, text: bytes) -> bool:
        """Add the events of a JSON list; False, with nothing added, where the text is not one."""
        try:
            events = _EVENTS.decode(text)
        except msgspec.ValidationError:
            return self._add_tolerantly(text)
        except msgspec.DecodeError:
            return False
        self._append(events, lambda: _EXACT_EVENTS.decode(text))
        return True

    def _add_tolerantly(self, text: bytes) -> bool:
        # Somewhere in this block a field has a type nobody writes; keep every event that makes sense by itself.
        try:
            raws = _RAW_EVENTS.decode(text)
        except msgspec.DecodeError:
            return False
        events = [event for event in map(_lenient, raws) if event is not None]
        self.num_dropped += len(raws) - len(events)
        self.num_events += len(raws) - len(events)
        self._append(events, lambda: _EXACT_EVENTS.decode(msgspec.json.encode(events)))
        return True

    def _append(self, events: Sequence[_Event], decode_exactly: Callable[[], Sequence[_ExactEvent]]) -> None:
        self.num_events += len(events)
        rows = [e for e in events if e.ph == "X" and e.cat in _KIND_BY_CATEGORY]
        if not rows:
            return
        start_us, dur_us = np.array([e.ts for e in rows]), np.array([e.dur for e in rows])
        if _is_exact(start_us) and _is_exact(dur_us):
            start_ns, dur_ns = _to_ns(start_us), _to_ns(dur_us)
        else:
            exact = [e for e in decode_exactly() if e.ph == "X" and e.cat in _KIND_BY_CATEGORY]
            start_ns = np.array([int((e.ts * 1000).to_integral_value()) for e in exact], dtype=np.int64)
            dur_ns = np.array([int((e.dur * 1000).to_integral_value()) for e in exact], dtype=np.int64)
        name_ids, thread_ids = self._name_ids, self._thread_ids
        args = [e.args for e in rows]
        self._blocks.append(
            (
                np.array([_KIND_BY_CATEGORY[e.cat] for e in rows], dtype=np.int8),
                start_ns,
                start_ns + dur_ns,
                np.array([name_ids[e.name] for e in rows], dtype=np.int32),
                np.array([thread_ids[e.pid, e.tid] for e in rows], dtype=np.int32),
                np.array([a.correlation for a in args], dtype=np.int64),
                np.array([a.external if a.external >= 0 else a.external_old for a in args], dtype=np.int64),
                np.array([a.stream for a in args], dtype=np.int64),
                np.array([a.device for a in args], dtype=np.int64),
            )
        )

    def finish(self, path: str, metadata: dict[str, object], raw_bytes: int, truncated: bool) -> Events:
        """Join the blocks."""
        types = (np.int8, np.int64, np.int64, np.int32, np.int32, np.int64, np.int64, np.int64, np.int64)
        columns = [
            np.concatenate([block[i] for block in self._blocks]) if self._blocks else np.empty(0, dtype)
            for i, dtype in enumerate(types)
        ]
        kind, start_ns, end_ns, name, thread, correlation, external, stream, device = columns
        names = tuple(self._name_ids)
        # Old traces write one thread as 5 here and as "5" there.
        thread_ids: defaultdict[tuple[str, str], int] = _interner()
        same = np.array([thread_ids[str(pid), str(tid)] for pid, tid in self._thread_ids] or [0], dtype=np.int32)
        is_old_step = np.array([n.startswith("ProfilerStep#") for n in names] or [False])
        kind[(kind == Kind.OP) & is_old_step[name]] = Kind.ANNOTATION
        return Events(
            path=path,
            kind=kind,
            start_ns=start_ns,
            end_ns=np.maximum(end_ns, start_ns),
            name=name,
            thread=same[thread],
            correlation=correlation,
            external=external,
            stream=stream,
            device=device,
            names=names,
            threads=tuple(thread_ids),
            metadata=metadata,
            num_events=self.num_events,
            num_dropped=self.num_dropped,
            raw_bytes=raw_bytes,
            is_truncated=truncated,
        )


def _interner() -> defaultdict[Any, int]:
    ids: defaultdict[Any, int] = defaultdict()
    ids.default_factory = ids.__len__
    return ids


def _is_exact(us: NDArray[Any]) -> bool:
    return us.dtype.kind == "i" or (us.dtype.kind == "f" and bool(np.all(np.abs(us) < _EXACT_FLOAT_US)))


def _to_ns(us: NDArray[Any]) -> Int64:
    if us.dtype.kind == "i":
        return us.astype(np.int64) * 1000
    return np.rint(us * 1000.0).astype(np.int64)


def _lenient(raw: msgspec.Raw) -> _Event | None:
    try:
        return msgspec.json.decode(raw, type=_Event)
    except msgspec.ValidationError:
        tree = msgspec.json.decode(raw)
    if not isinstance(tree, dict):
        return None
    args = tree.get("args")
    numbers = {k: v for k, v in args.items() if isinstance(v, int)} if isinstance(args, dict) else {}
    texts = {k: str(tree.get(k, "")) for k in ("ph", "cat", "name", "pid", "tid")}
    try:
        times = {k: float(tree.get(k) or 0) for k in ("ts", "dur")}
        return msgspec.convert({**texts, **times, "args": numbers}, _Event)
    except (ValueError, TypeError, msgspec.ValidationError):
        return None
