"""What a recording tells of who waits for whom: the runtime's records beside its calls, where it was asked for them.

torch asks for them with `enable_cuda_sync_events`. Kineto writes one for each call that makes the host wait and for
each that makes a stream wait for an event, as far as the streams had work while it recorded.
"""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from taxbreak_vllm.trace.intervals import Int64


class SyncKind(IntEnum):
    """What waits, and for what."""

    EVENT = 0  # the host, for an event
    STREAM_WAIT = 1  # a stream, for an event
    STREAM = 2  # the host, for a stream
    CONTEXT = 3  # the host, for a device


KIND_BY_NAME = {
    "Event Sync": SyncKind.EVENT,
    "Stream Wait Event": SyncKind.STREAM_WAIT,
    "Stream Sync": SyncKind.STREAM,
    "Context Sync": SyncKind.CONTEXT,
    "Device Sync": SyncKind.CONTEXT,
}


@dataclass(frozen=True, slots=True)
class Syncs:
    """One row a record, in file order: `kind` (SyncKind), when it began, and ids that are -1 where they are not known.

    `correlation` is the id of the call that made it, `stream` that which waits, or for which the host does. Of an event
    `record` is the id of the call that recorded it, `record_stream` on which: not known where that was before the
    recording.
    """

    kind: NDArray[np.int8]
    start_ns: Int64
    correlation: Int64
    device: Int64
    stream: Int64
    record: Int64
    record_stream: Int64

    def __len__(self) -> int:
        return len(self.kind)

    @classmethod
    def none(cls) -> "Syncs":
        """Return those of a recording that was not asked for them."""
        return cls(np.empty(0, dtype=np.int8), *(np.empty(0, dtype=np.int64) for _ in range(6)))
