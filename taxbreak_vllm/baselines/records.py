"""What was measured in one place, as a value: read from a store or an export, merged, written as JSON lines.

Of two measurements of a signature the better one stays: one that was measured before one that failed, the later of two
alike, and of two of one time always the same. So it does not matter in which order, how often and by whom records are
merged, and stores that have seen the same hold the same.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

import msgspec

from taxbreak_vllm.model.baseline import Baseline, Environment, Floors, Outcome
from taxbreak_vllm.model.ceilings import MeasuredCeilings
from taxbreak_vllm.model.errors import BaselineError

EXPORT_SCHEMA = "taxbreak.baselines/1"

T = TypeVar("T", Baseline, Floors)


@dataclass(frozen=True, slots=True, kw_only=True)
class Records:
    """The floors, ceilings and entries, by signature, of one environment."""

    environment: Environment
    floors: Floors | None = None
    ceilings: MeasuredCeilings | None = None
    entries: Mapping[str, Baseline] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return self.floors is not None or self.ceilings is not None or bool(self.entries)

    def merged(self, other: "Records") -> "Records":
        """Return the better of both, record by record; both are of one environment."""
        entries = dict(self.entries)
        for signature, entry in other.entries.items():
            entries[signature] = _better(entries.get(signature), entry)
        floors = self.floors if other.floors is None else _better(self.floors, other.floors)
        ceilings = self.ceilings if other.ceilings is None else other.ceilings.raised(self.ceilings)
        return replace(self, floors=floors, ceilings=ceilings, entries=entries)

    def beyond(self, other: "Records") -> "Records":
        """Return those that `other` lacks or has worse ones of."""
        whole = other.merged(self)
        return replace(
            self,
            floors=None if whole.floors == other.floors else whole.floors,
            ceilings=None if whole.ceilings == other.ceilings else whole.ceilings,
            entries={name: entry for name, entry in whole.entries.items() if other.entries.get(name) != entry},
        )

    def lines(self) -> Iterator[bytes]:
        """Yield the lines of an export: a head, and an entry each, by signature."""
        yield msgspec.json.encode(_Head(environment=self.environment, floors=self.floors, ceilings=self.ceilings))
        for _, entry in sorted(self.entries.items()):
            yield msgspec.json.encode(entry)


def parse_records(lines: Iterable[bytes], *, where: str) -> list[Records]:
    """Read an export: any number of records, one after the other; raises BaselineError for anything else."""
    try:
        return list(_parse(lines))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BaselineError(f"{where}: not an export of baselines: {error}") from error


def _better(first: T | None, second: T) -> T:
    return second if first is None else max(first, second, key=_rank)


def _rank(record: Baseline | Floors) -> tuple[bool, int, bytes]:
    is_measured = not isinstance(record, Baseline) or record.outcome is Outcome.MEASURED
    return is_measured, record.measured_unix_ns, msgspec.json.encode(record)


class _Head(msgspec.Struct, frozen=True, kw_only=True):
    schema: str = EXPORT_SCHEMA
    environment: Environment
    floors: Floors | None = None
    ceilings: MeasuredCeilings | None = None


def _parse(lines: Iterable[bytes]) -> Iterator[Records]:
    head: _Head | None = None
    entries: dict[str, Baseline] = {}
    for line in lines:
        if b'"schema":' in line[:12]:
            if head is not None:
                yield _records(head, entries)
            head, entries = msgspec.json.decode(line, type=_Head), {}
            if head.schema != EXPORT_SCHEMA:
                raise msgspec.ValidationError(f"schema {head.schema!r}, not {EXPORT_SCHEMA!r}")
        elif head is None:
            raise msgspec.ValidationError("no head line")
        else:
            entry = msgspec.json.decode(line, type=Baseline)
            entries[entry.signature] = _better(entries.get(entry.signature), entry)
    if head is None:
        raise msgspec.ValidationError("no head line")
    yield _records(head, entries)


def _records(head: _Head, entries: Mapping[str, Baseline]) -> Records:
    return Records(environment=head.environment, floors=head.floors, ceilings=head.ceilings, entries=entries)
