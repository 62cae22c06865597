"""The rows of an archive as columns, each capture once, within a bound of memory.

Beyond `MAX_ROWS` every second, fourth, … capture is taken, by its digest: chance, and the same whenever it is asked.
"""

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from taxbreak_vllm.archive.store import Store
from taxbreak_vllm.fleet.batch import ANALYSES
from taxbreak_vllm.fleet.table import from_parquet, schema
from taxbreak_vllm.insight.shifts import Float

if TYPE_CHECKING:
    import pyarrow as pa

Int = NDArray[np.int64]
Bool = NDArray[np.bool_]

MAX_ROWS = 2_000_000  # some 500 bytes each

_NUM_READERS = 16
_WORDS = ("model", "vllm", "gpu", "host", "place", "server", "settings", "torch", "phase", "graph_mode")
_FACTS = ("cpu", "governor")
_NUMBERS = (
    *("tokens", "step_ns", "plain_ns", "delta_ft_ns", "delta_ct_ns", "delta_kt_ns"),
    *("orchestration_ns", "exposed_ns", "active_ns", "engine_ns", "limit_ns", "hdbi"),
    *("num_cpus", "num_allowed", "cpu_limit", "throttled_ratio", "runqueue_wait_ratio"),
)
COLUMNS = ("capture", "started_unix_ns", *_WORDS, *_FACTS, *_NUMBERS, "is_asked", "predicted")


@dataclass(frozen=True, slots=True)
class Words:
    """A column of words: places in `texts`, which are in order; "" is what is not known."""

    code: Int
    texts: tuple[str, ...]

    @classmethod
    def of(cls, words: Iterable[str | None]) -> "Words":
        """Make a column."""
        texts, code = np.unique(np.array([word or "" for word in words], dtype=object), return_inverse=True)
        return cls(code.astype(np.int64).reshape(-1), tuple(map(str, texts)))


@dataclass(frozen=True, slots=True)
class Steps:
    """Recorded steps as columns: words by name, numbers by name (float64, NaN where not known).

    `predicted` has what each step's changes were predicted to win (`model.fleet.Predicted`, as dicts). `every` is of
    how many captures one was taken.
    """

    words: Mapping[str, Words]
    numbers: Mapping[str, Float]
    started_unix_ns: Int
    is_asked: Bool
    predicted: list[list[dict[str, object]]]
    every: int = 1

    def __len__(self) -> int:
        return len(self.started_unix_ns)

    def codes(self, *names: str) -> tuple[Int, list[tuple[str, ...]]]:
        """Number the combinations of words that there are; return each step's and what each stands for."""
        if not names:
            return np.zeros(len(self), dtype=np.int64), [()]
        stacked = np.stack([self.words[name].code for name in names])
        found, code = np.unique(stacked, axis=1, return_inverse=True)
        texts = [tuple(self.words[n].texts[at] for n, at in zip(names, row, strict=True)) for row in found.T.tolist()]
        return code.astype(np.int64).reshape(-1), texts


def read_steps(
    store: Store, version: str, *, since: date | None = None, model: str | None = None, max_rows: int = MAX_ROWS
) -> Steps:
    """Read what a version of this package analyzed."""
    import pyarrow as pa

    tables: list[pa.Table] = []
    seen: set[str] = set()
    every = 1
    for table in _tables(store, version, since, model):
        captures = table.column("capture").to_pylist()
        taken = [at for at, one in enumerate(captures) if int(one[:8], 16) % every == 0 and one not in seen]
        seen.update(captures[at] for at in taken)
        tables.append(table.take(pa.array(taken, pa.int64())))
        while len(seen) > max_rows:
            every *= 2
            seen = {one for one in seen if int(one[:8], 16) % every == 0}
            tables = [_thinned(pa.concat_tables(tables), every)]
    whole = pa.concat_tables(tables) if tables else schema().empty_table().select(COLUMNS)
    return of_table(whole, every=every)


def of_table(table: "pa.Table", *, every: int = 1) -> Steps:
    """Return the columns of a table of rows, in the order of their captures."""
    table = table.sort_by("capture")
    numbers = {name: table.column(name).cast("float64").to_numpy(zero_copy_only=False) for name in _NUMBERS}
    return Steps(
        words={name: _words(table.column(name)) for name in (*_WORDS, *_FACTS)},
        numbers={name: np.asarray(values, dtype=np.float64) for name, values in numbers.items()},
        started_unix_ns=table.column("started_unix_ns").to_numpy().astype(np.int64),
        is_asked=np.asarray(table.column("is_asked").to_numpy(zero_copy_only=False), dtype=bool),
        predicted=table.column("predicted").to_pylist(),
        every=every,
    )


def _tables(store: Store, version: str, since: date | None, model: str | None) -> "Iterator[pa.Table]":
    with ThreadPoolExecutor(_NUM_READERS) as readers:
        keys = sorted(store.list(ANALYSES.format(version), since=since, model=model))
        for at in range(0, len(keys), _NUM_READERS):  # what is read ahead is bounded as well
            yield from readers.map(lambda key: from_parquet(store.get(key), COLUMNS), keys[at : at + _NUM_READERS])


def _thinned(table: "pa.Table", every: int) -> "pa.Table":
    import pyarrow as pa

    captures = table.column("capture").to_pylist()
    taken = [at for at, one in enumerate(captures) if int(one[:8], 16) % every == 0]
    return table.take(pa.array(taken, pa.int64()))


def _words(column: "pa.ChunkedArray") -> Words:
    encoded = column.fill_null("").combine_chunks().dictionary_encode()
    texts = [str(text) for text in encoded.dictionary.to_pylist()]
    order = np.argsort(np.array(texts, dtype=object)) if texts else np.zeros(0, dtype=np.intp)
    place = np.empty(len(texts), dtype=np.int64)
    place[order] = np.arange(len(texts))
    codes = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    return Words(place[codes] if len(texts) else codes, tuple(texts[at] for at in order))
