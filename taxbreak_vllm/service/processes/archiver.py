"""The archiver: copies what the spool holds to an archive, in a process of its own that nothing waits for.

`supervisor.archiver_command` starts it, and it runs until its standard input closes. Each capture is one object, put
once; rows of tables follow in batches (`archive_rows`). A store that is away costs a counter and longer and longer
pauses; what the spool evicts before it could be copied is counted as lost and named. It may be killed at any instant: a
thing is noted as stored after the store has it, and what is put once more is the same object.
"""

import argparse
import logging
import random
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from taxbreak_vllm.archive.bundle import SUFFIX, pack
from taxbreak_vllm.archive.layout import CAPTURES, Key, day_of
from taxbreak_vllm.archive.store import Store
from taxbreak_vllm.model.archive import Archived
from taxbreak_vllm.model.errors import ArchiveError, Away, Refused, SpoolError, TaxbreakError
from taxbreak_vllm.service.processes.archive_rows import Batches, finished_steps, key_of, samples
from taxbreak_vllm.service.processes.claim import StopEvent, begin, claimed, run_on, spool_of, spool_parser
from taxbreak_vllm.service.results.archive import Ledger, ledger_path
from taxbreak_vllm.service.results.store import Results
from taxbreak_vllm.settings import Settings
from taxbreak_vllm.spool.capture import Capture
from taxbreak_vllm.spool.layout import is_marked
from taxbreak_vllm.spool.spool import Spool

logger = logging.getLogger("taxbreak.archiver")

