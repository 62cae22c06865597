"""All captures of an archive that have no rows yet, analyzed once each: here on several processes, or on Ray.

In: the URL of an archive. Out: objects of rows under `analyses/VERSION`, and of captures set aside under
`analyses/VERSION/broken`. Stopped at any instant it goes on where it was, as what is stored is not done again. Two runs
at a time may both analyze a capture: its rows are the same then, and readers count a capture once.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date

import msgspec

from taxbreak_vllm.archive.layout import CAPTURES, Key
from taxbreak_vllm.archive.store import Store
from taxbreak_vllm.fleet.batch import ANALYSES, BROKEN, Batch, Outcome
from taxbreak_vllm.fleet.pool import outcomes
from taxbreak_vllm.fleet.table import from_parquet
from taxbreak_vllm.model.fleet import Broken

MAX_BATCH = 64  # captures: some seconds of work, which is what is done again where a process dies

_NUM_READERS = 16

Partition = tuple[str, str, str, date, str, str]  # of a key: all but its kind and its digest
Progress = Callable[["Count"], None]


@dataclass(slots=True)
class Count:
    """How far an analysis is."""

    num_found: int
    num_known: int
    num_analyzed: int = 0
    num_broken: int = 0

    @property
    def num_done(self) -> int:
        """Captures that are settled, earlier or now."""
        return self.num_known + self.num_analyzed + self.num_broken


@dataclass(frozen=True, slots=True)
class Plan:
    """What there is to do in an archive, and how much is done: of a capture no more is kept than its digest."""

    archive: str
    version: str
    waiting: Mapping[Partition, Sequence[bytes]]
    num_found: int
    num_known: int

    @property
    def batches(self) -> Iterator[Batch]:
        """Yield the batches, by server and day; the same captures are always in the same ones."""
        for (model, vllm, gpu, day, server, suffix), digests in sorted(self.waiting.items()):
            keys = [Key(CAPTURES, model, vllm, gpu, day, server, digest.hex(), suffix) for digest in sorted(digests)]
            for at in range(0, len(keys), MAX_BATCH):
                yield Batch(self.archive, self.version, tuple(keys[at : at + MAX_BATCH]))


def plan(store: Store, version: str, *, since: date | None = None, model: str | None = None) -> Plan:
    """Find the captures that this version has neither rows of nor set aside, by server and day."""
    known = {bytes.fromhex(capture) for capture in _with_rows(store, version, since, model)}
    known |= {bytes.fromhex(one.capture) for one in set_aside_by(store, version, since=since, model=model)}
    waiting: dict[Partition, list[bytes]] = {}
    num_found = num_known = 0
    for key in store.list(CAPTURES, since=since, model=model):
        num_found += 1
        if (digest := bytes.fromhex(key.digest)) in known:
            num_known += 1
        else:
            place = (key.model, key.vllm, key.gpu, key.date, key.server, key.suffix)
            waiting.setdefault(place, []).append(digest)
    return Plan(store.url, version, waiting, num_found, num_known)


def set_aside_by(
    store: Store, version: str, *, since: date | None = None, model: str | None = None
) -> Iterator[Broken]:
    """Yield the captures that a version could not analyze, with why."""
    with ThreadPoolExecutor(_NUM_READERS) as readers:
        for data in readers.map(store.get, store.list(BROKEN.format(version), since=since, model=model)):
            yield msgspec.json.decode(data, type=Broken)


def _with_rows(store: Store, version: str, since: date | None, model: str | None) -> Iterator[str]:
    with ThreadPoolExecutor(_NUM_READERS) as readers:
        parts = store.list(ANALYSES.format(version), since=since, model=model)
        for column in readers.map(lambda key: from_parquet(store.get(key), ["capture"]).column(0), parts):
            yield from column.to_pylist()


def analyze(
    found: Plan, *, jobs: int, ray: str | None = None, progress: Progress = lambda _: None
) -> tuple[Count, Sequence[Broken]]:
    """Do what a plan says, on as many processes of this machine or on the Ray cluster of an address.

    Raises Away or Refused where the archive fails: what is stored until then is.
    """
    count, broken = Count(found.num_found, found.num_known), list[Broken]()
    progress(count)
    for outcome in _outcomes(found.batches, jobs, ray):
        count.num_analyzed += outcome.num_analyzed
        count.num_broken += len(outcome.broken)
        broken += outcome.broken
        progress(count)
    return count, broken


def _outcomes(batches: Iterable[Batch], jobs: int, ray: str | None) -> Iterator[Outcome]:
    if ray is None:
        return outcomes(batches, jobs)
    from taxbreak_vllm.fleet.on_ray import outcomes_on_ray

    return outcomes_on_ray(batches, ray)
