"""The worker's side of the spool, on a thread of its own: recordings and state go out, requests and control come in.

The step's thread hands over one recording and goes on; while it is being stored no step is recorded, as exporting holds
the GIL (torch 2.13), and a recorded step would show that as its own host time. A disk that is full or read-only costs
samples, which are counted, and nothing else.

What this thread takes from serving is its CPU time, and for an export all the time that passes, as a step waits for the
GIL even where the exporting thread itself waits for a core.
"""

import gzip
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from taxbreak_vllm.model.errors import SpoolError
from taxbreak_vllm.model.host import HostFacts
from taxbreak_vllm.model.step import StepInfo
from taxbreak_vllm.model.worker import CaptureRequest, Control, WorkerState
from taxbreak_vllm.serving.drops import Drops, logger
from taxbreak_vllm.serving.recorder import RecordedStep
from taxbreak_vllm.spool.spool import Spool

POLL_NS = 150_000_000
PUBLISH_NS = 1_000_000_000
HEARTBEAT_NS = 5_000_000_000

_CLOCKS = {"updated_unix_ns", "serving_ns", "overhead_ns", "runqueue_wait_ratio"}
_CHUNK_BYTES = 2**20
_DEVICE_RECORDS = (b'"cat": "kernel"', b'"cat": "gpu_memcpy"', b'"cat": "gpu_memset"')  # as Kineto writes them
_CLOSE_TIMEOUT_S = 2.0


class _TooLargeError(Exception):
    """A compressed trace exceeds its bound."""


