"""The records of who waits for whom, collected beside the events that the decomposition needs.

In: the events of that category. Out: `Syncs`.
"""

from collections.abc import Sequence

import numpy as np

from taxbreak_vllm.trace.read.event import Event
from taxbreak_vllm.trace.syncs import KIND_BY_NAME, Syncs

CATEGORY = "cuda_sync"

_NO_STREAM = 2**32 - 1  # as some versions write -1


class SyncCollector:
    """Collects them; of a kind that is not known, or without a time, none is."""

    def __init__(self) -> None:
        self._rows = bytearray()

    def add(self, events: Sequence[Event]) -> None:
        """Take in some of the events of a block: those of this category."""
        rows = [
            (KIND_BY_NAME[e.name], round(e.ts * 1000), a.correlation, a.device, a.stream, a.record, a.awaited_stream)
            for e in events
            if e.cat == CATEGORY and e.name in KIND_BY_NAME and e.ts is not None
            for a in (e.args,)
        ]
        self._rows += np.array(rows, dtype=np.int64).tobytes()

    def finish(self) -> Syncs:
        """Return what was collected."""
        columns = np.frombuffer(self._rows, dtype=np.int64).reshape(-1, 7).T.copy()
        columns[4:][columns[4:] == _NO_STREAM] = -1
        kind, *others = columns
        return Syncs(kind.astype(np.int8), *others)
