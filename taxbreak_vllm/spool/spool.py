"""Captures on disk: put, claim, list, evict.

The one seam between serving and analysis: `SPOOL/<server id>/<rank>/<step id>/{step.json,trace.json.gz}`, written
under a temporary name and renamed, so a reader sees a capture whole or not at all. `state.json` beside them is the
worker's own state, `SPOOL/<server id>/capture.json` a request for steps and `control.json` how to record. An analyzed
capture carries a file `analyzed` that says how it went. Folders are 0700 and files 0600; `layout` knows their names and
whose they must be. What is inside a trace is not known here.
"""

import dataclasses
import fcntl
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from taxbreak_vllm.model.engine import EngineState
from taxbreak_vllm.model.errors import SpoolError
from taxbreak_vllm.model.frontend import FrontendState, Waterfall
from taxbreak_vllm.model.step import StepInfo
from taxbreak_vllm.model.worker import CaptureRequest, Control, WorkerState
from taxbreak_vllm.spool.capture import Capture
from taxbreak_vllm.spool.layout import (
    ANALYZED,
    API,
    CONTROL,
    ENGINE,
    NAME,
    NUM_WINDOWS,
    REQUEST,
    REQUESTS,
    STATE,
    STEP,
    TRACE,
    TRAFFIC,
    WINDOW,
    api_dirs,
    capture_dirs,
    engine_dirs,
    is_capture,
    is_marked,
    is_own,
    open_private,
    rank_dirs,
    remove_leftovers,
    remove_rank,
    remove_server,
    server_dirs,
    spilled_bytes,
    take,
    traffic_dirs,
)
from taxbreak_vllm.spool.values import T, read_value, write_bytes, write_value


