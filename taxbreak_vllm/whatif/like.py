"""How long each activity of a recording takes as its op was replayed elsewhere: other threads, another device, other
kernels.

In: a recording read with its calls, and a store of baselines. Out: `Times`, a range for each activity. Where the
recording's own store has the op too, what the two replays differ by is put on what was recorded, since alone in a loop
an op takes less than among others; else the replayed time stands for the recorded one.
"""

from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from taxbreak_vllm.model.baseline import Baseline, Outcome, Spread
from taxbreak_vllm.taxes.measured import Measured
from taxbreak_vllm.taxes.recording import Recording
from taxbreak_vllm.trace.dispatches import Bool
from taxbreak_vllm.trace.intervals import Index, Int64
from taxbreak_vllm.trace.signatures import Signature, sign, sign_ops
from taxbreak_vllm.whatif.changes import RefusedError, Times

if TYPE_CHECKING:
    from taxbreak_vllm.baselines.store import Baselines, View

COVERED = 0.9  # of the device's time must be of replayed ops
_LIKELY = 1.4826  # of a median absolute deviation: a standard deviation
_NAMED, _NAME_CHARS = 3, 40


def times_like(recording: Recording, store: "Baselines") -> Times:
    """Look every activity up; raises RefusedError where too little of the device's time was replayed there."""
    measured, view = recording.measured, _view(recording, store)
    signatures, of_activity = _signed(recording)
    keys = list(dict.fromkeys(key for signature in signatures for key in signature.keys))
    there = _active(signatures, view, keys)
    here = _active(signatures, recording.view, keys)
    recorded_ns = measured.activities.end_ns - measured.activities.start_ns
    known = np.array([spread is not None for spread in there] + [False])[of_activity]
    _require(measured, recorded_ns, known, store.path)
    low_ns, high_ns = recorded_ns.copy(), recorded_ns.copy()
    for row in np.flatnonzero(known).tolist():
        number = int(of_activity[row])
        spread = there[number]
        assert spread is not None
        low_ns[row], high_ns[row] = _range(int(recorded_ns[row]), spread, here[number])
    return Times(low_ns=low_ns, high_ns=high_ns)


def _view(recording: Recording, store: "Baselines") -> "View":
    """Return what was measured where the recording was made, else the one place that the store knows."""
    from taxbreak_vllm.baselines.store import View

    if (view := store.view(recording.environment)) is not None:
        return view
    places = store.environments()
    if len(places) != 1:
        raise RefusedError(
            f"--like {store.path}: holds baselines of {len(places)} places, none of them this recording's"
        )
    return View(store, places[0], None)


def _signed(recording: Recording) -> tuple[tuple[Signature, ...], Index]:
    """Return the signatures, and for each activity the index of its own, -1 for one without."""
    measured = recording.measured
    events, activities, dispatches = measured.events, measured.activities, measured.dispatches
    if recording.backend.has_launches:
        signed = sign(events, measured.host, activities, dispatches)
        distinct, of_dispatch = signed.distinct, signed.of_dispatch.astype(np.intp)
    else:
        distinct, of_dispatch = sign_ops(events, dispatches.row)
    of_activity = np.full(len(activities.row), -1, dtype=np.intp)
    first = np.where(dispatches.first_kernel >= 0, dispatches.first_kernel, dispatches.first)
    of_activity[first] = of_dispatch
    return distinct, of_activity


def _active(signatures: tuple[Signature, ...], view: "View | None", keys: list[str]) -> list[Spread | None]:
    found = view.get(keys) if view is not None else {}
    return [next(filter(None, (_measured(found.get(key)) for key in signature.keys)), None) for signature in signatures]


def _measured(entry: Baseline | None) -> Spread | None:
    return entry.active if entry is not None and entry.outcome is Outcome.MEASURED else None


def _require(measured: Measured, recorded_ns: Int64, known: Bool, path: Path) -> None:
    counted = np.where(measured.activities.is_kernel, recorded_ns, 0)
    total_ns = max(int(counted.sum()), 1)
    share = int(counted[known].sum()) / total_ns
    if share >= COVERED:
        return
    lacking: defaultdict[str, int] = defaultdict(int)
    for row in np.flatnonzero(~known).tolist():
        lacking[measured.events.names[measured.activities.name[row]]] += int(counted[row])
    most = sorted(lacking.items(), key=lambda item: -item[1])[:_NAMED]
    said = ", ".join(f"{_cut(name)} {ns / total_ns:.0%}" for name, ns in most)
    raise RefusedError(
        f"--like {path}: {1 - share:.0%} of the device's time is of ops that were not replayed there ({said}), at most"
        f" {1 - COVERED:.0%} may be"
    )


def _cut(name: str) -> str:
    return name if len(name) <= _NAME_CHARS else name[: _NAME_CHARS - 1] + "…"


def _range(recorded_ns: int, there: Spread, here: Spread | None) -> tuple[int, int]:
    """Return between what an activity will take: other by as much, or by as large a share, as the replays differ."""
    ends = [there.median_ns]
    if here is not None and here.median_ns:
        ends = [recorded_ns + there.median_ns - here.median_ns, recorded_ns * there.median_ns // here.median_ns]
    spread = sum(_LIKELY * each.mad_ns / max(each.median_ns, 1) for each in (there, here) if each is not None)
    return max(round(min(ends) * (1 - min(spread, 1.0))), 0), max(round(max(ends) * (1 + spread)), 0)
