"""Files that join the traces of several processes, one a rank: whose event is whose.

Ids of launches begin anew in each process, so such a file is read one process at a time.
"""

import re

import numpy as np

from taxbreak_vllm.model.errors import TraceFormatError
from taxbreak_vllm.trace.dispatches import Bool
from taxbreak_vllm.trace.events import EventKind, Events
from taxbreak_vllm.trace.intervals import Index

_MARK = re.compile(r"\[[^\]]+\]")  # what a tool that joins traces puts before their pids, as SGLang's "[TP01] 4711"
_NUMBER = re.compile(r"\d+")


def process_names(pids: frozenset[str]) -> list[str]:
    """Return pids in the order of their ranks: by the numbers in them, that of a mark first."""
    return sorted(pids, key=lambda pid: ([int(number) for number in _NUMBER.findall(pid)], pid))


def of_process(events: Events, rank: int) -> Events:
    """Return the events of the process of a rank; raises TraceFormatError where there is none."""
    calls = events.rows(EventKind.RUNTIME)
    pid = np.array([pid for pid, _ in events.threads])
    names = process_names(frozenset(pid[np.unique(events.thread[calls])].tolist()))
    if rank >= len(names):
        raise TraceFormatError(f"{events.path}: no rank {rank} among its {len(names)} processes: {', '.join(names)}")
    own_thread = pid == names[rank]
    is_own = own_thread[events.thread]
    rows = events.rows(EventKind.KERNEL, EventKind.MEMCPY, EventKind.MEMSET)
    is_own[rows] = _activities(events, rows, names, rank)
    return events.kept(is_own)


def _activities(events: Events, rows: Index, names: list[str], rank: int) -> Bool:
    """Mark the activities of a process: by the mark of their pid, else by device where each process has one, else by
    their id; raises TraceFormatError where that is not enough.
    """
    mark = _MARK.match(names[rank])
    marks = [found[0] if (found := _MARK.match(pid)) else "" for pid, _ in events.threads]
    if mark and any(marks[thread] for thread in np.unique(events.thread[rows]).tolist()):
        return np.array([own == mark[0] for own in marks], dtype=bool)[events.thread[rows]]
    devices = np.unique(events.device[rows])
    if len(devices) == len(names):
        return np.asarray(events.device[rows] == devices[rank])
    calls = events.rows(EventKind.RUNTIME)
    is_own_call = np.array([pid == names[rank] for pid, _ in events.threads], dtype=bool)[events.thread[calls]]
    ids, wanted = events.correlation[calls], events.correlation[rows]
    is_own, is_others = np.isin(wanted, ids[is_own_call]), np.isin(wanted, ids[~is_own_call])
    if np.any(is_own & is_others & (wanted >= 0)):
        raise TraceFormatError(
            f"{events.path}: {len(names)} processes launched with the same ids on {len(devices)} devices, "
            "so whose activities are whose cannot be told"
        )
    return is_own
