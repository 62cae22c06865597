"""What the archiver puts beside captures: rows of tables, in batches, and windows of engines' loops as they are.

In: the steps that are archived and the results, or a spool as it is now. Out: `Batches`, to be kept until stored.
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from taxbreak_vllm.archive.layout import ITERATIONS, TABLES, Key, day_of
from taxbreak_vllm.iterations.window import decode_window
from taxbreak_vllm.model.breakdown import Breakdown
from taxbreak_vllm.model.errors import SpoolError
from taxbreak_vllm.model.step import Server, StepInfo
from taxbreak_vllm.output.archive_tables import (
    Row,
    Table,
    breakdown_row,
    iteration_rows,
    waterfall_row,
    write_table,
)
from taxbreak_vllm.service.results.archive import Batch
from taxbreak_vllm.service.results.store import Results
from taxbreak_vllm.spool.layout import WINDOW, engine_dirs
from taxbreak_vllm.spool.spool import Spool

logger = logging.getLogger("taxbreak.archiver")

WATERFALLS = "waterfalls"

_MAX_ROWS = 512  # of steps at a time


@dataclass(frozen=True, slots=True)
class Batches:
    """Finished objects; with them the `steps` are done, and of each kind in `told` these names are, and no others."""

    batches: Sequence[Batch]
    steps: Collection[str] = ()
    told: Mapping[str, Collection[str]] = field(default_factory=dict)


def key_of(kind: str, data: bytes, server: Server, *, suffix: str, unix_ns: int) -> Key:
    """Name an object that comes from a server."""
    return Key.of(kind, data, suffix=suffix, unix_ns=unix_ns, **_whose(server))


def finished_steps(waiting: Iterable[tuple[str, bytes]], results: Results, spool: Spool) -> Batches:
    """Return the rows of the first of these steps, by id and `step.json`, that the analyzer is done with."""
    rows, done = _Rows(), []
    for step_id, encoded in waiting:
        found = results.breakdown(step_id)
        if found is not None:
            try:
                info = msgspec.json.decode(encoded, type=StepInfo)
                row = breakdown_row(info, Breakdown.from_json(found))
                rows.add(Table.BREAKDOWNS, info.server, row, unix_ns=info.started_unix_ns)
            except msgspec.MsgspecError as error:  # another version analyzed it
                logger.warning("%s has no row in the archive: %s", step_id, error)
        elif not results.is_settled(step_id) and spool.find(step_id) is not None:
            continue  # its analysis is to come
        done.append(step_id)
        if len(done) == _MAX_ROWS:
            break
    return Batches(rows.batches(), steps=done)


def samples(spool: Spool, told: Callable[[str], Collection[str]]) -> Batches:
    """Return the newest window of each engine, the newest requests of each API server, without those told before."""
    rows = _Rows()
    servers = {state.server.server_id: state.server for state in spool.states()}
    windows = dict(_windows(rows, spool, servers, told(ITERATIONS)))
    requests = list(_requests(rows, spool, servers, told(WATERFALLS)))
    batches = [*rows.batches(), *(batch for batch in windows.values() if batch is not None)]
    return Batches(batches, told={ITERATIONS: windows, WATERFALLS: requests})


def _windows(
    rows: "_Rows", spool: Spool, servers: Mapping[str, Server], told: Collection[str]
) -> Iterator[tuple[str, Batch | None]]:
    """Yield of each engine the name of its newest window, and that as an object where it was not told before."""
    for folder in map(Path, engine_dirs(spool.root)):
        try:
            modified_ns, path = max((path.stat().st_mtime_ns, path) for path in folder.glob(WINDOW.format("*")))
            name = f"{folder.parent.name}/{folder.name}/{modified_ns}"
            if name in told:
                yield name, None
                continue
            data = path.read_bytes()
            window = decode_window(data, path)
            server = servers.get(window.server_id) or Server(server_id=window.server_id)
            for row in iteration_rows(window, server, ended_unix_ns=modified_ns):
                rows.add(Table.ITERATIONS, server, row, unix_ns=modified_ns)
        except (OSError, ValueError, SpoolError):  # none yet, or another one this very moment
            continue
        key = key_of(ITERATIONS, data, server, suffix="json.gz", unix_ns=modified_ns)
        yield name, Batch(key.path, data)


def _requests(rows: "_Rows", spool: Spool, servers: Mapping[str, Server], told: Collection[str]) -> Iterator[str]:
    """Yield the name of each request there is, and take the rows of those that were not told before."""
    for state in spool.frontend_states():
        server = servers.get(state.server_id) or Server(server_id=state.server_id, model_name=state.model_name)
        for waterfall in spool.waterfalls(state.server_id, state.api):
            name = f"{state.server_id}/{state.api}/{waterfall.number}/{waterfall.started_unix_ns}"
            if name not in told:
                row = waterfall_row(waterfall, server, api=state.api)
                rows.add(Table.WATERFALLS, server, row, unix_ns=waterfall.started_unix_ns)
            yield name


class _Rows:
    """Rows by the object that they come into: of one table, one server and one day."""

    def __init__(self) -> None:
        self._rows: defaultdict[tuple[Table, tuple[str, ...]], list[Row]] = defaultdict(list)
        self._about: dict[tuple[str, ...], dict[str, Any]] = {}

    def add(self, table: Table, server: Server, row: Row, *, unix_ns: int) -> None:
        """Take a row of a server and a time."""
        whose = _whose(server)
        place = (*whose.values(), day_of(unix_ns).isoformat())
        self._about.setdefault(place, {**whose, "unix_ns": unix_ns})
        self._rows[table, place].append(row)

    def batches(self) -> list[Batch]:
        """Return them as objects."""
        found = []
        for (table, place), rows in self._rows.items():
            data = write_table(table, rows)
            found.append(Batch(Key.of(f"{TABLES}/{table}", data, suffix="parquet", **self._about[place]).path, data))
        return found


def _whose(server: Server) -> dict[str, str]:
    return {
        "model": server.model_name,
        "vllm": server.vllm,
        "gpu": server.device_name or server.device_type,
        "server": server.server_id,
    }
