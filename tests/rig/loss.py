"""What profilers lose and spoil: each function takes such records out of a `Trace`, or makes them wrong.

Seen in the wild: the first records of a session (CUPTI 13.0), the last ones (a buffer not flushed), some all along,
nodes of replayed graphs, links between launches and kernels, times.
"""

from collections.abc import Callable, Container
from dataclasses import replace
from itertools import pairwise
from random import Random

from rig.records import Activity
from rig.trace import Trace


def head(trace: Trace, count: int) -> Trace:
    """Lose the first device records."""
    first = set(map(id, _by_time(trace)[:count]))
    return _keep(trace, lambda activity: id(activity) not in first)


def tail(trace: Trace, count: int) -> Trace:
    """Lose the last device records."""
    last = set(map(id, _by_time(trace)[max(len(trace.activities) - count, 0) :]))
    return _keep(trace, lambda activity: id(activity) not in last)


def every(trace: Trace, nth: int) -> Trace:
    """Lose every `nth` device record."""
    return replace(trace, activities=tuple(a for i, a in enumerate(trace.activities, 1) if i % nth))


def all_but_every(trace: Trace, nth: int) -> Trace:
    """Lose all device records but every `nth`."""
    return replace(trace, activities=tuple(a for i, a in enumerate(trace.activities, 1) if not i % nth))


def some(trace: Trace, ratio: float, random: Random, what: Callable[[Activity], bool] = lambda _: True) -> Trace:
    """Lose this share of the device records, or of `what` of them, one here and one there; one at least."""
    rows = [activity for activity in trace.activities if what(activity)]
    lost = {id(activity) for activity in rows if random.random() < ratio}
    lost |= {id(activity) for activity in random.sample(rows, min(1, len(rows)))}
    return _keep(trace, lambda activity: id(activity) not in lost)


def graph_nodes(trace: Trace, kept: int, replays: Container[int] | None = None) -> Trace:
    """Lose all but the first `kept` nodes of graph replays: of all, or of those with these correlation ids."""
    return _keep(
        trace,
        lambda activity: (
            not activity.graph_id
            or activity.node < kept
            or (replays is not None and activity.correlation not in replays)
        ),
    )


def links(trace: Trace, nth: int, correlation: int | None = None) -> Trace:
    """Let every `nth` device record carry an id that no call has, or `correlation` for it (0, by some runtimes)."""
    strange = max((span.correlation for span in trace.spans), default=0) + 1_000_000
    return _change(
        trace,
        nth,
        lambda activity, i: replace(activity, correlation=strange + i if correlation is None else correlation),
    )


def calls(trace: Trace, nth: int) -> Trace:
    """Lose every `nth` launch call; what it launched is there."""
    seen = 0
    spans = []
    for span in trace.spans:
        is_launch = span.kind == "call" and "Launch" in span.name
        seen += is_launch
        if not is_launch or seen % nth:
            spans.append(span)
    return replace(trace, spans=tuple(spans))


def long_record(trace: Trace, which: int, ns: int = 3_400_000_000) -> Trace:
    """Let one device record last far beyond those after it on its stream."""
    return _change_one(trace, which, lambda activity: replace(activity, end_ns=activity.start_ns + ns))


def early_record(trace: Trace, which: int, ns: int = 3_600_000_000_000) -> Trace:
    """Let one device record lie long before its own launch."""
    return _change_one(
        trace, which, lambda activity: replace(activity, start_ns=activity.start_ns - ns, end_ns=activity.end_ns - ns)
    )


def over_the_next(trace: Trace, random: Random) -> Trace:
    """Let one device record last until the next on its stream has ended, or longer."""
    which, next_one = random.choice(_successions(trace))
    longer_ns = int(10 ** random.uniform(0, 11))
    end_ns = next_one.end_ns + longer_ns
    return _change_one(trace, which, lambda activity: replace(activity, end_ns=end_ns))


def before_its_launch(trace: Trace, random: Random) -> Trace:
    """Let one device record lie before its own launch."""
    which = random.randrange(len(trace.activities))
    one = trace.activities[which]
    return early_record(trace, which, one.start_ns - one.launch_ns + int(10 ** random.uniform(0, 14)))


def after_the_next(trace: Trace, random: Random) -> Trace:
    """Let one device record lie after the next on its stream."""
    which, next_one = random.choice(_successions(trace))
    return early_record(
        trace, which, trace.activities[which].start_ns - next_one.end_ns - int(10 ** random.uniform(0, 14))
    )


def _successions(trace: Trace) -> list[tuple[int, Activity]]:
    """Return the place of each record with the next one of another launch on its stream."""
    by_stream: dict[int, list[int]] = {}
    for place, activity in enumerate(trace.activities):
        by_stream.setdefault(activity.stream, []).append(place)
    return [
        (before, trace.activities[after])
        for places in by_stream.values()
        for before, after in pairwise(places)
        if trace.activities[before].correlation != trace.activities[after].correlation
    ]


def _by_time(trace: Trace) -> list[Activity]:
    return sorted(trace.activities, key=lambda activity: activity.start_ns)


def _keep(trace: Trace, is_kept: Callable[[Activity], bool]) -> Trace:
    return replace(trace, activities=tuple(filter(is_kept, trace.activities)))


def _change(trace: Trace, nth: int, change: Callable[[Activity, int], Activity]) -> Trace:
    activities = (a if i % nth else change(a, i) for i, a in enumerate(trace.activities, 1))
    return replace(trace, activities=tuple(activities))


def _change_one(trace: Trace, which: int, change: Callable[[Activity], Activity]) -> Trace:
    return replace(trace, activities=tuple(change(a) if i == which else a for i, a in enumerate(trace.activities)))