class Spool:
    """A spool folder, created on first use; any number of processes may hold one on the same folder."""

    def __init__(self, root: Path, *, max_bytes: int, max_captures: int) -> None:
        self.root = root
        self.max_bytes = max_bytes
        self.max_captures = max_captures

    def make(self) -> None:
        """Make the folder, or take the one that is there; raises SpoolError where it cannot be a spool of ours."""
        try:
            take(self.root)
        except OSError as error:
            reason = error.strerror or error
            raise SpoolError(
                f"{self.root}: cannot write here: {reason}; set TAXBREAK_SPOOL to another folder"
            ) from error

    def put(self, info: StepInfo, write_trace: Callable[[Path], None]) -> tuple[Capture, ...]:
        """Store one capture whole and return what had to be evicted to keep the bounds, unanalyzed captures only.

        `write_trace` is given the path to write the gzip trace to. Raises SpoolError where the disk refuses or the
        capture alone is larger than the spool; nothing of it stays then.
        """
        rank_dir = self._rank_dir(info.server.server_id, info.server.rank)
        temporary = rank_dir / f".{_checked(info.step_id)}.tmp"
        try:
            self._make(temporary)
            try:
                write_trace(temporary / TRACE)
                os.chmod(temporary / TRACE, 0o600)
                write_value(temporary / STEP, info)
                size = Capture(temporary).size_bytes()
                if size > self.max_bytes:
                    raise SpoolError(f"{self.root}: a capture of {size} bytes exceeds the spool's {self.max_bytes}")
                with self.lock():
                    evicted = self.evict(spare_bytes=size, spare_captures=1)
                    temporary.rename(rank_dir / info.step_id)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        except OSError as error:
            raise SpoolError(f"{self.root}: cannot store a capture: {error.strerror or error}") from error
        return evicted

    def put_state(self, state: WorkerState) -> None:
        """Publish a worker's state; raises SpoolError where the disk refuses."""
        self._publish(self._rank_dir(state.server.server_id, state.server.rank) / STATE, state)

    def put_engine_state(self, state: EngineState) -> None:
        """Publish an engine's state; raises SpoolError where the disk refuses."""
        self._publish(self.engine_dir(state.server_id, state.engine) / STATE, state)

    def put_window(self, server_id: str, engine: str, number: int, data: bytes) -> None:
        """Keep consecutive turns of an engine's loop, over an older one; raises SpoolError where the disk refuses."""
        path = self.engine_dir(server_id, engine) / WINDOW.format(number % NUM_WINDOWS)
        try:
            self._make(path.parent)
            write_bytes(path, data)
        except OSError as error:
            raise SpoolError(f"{self.root}: cannot store {path.name}: {error.strerror or error}") from error

    def engine_states(self) -> list[EngineState]:
        """Read the state of every engine that ever published one here; unreadable ones are left out."""
        return list(_readable(engine_dirs(self.root), STATE, EngineState))

    def engine_dir(self, server_id: str, engine: str) -> Path:
        """Return the folder of an engine; raises SpoolError for names that cannot name one."""
        return self.root / _checked(server_id) / f"{ENGINE}{_checked(engine)}"

    def put_frontend_state(self, state: FrontendState) -> None:
        """Publish an API server's state; raises SpoolError where the disk refuses."""
        self._publish(self.api_dir(state.server_id, state.api) / STATE, state)

    def frontend_states(self) -> list[FrontendState]:
        """Read the state of every API server that ever published one here; unreadable ones are left out."""
        return list(_readable(api_dirs(self.root), STATE, FrontendState))

    def put_waterfalls(self, server_id: str, api: str, waterfalls: Sequence[Waterfall]) -> None:
        """Replace the waterfalls of an API server, oldest first; raises SpoolError where the disk refuses."""
        self._publish(self.api_dir(server_id, api) / REQUESTS, waterfalls)

    def waterfalls(self, server_id: str, api: str) -> tuple[Waterfall, ...]:
        """Read the waterfalls of an API server, oldest first; none where there are none or they cannot be read."""
        try:
            return read_value(self.api_dir(server_id, api) / REQUESTS, tuple[Waterfall, ...])
        except SpoolError:
            return ()

    def api_dir(self, server_id: str, api: str) -> Path:
        """Return the folder of an API server; raises SpoolError for names that cannot name one."""
        return self.root / _checked(server_id) / f"{API}{_checked(api)}"

    def make_traffic_dir(self, server_id: str) -> Path:
        """Make the folder of what a server keeps of its requests and steps; raises SpoolError where that cannot be."""
        folder = self.root / _checked(server_id) / TRAFFIC
        try:
            self._make(folder)
        except OSError as error:
            raise SpoolError(f"{self.root}: cannot make {folder.name}: {error.strerror or error}") from error
        return folder

    def messages_stamp(self, server_id: str) -> tuple[tuple[int, int] | None, ...]:
        """Return what changes when a request or a control message comes, goes or is replaced; cheaper than reading."""
        folder = f"{self.root}/{_checked(server_id)}"
        return tuple(_stamp(f"{folder}/{name}") for name in (REQUEST, CONTROL))

    def read_request(self, server_id: str) -> CaptureRequest | None:
        """Return the standing request for a server, None where there is none or it cannot be read."""
        return self._read_message(server_id, REQUEST, CaptureRequest)

    def read_control(self, server_id: str) -> Control | None:
        """Return how a server shall record, None where nobody has said or it cannot be read."""
        return self._read_message(server_id, CONTROL, Control)

    def evict(self, *, spare_bytes: int = 0, spare_captures: int = 0) -> tuple[Capture, ...]:
        """Remove the oldest captures until the spared room is free; return those that nobody had analyzed."""
        captures = self.captures()
        sizes = [capture.size_bytes() for capture in captures]
        size, count = sum(sizes) + self.spilled_bytes() + spare_bytes, len(captures) + spare_captures
        lost = []
        for capture, capture_size in zip(captures, sizes, strict=True):
            if size <= self.max_bytes and count <= self.max_captures:
                break
            if not capture.is_analyzed:
                lost.append(capture)
            self.remove(capture)
            size, count = size - capture_size, count - 1
        return tuple(lost)

    @contextmanager
    def claim(self, role: str = "analyzer") -> Iterator[bool]:
        """Become the one process of this role on this spool; yields False while another is it.

        Raises SpoolError where the folder cannot be a spool of ours.
        """
        self.make()
        path = self.root / f".{role}.lock"
        try:
            lock = os.fdopen(open_private(path), "wb")
        except OSError as error:
            raise SpoolError(f"{path}: cannot be locked: {error.strerror or error}") from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True

    def captures(self) -> list[Capture]:
        """List all complete captures, oldest first."""
        found = []
        for rank_dir in rank_dirs(self.root):
            for path in filter(is_capture, capture_dirs(rank_dir)):
                with suppress(FileNotFoundError):  # evicted this very moment
                    found.append((os.stat(path).st_mtime_ns, path))
        return [Capture(Path(path)) for _, path in sorted(found)]

    def pending(self) -> list[Capture]:
        """List the captures nobody has analyzed yet, oldest first."""
        return [capture for capture in self.captures() if not capture.is_analyzed]

    def mark(self, capture: Capture, outcome: str) -> None:
        """Note that a capture was analyzed and how; a capture evicted meanwhile is left alone."""
        with suppress(FileNotFoundError):
            modified_ns = capture.path.stat().st_mtime_ns
            write_bytes(capture.path / ANALYZED, outcome.encode())
            os.utime(capture.path, ns=(modified_ns, modified_ns))  # keeps "oldest first" about the recording

    def find(self, step_id: str) -> Capture | None:
        """Find a capture by its step id; None for an unknown id or one that is no id."""
        if not NAME.fullmatch(step_id):
            return None
        paths = [Path(rank_dir, step_id) for rank_dir in rank_dirs(self.root)]
        return next((Capture(path) for path in paths if is_capture(path) and not path.is_symlink()), None)

    def states(self) -> list[WorkerState]:
        """Read the state of every worker that ever published one here; unreadable ones are left out."""
        return list(_readable(rank_dirs(self.root), STATE, WorkerState))

    def put_request(self, server_id: str, request: CaptureRequest) -> None:
        """Ask a server for steps, replacing an earlier request; raises SpoolError where the disk refuses."""
        server_dir = self.root / _checked(server_id)
        try:
            self._make(server_dir)
            write_value(server_dir / REQUEST, request)
        except OSError as error:
            raise SpoolError(f"{self.root}: cannot ask for a capture: {error.strerror or error}") from error

    def put_control(self, server_id: str, control: Control) -> Control:
        """Say how a server shall record and return the whole of it: what is None stays as an earlier one had it.

        Raises SpoolError where the disk refuses.
        """
        server_dir = self.root / _checked(server_id)
        try:
            self._make(server_dir)
            with self.lock():
                earlier = self.read_control(server_id)
                given = {name: value for name, value in dataclasses.asdict(control).items() if value is not None}
                merged = control if earlier is None else dataclasses.replace(earlier, **given)
                write_value(server_dir / CONTROL, merged)
        except OSError as error:
            raise SpoolError(f"{self.root}: cannot change the recording: {error.strerror or error}") from error
        return merged

    def cancel_request(self, server_id: str, capture_id: str) -> None:
        """Take a request back, if it is still the standing one."""
        request = self.read_request(server_id)
        if request is not None and request.capture_id == capture_id:
            (self.root / _checked(server_id) / REQUEST).unlink(missing_ok=True)

    def remove(self, capture: Capture) -> None:
        """Delete a capture; a crash in between leaves a hidden folder that `sweep` removes."""
        doomed = capture.path.with_name(f".{capture.path.name}.gone")
        with suppress(FileNotFoundError):
            capture.path.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)

    def sweep(self, *, older_than_ns: int) -> int:
        """Remove what was left behind before `older_than_ns` (Unix time); return how many folders that were.

        That is temporary folders of writers that died, and servers that publish no more and have no capture left; a
        large trace whose analysis died is removed at once.
        """
        if not is_marked(self.root):
            return 0
        with suppress(PermissionError), self.lock():  # of another user
            self.spilled_bytes()
        ranks = [*rank_dirs(self.root), *engine_dirs(self.root), *api_dirs(self.root), *traffic_dirs(self.root)]
        num_left = sum(remove_leftovers(rank, older_than_ns=older_than_ns) for rank in ranks)
        num_ranks = sum(remove_rank(rank, older_than_ns=older_than_ns) for rank in ranks)
        return num_left + num_ranks + sum(remove_server(s, older_than_ns=older_than_ns) for s in server_dirs(self.root))

    def size_bytes(self) -> int:
        """Bytes of all captures."""
        return sum(capture.size_bytes() for capture in self.captures())

    def _rank_dir(self, server_id: str, rank: int) -> Path:
        return self.root / _checked(server_id) / str(rank)

    def _read_message(self, server_id: str, name: str, kind: type[T]) -> T | None:
        try:
            path = self.root / _checked(server_id) / name
            return read_value(path, kind) if is_own(self.root) else None  # what another user says is no order
        except SpoolError:
            return None

    def _publish(self, path: Path, value: object) -> None:
        try:
            self._make(path.parent)
            write_value(path, value)
        except OSError as error:
            raise SpoolError(f"{self.root}: cannot publish {path.name}: {error.strerror or error}") from error

    def _make(self, folder: Path) -> None:
        take(self.root)
        for part in reversed([folder, *folder.parents]):
            if self.root in part.parents:
                part.mkdir(mode=0o700, exist_ok=True)

    def spilled_bytes(self) -> int:
        """Bytes of large traces being analyzed in the spool, to be asked for with the lock."""
        return spilled_bytes(self.root)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Be the only one who stores, evicts or makes room."""
        with os.fdopen(open_private(self.root / ".writer.lock"), "wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _readable(folders: Iterable[str], name: str, kind: type[T]) -> Iterator[T]:
    for folder in folders:
        with suppress(SpoolError):
            yield read_value(Path(folder, name), kind)


def _stamp(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return (
        found.st_ino,
        found.st_mtime_ns,
    )  # the clock has ticks of milliseconds, but a file put in place is another one


def _checked(name: str) -> str:
    if not NAME.fullmatch(name):
        raise SpoolError(f"{name!r} cannot name a folder in the spool")
    return name
