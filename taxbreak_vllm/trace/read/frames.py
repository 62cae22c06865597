"""The calls of Python functions in a trace, collected beside the events that the decomposition needs.

In: the events of that category. Out: `Frames` of the threads that did anything else too. They have no say in when a
trace begins or ends: a step is the same with stacks and without.
"""

import re
from collections.abc import Mapping, Sequence

import numpy as np

from taxbreak_vllm.trace.frames import Frames
from taxbreak_vllm.trace.read.event import Event

CATEGORY = "python_function"

# What makes a name of every object of one function, and of every layer of one kind: an address, torch's own count.
_OBJECT = re.compile(r" at 0x[0-9a-fA-F]+|(?<=\w)_\d+$")
_MODULE = "nn.Module: "


class FrameCollector:
    """Collects the calls of functions; a name is one whatever object or layer it was called on."""

    def __init__(self) -> None:
        self._rows = bytearray()
        self._threads: dict[tuple[str, str], int] = {}
        self._number_by_name: dict[str, int] = {}
        self._number_by_text = _Names(self._number_by_name)

    def add(self, events: Sequence[Event]) -> None:
        """Take in some of the events of a block: those of this category that have a time."""
        rows = [event for event in events if event.cat == CATEGORY and event.ts is not None]
        times_us = np.array([(event.ts, event.dur) for event in rows], dtype=np.float64).reshape(-1, 2)
        columns = np.empty((len(rows), 4), dtype=np.int64)
        columns[:, 0] = np.rint(times_us[:, 0] * 1000)
        columns[:, 1] = columns[:, 0] + np.maximum(np.rint(times_us[:, 1] * 1000), 0).astype(np.int64)
        columns[:, 2] = [self._number_by_text[event.name] for event in rows]
        thread = self._threads
        columns[:, 3] = [thread.setdefault((str(event.pid), str(event.tid)), len(thread)) for event in rows]
        self._rows += columns.tobytes()

    def finish(self, threads: Mapping[tuple[str, str], int]) -> Frames:
        """Return the frames of these threads."""
        columns = np.frombuffer(self._rows, dtype=np.int64).reshape(-1, 4)
        number = np.array([threads.get(thread, -1) for thread in self._threads], dtype=np.int32)
        thread = number[columns[:, 3]]
        keep = thread >= 0
        return Frames(
            start_ns=columns[keep, 0],
            end_ns=columns[keep, 1],
            name=columns[keep, 2].astype(np.int32),
            thread=thread[keep],
            names=tuple(self._number_by_name),
        )


class _Names(dict[str, int]):
    """Numbers texts by what is left of them without the object."""

    def __init__(self, number_by_name: dict[str, int]) -> None:
        super().__init__()
        self._number_by_name = number_by_name

    def __missing__(self, text: str) -> int:
        names = self._number_by_name
        has_object = text.startswith(("<", _MODULE))
        number = self[text] = names.setdefault(_OBJECT.sub("", text) if has_object else text, len(names))
        return number