class Outbox:
    """Stores recordings, publishes the worker's state and reads requests until it is closed."""

    def __init__(
        self,
        spool: Spool,
        server_id: str,
        drops: Drops,
        *,
        state: Callable[[], WorkerState],
        follow: Callable[[CaptureRequest | None, Control | None], bool],
        max_trace_bytes: int,
        facts: Callable[[], HostFacts | None] = lambda: None,
        tokens_timeout_s: float = 1.0,
        now_ns: Callable[[], int] = time.monotonic_ns,
        cpu_ns: Callable[[], int] = time.thread_time_ns,
    ) -> None:
        self._spool = spool
        self._server_id = server_id
        self._drops = drops
        self._state = state
        self._follow = follow
        self._max_trace_bytes = max_trace_bytes
        self._facts = facts
        self._tokens_timeout_s = tokens_timeout_s
        self._are_tokens_fetched = True
        self._now_ns = now_ns
        self._cpu_ns = cpu_ns
        self._pending: queue.SimpleQueue[RecordedStep] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="taxbreak-outbox", daemon=True)
        self._is_closed = False
        self._published: WorkerState | None = None
        self._published_ns = 0
        self._can_publish = True
        self._messages: tuple[CaptureRequest | None, Control | None] = (None, None)
        self._stamp: object = None
        self._read_ns = -PUBLISH_NS
        self.is_busy = False
        self.num_stored = 0
        self.num_device_records = 0
        self.cost_ns = 0
        self.asked_cost_ns = 0

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def offer(self, recording: RecordedStep) -> None:
        """Take a recording without waiting; for the thread of the steps, while `is_busy` is False."""
        self.is_busy = True
        self._pending.put(recording)

    def close(self) -> None:
        """Let the thread store what it was given and end; waits for it, briefly."""
        self._is_closed = True
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(_CLOSE_TIMEOUT_S)

    def turn(self, *, wait_s: float) -> None:
        """Store one recording if one comes within `wait_s`, read request and control, publish the state if due."""
        recording = None
        with suppress(queue.Empty):
            recording = self._pending.get(block=wait_s > 0, timeout=wait_s or None)
        if recording is not None:
            before_ns = self.cost_ns
            with self._costing():
                self._store(recording)
            if recording.progress is not None:
                self.asked_cost_ns += self.cost_ns - before_ns
        with self._costing():
            has_news = self._follow(*self._read())
            if recording is not None:
                self.is_busy = False  # only now: what storing cost is settled before the next step may be recorded
            self._publish(at_once=has_news)

    def _read(self) -> tuple[CaptureRequest | None, Control | None]:
        """Read request and control where they changed, and once a second whatever their stamps say."""
        stamp, now_ns = self._spool.messages_stamp(self._server_id), self._now_ns()
        if stamp != self._stamp or now_ns - self._read_ns >= PUBLISH_NS:
            self._stamp, self._read_ns = stamp, now_ns
            self._messages = (self._spool.read_request(self._server_id), self._spool.read_control(self._server_id))
        return self._messages

    @contextmanager
    def _costing(self) -> Iterator[None]:
        started_ns = self._cpu_ns()
        try:
            yield
        finally:
            self.cost_ns += self._cpu_ns() - started_ns

    def _run(self) -> None:
        while not self._is_closed or self.is_busy:
            self._survive(lambda: self.turn(wait_s=POLL_NS / 1e9))
        self._survive(lambda: self._publish(at_once=True))

    def _survive(self, act: Callable[[], None]) -> None:
        """Count a fault of our own instead of ending this thread by it: what it would have said would be lost too."""
        try:
            act()
        except Exception as error:
            self.is_busy = False
            self._drops.add("outbox", repr(error))
            time.sleep(POLL_NS / 1e9)

    def _store(self, recording: RecordedStep) -> None:
        try:
            info = self._complete(recording)
            evicted = self._spool.put(info, lambda path: self._write_trace(recording, path))
        except _TooLargeError:
            self._lose(recording, "too_large", f"as its trace exceeds TAXBREAK_MAX_TRACE_BYTES={self._max_trace_bytes}")
        except SpoolError as error:
            self._lose(recording, "spool", error)
        except Exception as error:
            self._lose(recording, "export", repr(error))
        else:
            self.num_stored += 1
            if recording.progress is not None:
                recording.progress.num_recorded += 1
            if evicted:
                self._drops.add("evicted", f"as {self._spool.root} is full of unread ones", count=len(evicted))

    def _complete(self, recording: RecordedStep) -> StepInfo:
        """Add the tokens once vLLM has fetched them; a rank whose outputs it never fetches is waited for once.

        Add the chosen experts as well, where they were kept, and what the host is like.
        """
        is_counted = recording.tokens.wait(self._tokens_timeout_s if self._are_tokens_fetched else 0)
        self._are_tokens_fetched = is_counted
        output_tokens, accepted_tokens = recording.tokens.counts
        info = recording.info
        if info.work is not None and recording.experts is not None:
            info = replace(info, work=replace(info.work, distinct_experts=recording.experts.count()))
        batch = replace(info.batch, output_tokens=output_tokens, accepted_tokens=accepted_tokens)
        return replace(info, batch=batch, host=self._facts())

    def _write_trace(self, recording: RecordedStep, path: Path) -> None:
        raw = path.with_name("trace.json")
        try:
            started_ns, started_cpu_ns = self._now_ns(), self._cpu_ns()
            recording.profile.export(raw)
            self.cost_ns += max(0, self._now_ns() - started_ns - (self._cpu_ns() - started_cpu_ns))
            self._compress(raw, path)
        finally:
            raw.unlink(missing_ok=True)

    def _compress(self, raw: Path, path: Path) -> None:
        with open(raw, "rb") as source, open(path, "wb") as file, gzip.open(file, "wb", compresslevel=3) as target:
            while chunk := source.read(_CHUNK_BYTES):
                self.num_device_records += sum(map(chunk.count, _DEVICE_RECORDS))
                target.write(chunk)
                if file.tell() > self._max_trace_bytes:
                    raise _TooLargeError
        if path.stat().st_size > self._max_trace_bytes:
            raise _TooLargeError

    def _lose(self, recording: RecordedStep, reason: str, detail: object) -> None:
        if recording.progress is not None:
            recording.progress.num_lost += 1
        self._drops.add(reason, detail)

    def _publish(self, *, at_once: bool = False) -> None:
        now_ns = self._now_ns()
        age_ns = now_ns - self._published_ns
        if self._published is not None and age_ns < PUBLISH_NS and not at_once:
            return
        state = self._state()
        if (
            self._published is not None
            and age_ns < HEARTBEAT_NS
            and not at_once
            and not _differ(state, self._published)
        ):
            return
        self._published, self._published_ns = state, now_ns
        try:
            self._spool.put_state(state)
        except SpoolError as error:
            if self._can_publish:
                logger.warning("taxbreak: %s; trying again, without a further word", error)
            self._can_publish = False


def _differ(state: WorkerState, other: WorkerState) -> bool:
    """Compare all but the clocks; this thread itself takes time all the time."""
    names = state.__dataclass_fields__.keys() - _CLOCKS
    return any(getattr(state, name) != getattr(other, name) for name in names)
