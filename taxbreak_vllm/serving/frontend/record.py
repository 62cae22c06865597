"""One request on its way through an API server: a row of stamps that the middleware and the hooks fill in.

A context variable holds the record. vLLM hands nothing of an HTTP request to its engine's client but a name that the
client may choose, and makes tasks in between, as other people's middleware does: only a context reaches them all.
"""

import random
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from taxbreak_vllm.stages.rows import UNKNOWN_ENGINE, Column

RECORD: ContextVar["Record | None"] = ContextVar("taxbreak_request", default=None)

_ZEROS = [0] * len(Column)
_MAX_STATS = 256  # requests of the engine that one of a client's becomes, as beam search does; beyond it is unknown
_NUM_RANDOM = 8  # hexadecimal digits that vLLM puts behind a request's name


class Record:
    """A request: its stamps, the engine's statistics of it and where its outputs are put.

    `waiting` are the stamps of an output that is not sent yet, of a request whose outputs are followed.
    """

    __slots__ = ("collectors", "is_followed", "is_open", "row", "slot", "stats", "waiting")

    def __init__(self, arrived_ns: int) -> None:
        self.row = _ZEROS.copy()
        self.row[Column.ARRIVED] = arrived_ns
        self.row[Column.ENGINE] = UNKNOWN_ENGINE
        self.slot: int | None = None
        self.is_open = True
        self.is_followed = False
        self.stats: list[Any] = []
        self.collectors: list[tuple[Any, Callable[[Any], None]]] = []
        self.waiting: list[int] = []

    @property
    def has_reached_engine(self) -> bool:
        """Whether the engine's client took it."""
        return bool(self.stats)

    def add(self, stats: Any) -> None:  # noqa: ANN401 - a RequestStateStats, None where statistics are off
        """Take in one more request of the engine's."""
        if len(self.stats) <= _MAX_STATS:
            self.stats.append(stats)

    def finish(self) -> list[int]:
        """Take in vLLM's own stamps, let go of its objects and return the row."""
        row, stats = self.row, self.stats
        if all(found is not None for found in stats) and len(stats) <= _MAX_STATS:
            for column, which, name in (
                (Column.QUEUED, min, "queued_ts"),
                (Column.SCHEDULED, min, "scheduled_ts"),
                (Column.FIRST_TOKEN, min, "first_token_ts"),
                (Column.LAST_TOKEN, max, "last_token_ts"),
            ):
                row[column] = int(which(getattr(found, name) for found in stats) * 1e9)
            row[Column.NUM_OUTPUT_TOKENS] = sum(found.num_generation_tokens for found in stats)
        return row

    def close(self) -> None:
        """Let go of what is vLLM's."""
        self.is_open = False
        self.stats = []
        for collector, put in self.collectors:
            if vars(collector).get("put") is put:
                del collector.put
        self.collectors = []


def random_number(request_id: str, name: str) -> int:
    """Return the 32 random bits that vLLM put behind a request's name; its own where it put none there."""
    head, _, tail = request_id.rpartition("-")
    if head.endswith(name) and len(tail) == _NUM_RANDOM:
        try:
            return int(tail, 16)
        except ValueError:
            pass
    return random.getrandbits(32)
