"""Floors, ceilings and baselines by way of the archive: what one host has measured no other of its kind measures again.

In: a store of this host's, an archive. Out: both hold the better of what either held (`baselines.records`). An object
holds only what no other had when it was put, so hosts never write over one another.
"""

from dataclasses import dataclass

from taxbreak_vllm.archive.layout import BASELINES, Key
from taxbreak_vllm.archive.store import Store
from taxbreak_vllm.baselines.records import Records, parse_records
from taxbreak_vllm.baselines.store import Baselines
from taxbreak_vllm.model.baseline import Environment
from taxbreak_vllm.model.errors import ArchiveError, Away, BaselineError, Refused


@dataclass(frozen=True, slots=True, kw_only=True)
class Synced:
    """Entries that were taken from the archive and given to it; `damaged` are objects that could not be read."""

    taken: int
    given: int
    damaged: tuple[str, ...] = ()
    schema: str = "taxbreak.synced/1"


def sync(own: Baselines, archive: Store) -> Synced:
    """Take what the archive has better, give what it lacks; raises Away, Refused, BaselineError for a store of ours."""
    shared: dict[Environment, Records] = {}
    damaged = []
    for key in sorted(archive.list(BASELINES)):
        try:
            parts = parse_records(archive.get(key).splitlines(), where=key.path)
        except (Away, Refused):
            raise
        except (ArchiveError, BaselineError) as error:
            damaged.append(str(error))
            continue
        for records in parts:
            place = records.environment
            shared[place] = shared.get(place, Records(environment=place)).merged(records)
    taken = sum(own.merge(records) for records in shared.values())
    given = 0
    for place in own.environments():
        fresh = own.records(place).beyond(shared.get(place, Records(environment=place)))
        if fresh:
            data = b"".join(line + b"\n" for line in fresh.lines())
            archive.put(Key.of(BASELINES, data, suffix="jsonl", unix_ns=_newest_ns(fresh), gpu=place.device_name), data)
            given += len(fresh.entries)
    return Synced(taken=taken, given=given, damaged=tuple(damaged))


def _newest_ns(records: Records) -> int:
    parts = (records.floors, records.ceilings, *records.entries.values())
    return max(part.measured_unix_ns for part in parts if part is not None)
