"""What launched an activity, and what kind of kernel it is: names looked up once each."""

from collections.abc import Callable

import numpy as np

from taxbreak_vllm.taxes.measured import FAMILIES
from taxbreak_vllm.trace.dispatches import Activities, Bool, Dispatches
from taxbreak_vllm.trace.events import Events
from taxbreak_vllm.trace.intervals import Index, Int64
from taxbreak_vllm.trace.kernels import KernelClass


def ops_of(events: Events, activities: Activities, dispatches: Dispatches) -> Int64:
    """Name what launched each activity: the leaf op, else the launch call; len(events.names) where nothing is known."""
    op = np.full(len(activities.row), len(events.names), dtype=np.int64)
    linked = activities.dispatch >= 0
    of_dispatch = np.where(dispatches.leaf_name >= 0, dispatches.leaf_name, events.name[dispatches.row])
    op[linked] = of_dispatch[activities.dispatch[linked]]
    return op


def classify(
    events: Events, activities: Activities, op: Int64, rule: Callable[[str, str], KernelClass]
) -> tuple[tuple[KernelClass, ...], Index]:
    """Classify each distinct pair of kernel and op once; return the classes and, for each activity, its own."""
    width = len(events.names) + 1
    pairs, index = np.unique(activities.name * np.int64(width) + op, return_inverse=True)
    names = (*events.names, "")
    return tuple(rule(names[pair // width], names[pair % width]) for pair in pairs.tolist()), index


def are_library(kinds: tuple[KernelClass, ...]) -> Bool:
    """Mark the kinds that are reached through a vendor library (I_lib)."""
    return np.array([kind.i_lib for kind in kinds], dtype=bool)


def family_numbers(kinds: tuple[KernelClass, ...]) -> Index:
    """Return the place of each kind's family in `FAMILIES`."""
    return np.array([FAMILIES.index(kind.family) for kind in kinds], dtype=np.intp)
