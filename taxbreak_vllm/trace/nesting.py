"""Which frames every instant of a host thread stands in: ops and, of a trace with stacks, Python functions, nested.

In: the columns of `dispatches`, and the stretch of each thread that is asked for. Out: `Nesting`, a tree of frames and
the place in it at every instant. One sort and one pass.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from taxbreak_vllm.trace.dispatches import Bool, Host
from taxbreak_vllm.trace.events import Events
from taxbreak_vllm.trace.intervals import Index, Int64

TOP = 0  # the place in no frame


@dataclass(frozen=True, slots=True)
class Nesting:
    """Places in a tree of frames: place i is a call of frame `frame[i]` within place `parent[i]`.

    A frame is an op (into Events.names) or, from `len(Events.names)` on, a Python function (into Frames.names). From
    `key[j]` to the next key, on the shared time line, the innermost frame is that of place `place[j]`.
    """

    parent: Index
    frame: Index
    key: Int64
    place: Index

    def at(self, key: Int64) -> Index:
        """Return the place at each instant."""
        if not len(self.key):
            return np.full(len(key), TOP, dtype=np.intp)
        index = np.searchsorted(self.key, key, side="right") - 1
        return np.where(index >= 0, self.place[np.maximum(index, 0)], TOP)


def nest(events: Events, host: Host, begin: Int64, end: Int64, whole_ns: tuple[int, int]) -> Nesting:
    """Nest what ran in [begin, end), keys of each thread; a function that runs the `whole_ns` time says nothing of it.

    What outlives the frame around it is cut there.
    """
    op_end = host.key(events.thread[host.op_row], events.end_ns[host.op_row])
    is_near = _overlaps(events.thread[host.op_row], host.op_start, op_end, begin, end)
    start, finish = host.op_start[is_near], op_end[is_near]
    frame, is_op = events.name[host.op_row[is_near]].astype(np.intp), np.ones(len(start), dtype=bool)
    if events.frames is not None and len(events.frames):
        frames = events.frames
        base = frames.thread.astype(np.int64) * host.stride_ns
        own_start = base + (frames.start_ns - host.origin_ns).clip(0, host.stride_ns - 1)
        own_end = base + (frames.end_ns - host.origin_ns).clip(0, host.stride_ns - 1)
        is_near = _overlaps(frames.thread, own_start, own_end, begin, end)
        is_near &= (frames.start_ns > whole_ns[0]) | (frames.end_ns < whole_ns[1])
        start, finish = np.concatenate((start, own_start[is_near])), np.concatenate((finish, own_end[is_near]))
        frame = np.concatenate((frame, len(events.names) + frames.name[is_near].astype(np.intp)))
        is_op = np.arange(len(start)) < len(is_op)
    return _nested(start, finish, frame, np.lexsort((is_op, -finish, start)))


def _overlaps(thread: NDArray[np.int32], start: Int64, finish: Int64, begin: Int64, end: Int64) -> Bool:
    return np.asarray((finish > begin[thread]) & (start < end[thread]))


def _nested(start: Int64, finish: Int64, frame: Index, order: Index) -> Nesting:
    parents, frames = [-1], [-1]
    place_by_call: dict[tuple[int, int], int] = {}
    keys: list[int] = []
    places: list[int] = []
    stack = [(np.iinfo(np.int64).max, TOP)]
    for begin, end, number in zip(start[order].tolist(), finish[order].tolist(), frame[order].tolist(), strict=True):
        while stack[-1][0] <= begin:
            keys.append(stack.pop()[0])
            places.append(stack[-1][1])
        outer_end, outer = stack[-1]
        place = place_by_call.setdefault((outer, number), len(parents))
        if place == len(parents):
            parents.append(outer)
            frames.append(number)
        stack.append((min(end, outer_end), place))
        keys.append(begin)
        places.append(place)
    while len(stack) > 1:
        keys.append(stack.pop()[0])
        places.append(stack[-1][1])
    key, place_at = np.array(keys, dtype=np.int64), np.array(places, dtype=np.intp)
    is_last = np.append(key[1:] != key[:-1], True)[: len(key)]
    return Nesting(np.array(parents, dtype=np.intp), np.array(frames, dtype=np.intp), key[is_last], place_at[is_last])
