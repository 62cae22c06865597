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

from rig.records import Activity, Run, Segment
from taxbreak_vllm.model.breakdown import DeviceTime, ExposedTax, HostTime, IdleTime, Taxes

_EXPOSED = {
    "python": "delta_ft_ns",
    "dispatch": "delta_ft_ns",
    "library": "delta_ct_ns",
    "launch": "delta_kt_ns",
    "runtime": "other_ns",
}
_IN_STEP = ("execute", "sample")  # the places where the worker's thread works for a step; the others are the engine's

_START, _END = attrgetter("start_ns"), attrgetter("end_ns")


@dataclass(frozen=True, slots=True)
class Figures:
    """What was true of [start_ns, end_ns).

    `host_ns` divides the worker's thread by (place, class), the words of a Segment. Active, other_active and `idle_ns`
    divide the device's time: of an iteration exactly [start_ns, end_ns), of a step or the whole up to the end of its
    last activity. `idle_ns` goes by (cause, place, class); causes are those of IdleTime, and place and class are empty
    unless it is host or blocked. `device_ns` is all device time of what was launched here, whenever it ran, and `hdbi`
    is by it.
    """

    start_ns: int
    end_ns: int
    host_ns: dict[tuple[str, str], int]
    active_ns: int
    other_active_ns: int
    idle_ns: dict[tuple[str, str, str], int]
    kernel_sum_ns: int
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

    @property
    def host(self) -> HostTime:
        """The worker's thread by class, wherever it was."""
        return HostTime(**_sums((f"{cls}_ns", ns) for (_, cls), ns in self.host_ns.items()))

    @property
    def host_in_step(self) -> HostTime:
        """The worker's thread by class, as far as it worked for the step."""
        return HostTime(**_sums((f"{cls}_ns", ns) for (place, cls), ns in self.host_ns.items() if place in _IN_STEP))

    @property
    def places_ns(self) -> dict[str, int]:
        """The worker's thread by place."""
        return _sums((place, ns) for (place, _), ns in self.host_ns.items())

    @property
    def device(self) -> DeviceTime:
        """The device's time, idle by cause (methodology section 4)."""
        idle = _sums((f"{cause}_ns", ns) for (cause, _, _), ns in self.idle_ns.items())
        return DeviceTime(
            window_ns=self.active_ns + self.other_active_ns + sum(idle.values()),
            active_ns=self.active_ns,
            other_active_ns=self.other_active_ns,
            kernel_sum_ns=self.kernel_sum_ns,
            idle_ns=sum(idle.values()),
            idle=IdleTime(**idle),
        )

    @property
    def exposed(self) -> ExposedTax:
        """What the host cost the device, wherever it was; sums to `device.idle.host_ns`."""
        return ExposedTax(**_sums((_EXPOSED[c], ns) for (cause, _, c), ns in self.idle_ns.items() if cause == "host"))

    @property
    def exposed_in_step(self) -> ExposedTax:
        """What the host cost the device by working for the step; sums to the host's part of `idle_by_cause`."""
        parts = ((cls, ns) for (cause, place, cls), ns in self.idle_ns.items() if cause == "host" and place in _IN_STEP)
        return ExposedTax(**_sums((_EXPOSED[cls], ns) for cls, ns in parts))

    @property
    def idle_by_cause(self) -> dict[str, int]:
        """Idle time by cause, where the thread did not work for a step: engine."""
        return _sums(
            ("engine" if place and place not in _IN_STEP else cause, ns)
            for (cause, place, _), ns in self.idle_ns.items()
        )

    @property
    def idle_places_ns(self) -> dict[str, int]:
        """The idle time that the host caused, blocked or not, by place."""
        return _sums((place, ns) for (_, place, _), ns in self.idle_ns.items() if place)


def _sums(parts: Iterable[tuple[str, int]]) -> dict[str, int]:
    sums: Counter[str] = Counter()
    for name, ns in parts:
        sums[name] += ns
    return dict(sums)


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
        gaps = (start_ns, device_end) if is_iteration else self._between_activities(start_ns, device_end)
        idle_ns = self._divide_idle(*gaps)
        idle_ns["edge", "", ""] = device_end - start_ns - busy_ns - idle_ns.total()
        costs = [self.run.orchestration[step] for step in steps]
        ft, ct = sum(c.ft_ns for c in costs), sum(c.ct_ns for c in costs)
        kernel_launches = sum(c.kernel_launches for c in costs)
        kt = kernel_launches * self.run.server.floor_ns
        return Figures(
            start_ns=start_ns,
            end_ns=end_ns,
            host_ns=self._divide_host(start_ns, end_ns),
            active_ns=active_ns,
            other_active_ns=busy_ns - active_ns,
            idle_ns=idle_ns,
            kernel_sum_ns=sum(a.end_ns - a.start_ns for a in activities if a.is_kernel),
            taxes=Taxes(delta_ft_ns=ft, delta_ct_ns=ct, delta_kt_ns=kt, orchestration_ns=ft + ct + kt),
            device_ns=sum(stretch.end_ns - stretch.start_ns for stretch in own),
            launches=sum(c.launches for c in costs),
            kernel_launches=kernel_launches,
        )

    def _between_activities(self, start_ns: int, end_ns: int) -> tuple[int, int]:
        """Return from the end of the first busy stretch in a window to the start of the last: the rest is edge."""
        inside = _between(self.busy, start_ns, end_ns)
        return (inside[0].end_ns, inside[-1].start_ns) if inside else (end_ns, end_ns)

    def _divide_host(self, start_ns: int, end_ns: int) -> Counter[tuple[str, str]]:
        sums: Counter[tuple[str, str]] = Counter()
        for segment in _between(self.run.segments, start_ns, end_ns):
            sums[segment.place, segment.cls] += min(segment.end_ns, end_ns) - max(segment.start_ns, start_ns)
        return sums

    def _divide_idle(self, start_ns: int, end_ns: int) -> Counter[tuple[str, str, str]]:
        sums: Counter[tuple[str, str, str]] = Counter()
        for piece in _between(self.idle, start_ns, end_ns):
            sums[piece.cause, piece.place, piece.cls] += min(piece.end_ns, end_ns) - max(piece.start_ns, start_ns)
        return sums


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
