"""What a trace is as a whole: its steps, its threads, and how much there is of everything.

In: all events, at once or some at a time. Out: `TraceSurvey`, known before any of them is measured.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from taxbreak_vllm.trace.events import EventKind, Events
from taxbreak_vllm.trace.intervals import Int64
from taxbreak_vllm.trace.steps import StepWindow, events_by_thread, find_steps_and_folded, is_step_name, whole_window


@dataclass(frozen=True, slots=True)
class TraceSurvey:
    """A trace as a whole.

    `windows` are its steps (none: `whole` is the one), `num_folded` ran beside them on other threads, `device` the one
    with most activities (-1: none), `calls` the names of runtime calls, `processes` (by pid) made those.
    `known_from_ns` is each thread's first op, call or own step, the maximum int64 for none.
    """

    windows: tuple[StepWindow, ...]
    num_folded: int
    whole: StepWindow
    num_ops: int
    num_activities: int
    device: int
    calls: frozenset[str]
    processes: frozenset[str]
    known_from_ns: Int64

    @property
    def is_live(self) -> bool:
        """Whether a worker recorded a step together with those beside it."""
        return any(window.has_before or window.next_ns is not None for window in self.windows)

    @classmethod
    def of(cls, head: Events, chunks: Iterable[Events]) -> "TraceSurvey":
        """Look at all events once; `head` is what is known of the trace beside them."""
        by_thread = np.zeros((2, len(head.threads)), dtype=np.int64)
        host_end_ns = head.first_ns
        known_from_ns = np.full(len(head.threads), np.iinfo(np.int64).max)
        is_called = np.zeros(len(head.names), dtype=bool)
        has_calls = np.zeros(len(head.threads), dtype=bool)
        steps = []
        num_ops = 0
        devices: Counter[int] = Counter()
        for events in chunks:
            by_thread += events_by_thread(events)
            num_ops += len(events.rows(EventKind.OP))
            on_host = events.rows(EventKind.OP, EventKind.RUNTIME, EventKind.ANNOTATION)
            host_end_ns = max(host_end_ns, int(events.end_ns[on_host].max(initial=host_end_ns)))
            working = events.rows(EventKind.OP, EventKind.RUNTIME)
            np.minimum.at(known_from_ns, events.thread[working], events.start_ns[working])
            calls = events.rows(EventKind.RUNTIME)
            is_called[events.name[calls]] = True
            has_calls[events.thread[calls]] = True
            on_device = events.rows(EventKind.KERNEL, EventKind.MEMCPY, EventKind.MEMSET)
            ids, counts = np.unique(events.device[on_device], return_counts=True)
            devices.update(dict(zip(ids.tolist(), counts.tolist(), strict=True)))
            steps.append(_possible_steps(events))
        windows, num_folded = find_steps_and_folded(Events.joined(steps))
        whole = whole_window(head.first_ns, host_end_ns, by_thread)
        for window in windows or (whole,):
            known_from_ns[window.thread] = min(known_from_ns[window.thread], window.start_ns)
        return cls(
            windows=tuple(windows),
            num_folded=num_folded,
            whole=whole,
            num_ops=num_ops,
            num_activities=devices.total(),
            device=max(devices, key=lambda device: (devices[device], -device), default=-1),
            calls=frozenset(head.names[name] for name in np.flatnonzero(is_called).tolist()),
            processes=frozenset(head.threads[i][0] for i in np.flatnonzero(has_calls).tolist()),
            known_from_ns=known_from_ns,
        )


def _possible_steps(events: Events) -> Events:
    is_annotation = events.kind == EventKind.ANNOTATION
    names = [name for name in np.unique(events.name[is_annotation]).tolist() if is_step_name(events.names[name])]
    return events.chosen(is_annotation & np.isin(events.name, names))