_POLL_S = 2.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 60.0
_MAX_NAMED = 20
_NICENESS = 10
_NS_PER_S = 10**9


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What archiving may take: bytes a second and a day, an object at a time; seconds between two batches of rows."""

    bytes_per_second: int
    bytes_per_day: int
    batch_s: int

    @classmethod
    def of(cls, settings: Settings) -> "Bounds":
        """Return the bounds that the settings give."""
        return cls(
            bytes_per_second=settings.archive_bytes_per_second,
            bytes_per_day=settings.archive_bytes_per_day,
            batch_s=settings.archive_batch_s,
        )


class Archiver:
    """Moves what a spool and its results hold into a store; one per spool at a time (`Spool.claim`).

    `sleep` waits for so many seconds, or less where the process is to end.
    """

    def __init__(
        self,
        spool: Spool,
        results_path: Path,
        ledger: Ledger,
        store: Store,
        bounds: Bounds,
        *,
        sleep: Callable[[float], object] = time.sleep,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._spool = spool
        self._results_path = results_path
        self._ledger = ledger
        self._store = store
        self._bounds = bounds
        self._sleep = sleep
        self._now_ns = now_ns
        self._again_ns = self._free_ns = 0
        self._looking = threading.Lock()
        self._failed: set[str] = set()
        self._num_failures = 0
        self._batch_due_ns = now_ns() + bounds.batch_s * _NS_PER_S

    def run(self, stop: StopEvent) -> None:
        """Do one turn after the other until `stop` is set."""
        while not stop.is_set():
            self.turn(stop)
            stop.wait(_POLL_S)

    def turn(self, stop: StopEvent | None = None) -> None:
        """Deliver what waits, unless that failed a moment ago; see what is new and what is gone in any case."""
        if self._now_ns() < self._again_ns:
            self.look()
            return
        try:
            for _ in self.deliver():
                if stop is not None and stop.is_set():
                    return
        except (Away, Refused) as error:
            self._note(error)
        else:
            if self._num_failures:
                logger.warning("%s takes what it is given again", self._store.url)
            self._num_failures = 0

    def look(self, ledger: Ledger | None = None) -> list[Capture]:
        """Take over what there is in the spool; return the captures that are not stored, oldest first.

        A thread of its own does it with a `ledger` of its own.
        """
        with self._looking:  # or an older list would undo what a newer one has shown
            captures = {_name(capture): capture for capture in self._spool.captures()}
            times = {name: modified_ns for name in captures if (modified_ns := _modified_ns(captures[name]))}
            found = (ledger or self._ledger).look(CAPTURES, times, now_ns=self._now_ns())
        for name in found.lost[:_MAX_NAMED]:
            logger.warning("%s is lost to the archive: it left the spool before it could be copied", name)
        if len(found.lost) > _MAX_NAMED:
            logger.warning("and so are %d more", len(found.lost) - _MAX_NAMED)
        return [captures[name] for name in found.waiting]

    def watch(self, path: Path, stop: StopEvent) -> None:
        """Look every now and then, with the ledger of this file, while the store takes its time; for a thread."""
        while not stop.wait(_POLL_S):
            try:
                with Ledger(path) as ledger:
                    while not stop.wait(_POLL_S):
                        self.look(ledger)
            except sqlite3.OperationalError as error:
                logger.warning("%s; looking again", error)

    def deliver(self, *, flush: bool = False) -> Iterator[int]:
        """Store what waits and yield the bytes of each object; with `flush` rows too, early or not.

        What failed before comes last, so that an object that is never taken holds up no others. Raises Away or Refused,
        with the rest left for later.
        """
        waiting = self.look()
        self._failed &= set(map(_name, waiting))
        failed = set(self._failed)
        yield from self._deliver_captures(capture for capture in waiting if _name(capture) not in failed)
        yield from self._deliver_batches()
        if flush or self._now_ns() >= self._batch_due_ns:
            self._batch_due_ns = self._now_ns() + self._bounds.batch_s * _NS_PER_S
            yield from self._deliver_rows()
        yield from self._deliver_captures(capture for capture in waiting if _name(capture) in failed)
        if waiting:
            self.look()

    def _deliver_captures(self, captures: Iterable[Capture]) -> Iterator[int]:
        for capture in captures:
            self._failed.add(_name(capture))
            size = self._deliver(capture)
            self._failed.discard(_name(capture))
            if size is None:
                return
            yield size

    def _deliver(self, capture: Capture) -> int | None:
        """Store a capture and return its size, 0 for one that is gone or cannot be read; None where the day is full."""
        name = _name(capture)
        try:
            info, data = capture.read_info(), pack(capture)
        except SpoolError as error:
            if capture.path.exists():
                logger.warning("%s is not archived: %s", capture.path, error)
                self._ledger.pass_over(CAPTURES, name, "unreadable")
            return 0
        if not self._may_send(len(data)):
            return None
        self._put(key_of(CAPTURES, data, info.server, suffix=SUFFIX, unix_ns=info.started_unix_ns), data)
        step = (info.step_id, msgspec.json.encode(info))
        self._ledger.store(CAPTURES, name, num_bytes=len(data), now_ns=self._now_ns(), step=step)
        return len(data)

    def _deliver_rows(self) -> Iterator[int]:
        """Store what is sampled now, and the rows of all steps that the analyzer is done with."""
        if self._ledger.batches():
            return  # the day is full
        self._add(samples(self._spool, self._ledger.told))
        yield from self._deliver_batches()
        while not self._ledger.batches() and self._results_path.is_file():
            with Results(self._results_path) as results:
                found = finished_steps(self._ledger.steps(), results, self._spool)
            if not found.steps:
                return
            self._add(found)
            yield from self._deliver_batches()

    def _add(self, found: Batches) -> None:
        self._ledger.add(found.batches, steps=found.steps, told=found.told)

    def _deliver_batches(self) -> Iterator[int]:
        for batch in self._ledger.batches():
            if not self._may_send(len(batch.data)):
                return
            key = Key.parse(batch.path)
            self._put(key, batch.data)
            self._ledger.store_batch(batch, key.kind, now_ns=self._now_ns())
            yield len(batch.data)

    def _put(self, key: Key, data: bytes) -> None:
        """Send an object once those before it have had their time, by the bytes a second."""
        wait_ns = self._free_ns - self._now_ns()
        if wait_ns > 0:
            self._sleep(wait_ns / _NS_PER_S)
        self._free_ns = self._now_ns() + len(data) * _NS_PER_S // self._bounds.bytes_per_second
        self._store.put(key, data)

    def _may_send(self, size: int) -> bool:
        day = day_of(self._now_ns())
        spent = self._ledger.spent(day)
        if not spent or spent + size <= self._bounds.bytes_per_day:
            return True
        if self._ledger.fill(day):
            logger.warning("%d bytes went out today, the rest waits: TAXBREAK_ARCHIVE_BYTES_PER_DAY", spent)
        return False

    def _note(self, error: ArchiveError) -> None:
        """Count a failure and wait longer than before; sidecars that lost a store together come back one by one."""
        pause_s = min(_FIRST_PAUSE_S * 2**self._num_failures, _LONGEST_PAUSE_S) * random.uniform(0.5, 1)
        self._again_ns = self._now_ns() + int(pause_s * _NS_PER_S)
        self._num_failures += 1
        self._ledger.fail("refused" if isinstance(error, Refused) else "away")
        if self._num_failures == 1:
            logger.warning("%s; trying again, without a further word", error)


def archive_once(settings: Settings, url: str, *, report: Callable[[int, int, int], None]) -> Archived:
    """Copy what a spool holds now; `report` is given how many captures of how many are there, and the bytes sent.

    Raises SpoolError for a folder that is no spool or that a sidecar is archiving, Away or Refused where nothing could
    be sent at all.
    """
    if not is_marked(settings.spool):
        raise SpoolError(f"{settings.spool}: no spool: none of ours made this folder")
    spool = Spool(settings.spool, max_bytes=settings.spool_max_bytes, max_captures=settings.spool_max_captures)
    store = Store(url)
    num_objects = num_bytes = 0
    reason = ""
    with spool.claim("archiver") as is_mine, Ledger(ledger_path(settings.results_path, url)) as ledger:
        if not is_mine:
            raise SpoolError(
                f"{settings.spool}: another process archives it: its metrics taxbreak_archive_… tell how far"
            )
        archiver = Archiver(spool, settings.results_path, ledger, store, Bounds.of(settings))
        failed = ledger.standing().totals.get(("failures", "unreadable"), 0)
        waiting = len(archiver.look())
        try:
            for size in archiver.deliver(flush=True):
                num_objects, num_bytes = num_objects + bool(size), num_bytes + size
                report(min(num_objects, waiting), waiting, num_bytes)
        except (Away, Refused) as error:
            if not num_objects:
                raise
            reason = str(error)
        left = len(archiver.look())
        if (left or ledger.batches()) and not reason:
            reason = "what may be sent today is (TAXBREAK_ARCHIVE_BYTES_PER_DAY)"
        return Archived(
            url=url,
            objects=num_objects,
            num_bytes=num_bytes,
            left=left,
            unreadable=ledger.standing().totals.get(("failures", "unreadable"), 0) - failed,
            steps_left=len(ledger.steps()),
            reason=reason,
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the process."""
    options = _parse(arguments)
    begin(_NICENESS)
    stop = threading.Event()
    spool = spool_of(options)
    bounds = Bounds(
        bytes_per_second=options.bytes_per_second, bytes_per_day=options.bytes_per_day, batch_s=options.batch_s
    )
    try:
        path = ledger_path(options.results, options.archive)
        with claimed(spool, stop, role="archiver"), Ledger(path) as ledger:
            archiver = Archiver(spool, options.results, ledger, Store(options.archive), bounds, sleep=stop.wait)
            threading.Thread(target=archiver.watch, args=(path, stop), daemon=True).start()
            run_on(archiver.run, stop, role="archiver", pause_s=_LONGEST_PAUSE_S)
    except (TaxbreakError, sqlite3.DatabaseError) as error:
        logger.error("%s", error)
        return 1
    return 0


def _name(capture: Capture) -> str:
    return "/".join(capture.path.parts[-3:])


def _modified_ns(capture: Capture) -> int | None:
    with suppress(OSError):
        return capture.path.stat().st_mtime_ns
    return None


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = spool_parser("python -m taxbreak_vllm.service.processes.archiver", __doc__)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--baselines", type=Path, required=True, help="floors and replayed baselines")
    parser.add_argument("--archive", required=True, help="URL of the archive")
    parser.add_argument("--bytes-per-second", type=int, required=True)
    parser.add_argument("--bytes-per-day", type=int, required=True)
    parser.add_argument("--batch-s", type=int, required=True)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
