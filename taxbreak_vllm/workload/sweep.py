"""One point of a sweep: a recording that was checked and a cell in, what `predict` answers out, or what a search found.

A plain function of frozen values: wherever it runs and however often, the same comes of it.
"""

from dataclasses import dataclass, replace

import msgspec

from taxbreak_vllm.model.errors import WorkloadError
from taxbreak_vllm.model.sweep import Aim, SweepPoint
from taxbreak_vllm.workload.predict import Checked, answer
from taxbreak_vllm.workload.requests import Requests, arriving
from taxbreak_vllm.workload.search import fewest_replicas, greatest_load
from taxbreak_vllm.workload.task import Cell, Search, load_words


@dataclass(frozen=True, slots=True)
class Asked:
    """What all cells of a sweep have in common. `requests` are the recorded ones, or those of a file."""

    checked: Checked
    requests: Requests
    attainment: float
    search: Search | None = None
    arrivals: float | None = None


def point_of(asked: Asked, cell: Cell) -> SweepPoint:
    """Predict a cell, or search in it."""
    if asked.search is None:
        return _tried(asked, cell)
    if asked.search.aim is Aim.THROUGHPUT:
        return greatest_load(lambda load: _tried(asked, msgspec.structs.replace(cell, load=load)), asked.search)
    return fewest_replicas(lambda replicas: _tried(asked, _with_replicas(cell, replicas)), asked.search)


def lost(cell: Cell, reason: str) -> SweepPoint:
    """Return the point of a cell that has no answer."""
    return SweepPoint(changes=cell.change.said(), load=cell.load, replicas=cell.change.replicas, reason=reason)


def _with_replicas(cell: Cell, replicas: int) -> Cell:
    return msgspec.structs.replace(cell, change=msgspec.structs.replace(cell.change, replicas=replicas))


def _tried(asked: Asked, cell: Cell) -> SweepPoint:
    requests = arriving(asked.requests, load=cell.load, arrivals=asked.arrivals)
    try:
        found = answer(asked.checked, cell.change, requests, load=load_words(cell.load, asked.arrivals))
    except WorkloadError as error:
        return lost(cell, str(error))
    except (AssertionError, ValueError) as error:  # of vLLM itself, which was given what it does not take
        return lost(cell, f"vLLM: {type(error).__name__}: {error}")
    ratio = None if found.predicted is None else found.predicted.slo_ratio
    wall_s = float(requests.at_ns[-1] - requests.at_ns[0]) / 1e9 if requests else 0.0
    return replace(
        lost(cell, ""),
        requests_per_s=(len(requests) - 1) / wall_s if wall_s else None,
        predicted=found.predicted,
        band=found.band,
        bounds=found.bounds,
        meets_slo=None if ratio is None else ratio >= asked.attainment,
        reason=found.reason,
    )
