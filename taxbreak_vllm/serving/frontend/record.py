"""One request on its way through an API server: a row of stamps that the middleware and the hooks fill in.

A context variable holds the record. vLLM hands nothing of an HTTP request to its engine's client but a name that the
client may choose, and makes tasks in between, as other people's middleware does: only a context reaches them all.
"""

import math
import random
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from taxbreak_vllm.model.frontend import UNKNOWN_ENGINE
from taxbreak_vllm.stages.rows import UNKNOWN, Column

RECORD: ContextVar["Record | None"] = ContextVar("taxbreak_request", default=None)

_NEW = [0] * len(Column)
_NEW[Column.ENGINE] = UNKNOWN_ENGINE
_WAITS = slice(Column.WAIT_KV, Column.WAIT_REMOTE_KV + 1)
_NEW[_WAITS] = [UNKNOWN] * 4
WAITS = "taxbreak_waits"  # of a RequestStateStats: what its request waited for, as the columns
_ARRIVED, _QUEUED, _NUM_OUTPUT_TOKENS = int(Column.ARRIVED), int(Column.QUEUED), int(Column.NUM_OUTPUT_TOKENS)
_MAX_STATS = 256  # requests of the engine that one of a client's becomes, as beam search does; beyond it is unknown
_NUM_RANDOM = 8  # hexadecimal digits that vLLM puts behind a request's name


class Record:
    """A request: its stamps, the engine's statistics of it and where its outputs are put.

    `awaits_sending` says that the end of the next sending matters: of the first, and of each one of a followed request.
    `waiting` are the stamps of an output of such a one that is not sent yet.
    """

    __slots__ = ("awaits_sending", "collectors", "is_followed", "is_open", "row", "slot", "stats", "waiting")

    def __init__(self, arrived_ns: int) -> None:
        self.row = _NEW.copy()
        self.row[_ARRIVED] = arrived_ns
        self.slot: int | None = None
        self.is_open = self.awaits_sending = True
        self.is_followed = False
        self.stats: list[Any] = []
        self.collectors: list[tuple[Any, Callable[[Any], None]]] = []
        self.waiting: list[int] = []

    @property
    def has_reached_engine(self) -> bool:
        """Whether the engine's client took it."""
        return bool(self.stats)

    def add(self, stats: Any) -> bool:  # noqa: ANN401 - a RequestStateStats, None where statistics are off
        """Take in one more request of the engine's; False where there are too many to keep up with."""
        has_room = len(self.stats) <= _MAX_STATS
        if has_room:
            self.stats.append(stats)
        return has_room

    def finish(self) -> list[int]:
        """Take in vLLM's own stamps, let go of its objects and return the row."""
        row, stats = self.row, self.stats
        if None in stats or len(stats) > _MAX_STATS:
            return row
        queued_s = scheduled_s = first_s = math.inf
        last_s, num_tokens = 0.0, 0
        for found in stats:
            if found.scheduled_ts < scheduled_s:
                row[_WAITS] = getattr(found, WAITS, _NEW[_WAITS])
            queued_s = min(queued_s, found.queued_ts)
            scheduled_s = min(scheduled_s, found.scheduled_ts)
            first_s = min(first_s, found.first_token_ts)
            last_s = max(last_s, found.last_token_ts)
            num_tokens += found.num_generation_tokens
        stamps = (int(at_s * 1e9) for at_s in (queued_s, scheduled_s, first_s, last_s))
        row[_QUEUED : _QUEUED + 4] = stamps
        row[_NUM_OUTPUT_TOKENS] = num_tokens
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
