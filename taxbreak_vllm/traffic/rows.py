"""The lines of a server's traffic: what its scheduler was told and what it chose, in that order, without content.

A file begins with a `Setup`; each line behind it is one of `Row`, an array whose first element tells which. Requests go
by the number in which they came to their engine. Instants are `time.monotonic_ns` of the server's machine.
"""

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
import numpy.typing as npt

SCHEMA = "taxbreak.traffic/1"

Scalar = bool | int | float | str | None


class KvGroup(msgspec.Struct, frozen=True, kw_only=True):
    """A group of layers that share blocks: the name of vLLM's class that describes it, and its fields."""

    spec: str
    num_layers: int
    fields: Mapping[str, Scalar]


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """Whose traffic it is. `refused` names what vLLM's scheduler does there that a simulation of it does not.

    `config` are numbers and switches of vLLM's configuration, by the name of their object. `columns` are those of a
    `Stamped`, `instants` which of them are points in time.
    """

    schema: str = SCHEMA
    server_id: str
    source: str
    vllm: str = ""
    unix_offset_ns: int = 0
    columns: tuple[str, ...] = ()
    instants: tuple[int, ...] = ()
    scheduler: str = ""
    num_blocks: int = 0
    block_size: int = 0
    hash_block_size: int = 0
    has_hashes: bool = False
    num_engines: int = 1
    config: Mapping[str, Mapping[str, Scalar]] = {}
    kv_groups: tuple[KvGroup, ...] = ()
    refused: tuple[str, ...] = ()


class Added(msgspec.Struct, frozen=True, array_like=True, tag="add"):
    """A request reached the scheduler; `arrived_ns` at its API server. `hashes` are ids of its prompt's full blocks."""

    number: int
    at_ns: int
    arrived_ns: int
    num_prompt_tokens: int
    max_tokens: int
    priority: int
    lora: int
    reads_cache: bool
    refused: Sequence[str]
    hashes: Sequence[int]


class Aborted(msgspec.Struct, frozen=True, array_like=True, tag="abort"):
    """The scheduler was told to drop requests."""

    at_ns: int
    numbers: Sequence[int]


class Reset(msgspec.Struct, frozen=True, array_like=True, tag="reset"):
    """The scheduler was told to do something else, by the name of its method."""

    at_ns: int
    what: str


class Scheduled(msgspec.Struct, frozen=True, array_like=True, tag="step"):
    """A step was chosen. `context` are tokens computed before it, over its requests; `digest` tells batches apart."""

    number: int
    prompt_tokens: int
    num_prefills: int
    num_decodes: int
    context: int
    num_preempted: int
    graph_mode: str
    is_throttled: bool
    digest: int


class Updated(msgspec.Struct, frozen=True, array_like=True, tag="update"):
    """The output of a step was taken in."""

    number: int


class Ended(msgspec.Struct, frozen=True, array_like=True, tag="end"):
    """A request ended. `num_hit_tokens` of its prompt were found in the prefix cache; `hashes` are those of its output.

    `reason` is vLLM's finish reason. The line comes with the step that follows.
    """

    number: int
    reason: str
    num_output_tokens: int
    num_hit_tokens: int
    num_preemptions: int
    hashes: Sequence[int]


class Stamped(msgspec.Struct, frozen=True, array_like=True, tag="turn"):
    """The stamps of a turn of an engine's loop, or of a request in an API server; instants are from `base_ns` on."""

    base_ns: int
    values: Sequence[int]


class Lost(msgspec.Struct, frozen=True, array_like=True, tag="lost"):
    """So many events were lost here."""

    num: int


Row = Added | Aborted | Reset | Scheduled | Updated | Ended | Stamped | Lost

Int64 = npt.NDArray[np.int64]


def stamped(rows: Int64, instants: Sequence[int]) -> list[Stamped]:
    """Return rows of stamps (rows, columns) as lines; 0 is "never" and stays so."""
    if not len(rows):
        return []
    places = list(instants)
    times = rows[:, places]
    base = np.where(times > 0, times, np.iinfo(np.int64).max).min(axis=1) - 1
    told = rows.copy()
    told[:, places] = np.where(times > 0, times - base[:, None], times)
    return [Stamped(at_ns, values) for at_ns, values in zip(base.tolist(), told.tolist(), strict=True)]


def unstamped(lines: Sequence[Stamped], setup: Setup, columns: Sequence[str]) -> Int64:
    """Return the rows of such lines with these columns; one that is not known there is 0."""
    known = {name: place for place, name in enumerate(setup.columns)}
    rows = np.array([line.values for line in lines], dtype=np.int64).reshape(-1, len(setup.columns))
    base = np.array([line.base_ns for line in lines], dtype=np.int64)
    places = list(setup.instants)
    rows[:, places] = np.where(rows[:, places] > 0, rows[:, places] + base[:, None], rows[:, places])
    found = np.zeros((len(rows), len(columns)), dtype=np.int64)
    for to, name in enumerate(columns):
        if name in known:
            found[:, to] = rows[:, known[name]]
    return found
