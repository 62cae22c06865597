"""Which call each dispatch came from: dispatches and calls joined.

In: linked columns of a trace read with its calls. Out: `Signatures`, for each dispatch its root op's and its leaf op's
call and the kernel it launched first, so that a replay of either can be looked up.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from taxbreak_vllm.trace.calls import Call, Calls, Kernel, signature
from taxbreak_vllm.trace.dispatches import Activities, Dispatches, Host, innermost
from taxbreak_vllm.trace.events import EventKind, Events
from taxbreak_vllm.trace.intervals import Index, Int64


@dataclass(frozen=True, slots=True)
class Signature:
    """A dispatch as it can be replayed: its calls, root op first, and its kernel."""

    calls: tuple[Call, ...]
    kernel: Kernel

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys its baseline may stand under, the likeliest first."""
        return tuple(signature(call, self.kernel) for call in self.calls)


@dataclass(frozen=True, slots=True)
class Signatures:
    """The distinct signatures of a trace, and for each dispatch the index of its own; -1 for one without an op."""

    distinct: tuple[Signature, ...]
    of_dispatch: NDArray[np.int32]


def sign(events: Events, host: Host, activities: Activities, dispatches: Dispatches) -> Signatures:
    """Join each dispatch to its calls; one without a kernel (a copy, a fill) to its calls alone.

    The events must have been read with their calls.
    """
    calls = _calls(events)
    op_rows = events.rows(EventKind.OP)
    call_of_row = np.full(len(events.kind) + 1, -1, dtype=np.int64)  # the spare last entry is for row -1
    call_of_row[op_rows] = calls.call_of_op
    has_root = dispatches.root >= 0
    root_row = np.full(len(dispatches), -1, dtype=np.int64)
    root_row[has_root] = host.op_row[np.searchsorted(host.op_start, host.root_start[dispatches.root[has_root]])]
    op_end = host.key(events.thread[host.op_row], events.end_ns[host.op_row])
    leaf = innermost(host.op_start, op_end, dispatches.launch_key)
    leaf_row = np.where(leaf >= 0, host.op_row[leaf], -1) if len(host.op_row) else leaf

    kernel_rows = events.rows(EventKind.KERNEL)
    has_kernel = (dispatches.first_kernel >= 0) & ~dispatches.is_graph
    activity_row = activities.row[dispatches.first_kernel[has_kernel]]
    configuration = np.full(len(dispatches), -1, dtype=np.int64)
    configuration[has_kernel] = calls.configuration_of_kernel[np.searchsorted(kernel_rows, activity_row)]
    name = np.full(len(dispatches), -1, dtype=np.int64)
    name[has_kernel] = events.name[activity_row]

    signed = has_root & ~dispatches.is_graph
    columns = np.stack((call_of_row[root_row], call_of_row[leaf_row], configuration, name), axis=1)[signed]
    found, index = _distinct(columns)
    distinct = tuple(
        Signature(
            calls=tuple(calls.calls[call] for call in dict.fromkeys((root, leaf)) if call >= 0),
            kernel=calls.kernels[shape].named(events.names[kernel]) if kernel >= 0 else Kernel(),
        )
        for root, leaf, shape, kernel in found.tolist()
    )
    of_dispatch = np.full(len(dispatches), -1, dtype=np.int32)
    of_dispatch[signed] = index
    return Signatures(distinct, of_dispatch)


def sign_ops(events: Events, ops: Index) -> tuple[tuple[Signature, ...], Index]:
    """The same on the CPU backend, where an op is its own kernel: for rows of ops, the signature of each."""
    calls = _calls(events)
    own = calls.call_of_op[np.searchsorted(events.rows(EventKind.OP), ops)]
    found, index = np.unique(own, return_inverse=True)
    return tuple(Signature((calls.calls[call],), Kernel()) for call in found.tolist()), index


def _calls(events: Events) -> Calls:
    assert events.calls is not None, "read with_calls"
    return events.calls


def _distinct(columns: Int64) -> tuple[Int64, Index]:
    if not len(columns):
        return columns, np.empty(0, dtype=np.intp)
    found, index = np.unique(columns, axis=0, return_inverse=True)
    return found, index.reshape(-1)
