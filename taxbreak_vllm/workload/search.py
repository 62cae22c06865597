"""Searches of a sweep: what a load, or a number of replicas, comes to in; the last that keeps the SLO out.

Both double or halve until one keeps it and the next does not, then bisect between the two.
"""

import math
from collections.abc import Callable
from dataclasses import replace

from taxbreak_vllm.model.sweep import Limit, SweepPoint
from taxbreak_vllm.workload.task import Search

NEAR = 1.02  # two loads that are no further apart are as one: answers are no more exact than 1 % either way


def greatest_load(tried: Callable[[float], SweepPoint], search: Search) -> SweepPoint:
    """Return the greatest load that keeps the SLO, from `search.least` to `search.most` times the requests.

    What is refused does not keep it. Where not even the least does, that is returned.
    """
    good = bad = None
    load, num = min(max(1.0, search.least), search.most), 0
    while True:
        load, num = float(f"{load:.4g}"), num + 1
        point = tried(load)
        if point.meets_slo:
            good = point
        else:
            bad = point
        if bad is None and load < search.most:
            load = min(2 * load, search.most)
        elif good is None and load > search.least:
            load = max(load / 2, search.least)
        elif good is None or bad is None or bad.load <= good.load * NEAR:
            return _ended(good, bad, "no more was asked for", f"{bad.load:g}x" if bad else "", num)
        else:
            load = math.sqrt(good.load * bad.load)


def fewest_replicas(tried: Callable[[int], SweepPoint], search: Search) -> SweepPoint:
    """Return the fewest replicas that keep the SLO, from `search.least` to `search.most`; else the most."""
    good = bad = None
    replicas, num = int(search.least), 0
    while True:
        num += 1
        point = tried(replicas)
        if point.meets_slo:
            good = point
        else:
            bad = point
        if good is None and replicas < search.most:
            replicas = min(2 * replicas, int(search.most))
        elif good is None or bad is None or good.replicas - bad.replicas <= 1:
            beyond = "" if bad is None else f"{bad.replicas} replica{'s' if bad.replicas > 1 else ''}"
            return _ended(good, bad, "no fewer were asked for", beyond, num)
        else:
            replicas = (good.replicas + bad.replicas) // 2


def _ended(good: SweepPoint | None, bad: SweepPoint | None, asked: str, beyond: str, num: int) -> SweepPoint:
    """Return what was found, else the last that was tried, and what is beyond it."""
    if bad is None:
        assert good is not None
        return replace(good, limit=Limit.ASKED, ended_by=asked, num_answers=num)
    ratio = None if bad.predicted is None else bad.predicted.slo_ratio
    limit = Limit.UNKNOWN if ratio is None else Limit.SLO
    said = f"{beyond}: {bad.reason}" if ratio is None else f"{beyond}: {ratio:.1%} keep to the SLO"
    return replace(good or bad, limit=limit, ended_by=said, num_answers=num)
