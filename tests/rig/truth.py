"""What was true of a run, from the simulator's own state and in plain Python: nothing here reads a trace.

In: a `Run`. Out: a `Truth`: the same figures that the analysis gives, by the methodology's definitions (sections 2 to
4), for the whole run, for each step, and for each iteration, from the start of a step to the start of the next.
"""

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from operator import attrgetter
from typing import TypeVar

from rig.server import Activity, Run, Segment
from taxbreak_vllm.model.breakdown import DeviceTime, ExposedTax, HostTime, IdleTime, Taxes

_EXPOSED = {
    "python": "delta_ft_ns",
    "dispatch": "delta_ft_ns",
    "library": "delta_ct_ns",
    "launch": "delta_kt_ns",
    "runtime": "other_ns",
}

_START, _END = attrgetter("start_ns"), attrgetter("end_ns")


@dataclass(frozen=True, slots=True)
class Figures:
    """What was true of [start_ns, end_ns).

    `host` and `places_ns` (by Segment.place) divide the worker's thread. `device` divides the device's time: of an
    iteration exactly [start_ns, end_ns), of a step or the whole up to the end of its last activity. `idle_places_ns`
    divides the idle time that the host caused, blocked or not, by where the worker's thread was. `device_ns` is all
    device time of what was launched here, whenever it ran, and `hdbi` is by it.
    """

    start_ns: int
    end_ns: int
    host: HostTime
    places_ns: dict[str, int]
    device: DeviceTime
    exposed: ExposedTax
    idle_places_ns: dict[str, int]
    taxes: Taxes
    device_ns: int
    launches: int
    kernel_launches: int

    @property
    def window_ns(self) -> int:
        return self.end_ns - self.start_ns

    @property
    def hdbi(self) -> float | None:
        if not self.device_ns:
            return None
        return self.device_ns / (self.device_ns + (self.taxes.orchestration_ns or 0))


@dataclass(frozen=True, slots=True)
class Truth:
    """The whole run, its steps, and its iterations: one fewer, as nothing follows the last step."""

    total: Figures
    steps: tuple[Figures, ...]
    iterations: tuple[Figures, ...]


def truth(run: Run) -> Truth:
    """Work out all that was true of a run."""
    scene = _Scene.of(run)
    steps = range(len(run.windows))
    return Truth(
        total=scene.figures(run.windows[0][0], run.end_ns, steps, is_iteration=False),
        steps=tuple(scene.figures(*run.windows[step], [step], is_iteration=False) for step in steps),
        iterations=tuple(scene.iteration(step) for step in steps[:-1]),
    )


def iteration(run: Run, step: int) -> Figures:
    """Work out what was true of one iteration."""
    return _Scene.of(run).iteration(step)


@dataclass(slots=True)
class _Busy:
    """A stretch in which the device never rests, and what began it."""

    start_ns: int
    end_ns: int
    opener: Activity


@dataclass(frozen=True, slots=True)
class _Idle:
    """A stretch of idle device, its cause, and what the worker's thread did in it where that is the cause."""

    start_ns: int
    end_ns: int
    cause: str
    cls: str = ""
    place: str = ""


_S = TypeVar("_S", Segment, _Busy, _Idle)


@dataclass(frozen=True, slots=True)
class _Scene:
    """A run in disjoint stretches, in the order of time; `own` are the activities of each step."""

    run: Run
    busy: list[_Busy]
    idle: list[_Idle]
    own: list[list[Activity]]

    @classmethod
    def of(cls, run: Run) -> "_Scene":
        own: list[list[Activity]] = [[] for _ in run.windows]
        for activity in run.activities:
            own[activity.step].append(activity)
        busy = _union(run.activities)
        gaps = pairwise(busy)
        idle = [piece for before, after in gaps for piece in _causes(run.segments, before.end_ns, after.opener)]
        return cls(run, busy, idle, own)

    def iteration(self, step: int) -> Figures:
        return self.figures(self.run.windows[step][0], self.run.windows[step + 1][0], [step], is_iteration=True)

    def figures(self, start_ns: int, end_ns: int, steps: Sequence[int], *, is_iteration: bool) -> Figures:
        activities = [activity for step in steps for activity in self.own[step]]
        device_end = end_ns if is_iteration else max([end_ns, *map(_END, activities)])
        own = _union(activities)
        busy_ns, active_ns = _length(self.busy, start_ns, device_end), _length(own, start_ns, device_end)
        idle_ns = device_end - start_ns - busy_ns
        gaps = (start_ns, device_end) if is_iteration else self._between_activities(start_ns, device_end)
        by_cause, by_tax, by_place = self._divide_idle(*gaps)
        by_class, places = self._divide_host(start_ns, end_ns)
        costs = [self.run.orchestration[step] for step in steps]
        ft, ct = sum(c.ft_ns for c in costs), sum(c.ct_ns for c in costs)
        kernel_launches = sum(c.kernel_launches for c in costs)
        kt = kernel_launches * self.run.server.floor_ns
        return Figures(
            start_ns=start_ns,
            end_ns=end_ns,
            host=HostTime(**by_class),
            places_ns=dict(places),
            device=DeviceTime(
                window_ns=device_end - start_ns,
                active_ns=active_ns,
                other_active_ns=busy_ns - active_ns,
                kernel_sum_ns=sum(a.end_ns - a.start_ns for a in activities if a.is_kernel),
                idle_ns=idle_ns,
                idle=IdleTime(**by_cause, edge_ns=idle_ns - by_cause.total()),
            ),
            exposed=ExposedTax(**by_tax),
            idle_places_ns=dict(by_place),
            taxes=Taxes(delta_ft_ns=ft, delta_ct_ns=ct, delta_kt_ns=kt, orchestration_ns=ft + ct + kt),
            device_ns=sum(stretch.end_ns - stretch.start_ns for stretch in own),
            launches=sum(c.launches for c in costs),
            kernel_launches=kernel_launches,
        )

    def _between_activities(self, start_ns: int, end_ns: int) -> tuple[int, int]:
        """Return from the end of the first busy stretch in a window to the start of the last: the rest is edge."""
        inside = _between(self.busy, start_ns, end_ns)
        return (inside[0].end_ns, inside[-1].start_ns) if inside else (end_ns, end_ns)

    def _divide_host(self, start_ns: int, end_ns: int) -> tuple[Counter[str], Counter[str]]:
        by_class, by_place = Counter[str](), Counter[str]()
        for segment in _between(self.run.segments, start_ns, end_ns):
            ns = min(segment.end_ns, end_ns) - max(segment.start_ns, start_ns)
            by_class[f"{segment.cls}_ns"] += ns
            by_place[segment.place] += ns
        return by_class, by_place

    def _divide_idle(self, start_ns: int, end_ns: int) -> tuple[Counter[str], Counter[str], Counter[str]]:
        by_cause, by_tax, by_place = Counter[str](), Counter[str](), Counter[str]()
        for piece in _between(self.idle, start_ns, end_ns):
            ns = min(piece.end_ns, end_ns) - max(piece.start_ns, start_ns)
            by_cause[f"{piece.cause}_ns"] += ns
            if piece.cause == "host":
                by_tax[_EXPOSED[piece.cls]] += ns
            if piece.place:
                by_place[piece.place] += ns
        return by_cause, by_tax, by_place


def _causes(segments: Sequence[Segment], fell_idle: int, opener: Activity) -> Iterator[_Idle]:
    """Cut the gap before an activity: until its launch by what the host did, from there on it is queue."""
    launched = min(max(opener.launch_ns, fell_idle), opener.start_ns)
    for segment in _between(segments, fell_idle, launched):
        cause = "blocked" if segment.cls == "blocked" else "host"
        start_ns, end_ns = max(segment.start_ns, fell_idle), min(segment.end_ns, launched)
        yield _Idle(start_ns, end_ns, cause, segment.cls, segment.place)
    if launched < opener.start_ns:
        yield _Idle(launched, opener.start_ns, "queue")


def _union(activities: Iterable[Activity]) -> list[_Busy]:
    """Merge what overlaps or touches."""
    union: list[_Busy] = []
    for activity in sorted(activities, key=_START):
        if union and activity.start_ns <= union[-1].end_ns:
            union[-1].end_ns = max(union[-1].end_ns, activity.end_ns)
        else:
            union.append(_Busy(activity.start_ns, activity.end_ns, activity))
    return union


def _between(stretches: Sequence[_S], start_ns: int, end_ns: int) -> Sequence[_S]:
    """Return those of disjoint stretches, in the order of time, that have a part in [start, end)."""
    if start_ns >= end_ns:
        return ()
    first = bisect_right(stretches, start_ns, key=_END)
    return stretches[first : bisect_left(stretches, end_ns, lo=first, key=_START)]


def _length(stretches: Sequence[_Busy], start_ns: int, end_ns: int) -> int:
    """Return how much of disjoint stretches lies in [start, end)."""
    inside = _between(stretches, start_ns, end_ns)
    return sum(min(stretch.end_ns, end_ns) - max(stretch.start_ns, start_ns) for stretch in inside)
