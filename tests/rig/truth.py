"""What was true of a run, from the simulator's own state and in plain Python: nothing here reads a trace.

In: a `Run`. Out: a `Truth`: the same figures that the analysis gives, by the methodology's definitions (sections 2 to
4), for the whole run, for each step, and for each iteration, from the start of a step to the start of the next.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from rig.server import Activity, Run, Segment

from taxbreak_vllm.model.breakdown import DeviceTime, ExposedTax, HostTime, IdleTime, Taxes

_EXPOSED = {
    "python": "delta_ft_ns",
    "dispatch": "delta_ft_ns",
    "library": "delta_ct_ns",
    "launch": "delta_kt_ns",
    "runtime": "other_ns",
}

Stretch = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Figures:
    """What was true of [start_ns, end_ns).

    `host` and `places_ns` (by Segment.place) divide the worker's thread. `device` divides the device's time: of an
    iteration exactly [start_ns, end_ns), of a step or the whole up to the end of its last activity. `idle_places_ns`
    divides the idle time that host or blocked caused by where the worker's thread was. `device_ns` is all device time
    of what was launched here, whenever it ran, and `hdbi` is by it.
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


@dataclass(frozen=True, slots=True)
class _Piece:
    """A stretch of idle device, its cause, and what the worker's thread did in it where that is the cause."""

    start_ns: int
    end_ns: int
    cause: str
    cls: str = ""
    place: str = ""


def truth(run: Run) -> Truth:
    """Work out what was true of a run."""
    scene = _Scene.of(run)
    starts = [start_ns for start_ns, _ in run.windows]
    steps = range(len(run.windows))
    return Truth(
        total=scene.figures(starts[0], run.end_ns, steps, is_step=True),
        steps=tuple(scene.figures(*window, [step], is_step=True) for step, window in enumerate(run.windows)),
        iterations=tuple(
            scene.figures(start_ns, end_ns, [step], is_step=False)
            for step, (start_ns, end_ns) in enumerate(pairwise(starts))
        ),
    )


@dataclass(frozen=True, slots=True)
class _Scene:
    """The run in disjoint stretches, in the order of time."""

    run: Run
    busy: list[Stretch]
    pieces: list[_Piece]  # of the gaps between them
    own: list[list[Activity]]  # of each step

    @classmethod
    def of(cls, run: Run) -> "_Scene":
        own: list[list[Activity]] = [[] for _ in run.windows]
        for activity in run.activities:
            own[activity.step].append(activity)
        busy, openers = [], []
        for activity in sorted(run.activities, key=lambda a: a.start_ns):
            if busy and activity.start_ns <= busy[-1][1]:
                busy[-1] = busy[-1][0], max(busy[-1][1], activity.end_ns)
            else:
                busy.append((activity.start_ns, activity.end_ns))
                openers.append(activity)
        pieces: list[_Piece] = []
        for (_, fell_idle), opener in zip(busy, openers[1:], strict=False):
            pieces += _causes(run.segments, fell_idle, opener)
        return cls(run, busy, pieces, own)

    def figures(self, start_ns: int, end_ns: int, steps: Sequence[int], *, is_step: bool) -> Figures:
        activities = [activity for step in steps for activity in self.own[step]]
        device_end = max([end_ns, *(a.end_ns for a in activities)]) if is_step else end_ns
        own = _union(activities)
        busy_ns, active_ns = _within(self.busy, start_ns, device_end), _within(own, start_ns, device_end)
        idle, exposed, idle_places = self._idle(start_ns, device_end, clips=not is_step)
        idle_ns = device_end - start_ns - busy_ns
        idle["edge_ns"] = idle_ns - idle.total()
        host, places = self._host(start_ns, end_ns)
        costs = [self.run.orchestration[step] for step in steps]
        ft, ct = sum(c.ft_ns for c in costs), sum(c.ct_ns for c in costs)
        kernel_launches = sum(c.kernel_launches for c in costs)
        kt = kernel_launches * self.run.server.floor_ns
        return Figures(
            start_ns=start_ns,
            end_ns=end_ns,
            host=HostTime(**host),
            places_ns=dict(places),
            device=DeviceTime(
                window_ns=device_end - start_ns,
                active_ns=active_ns,
                other_active_ns=busy_ns - active_ns,
                kernel_sum_ns=sum(a.end_ns - a.start_ns for a in activities if a.is_kernel),
                idle_ns=idle_ns,
                idle=IdleTime(**idle),
            ),
            exposed=ExposedTax(**exposed),
            idle_places_ns=dict(idle_places),
            taxes=Taxes(delta_ft_ns=ft, delta_ct_ns=ct, delta_kt_ns=kt, orchestration_ns=ft + ct + kt),
            device_ns=sum(end - start for start, end in own),
            launches=sum(c.launches for c in costs),
            kernel_launches=kernel_launches,
        )

    def _host(self, start_ns: int, end_ns: int) -> tuple[Counter[str], Counter[str]]:
        by_class, by_place = Counter[str](), Counter[str]()
        for segment in _from(self.run.segments, start_ns):
            if segment.start_ns >= end_ns:
                break
            ns = min(segment.end_ns, end_ns) - max(segment.start_ns, start_ns)
            by_class[f"{segment.cls}_ns"] += ns
            by_place[segment.place] += ns
        return by_class, by_place

    def _idle(self, start_ns: int, end_ns: int, *, clips: bool) -> tuple[Counter[str], Counter[str], Counter[str]]:
        """Sum the gaps in [start, end) by cause; without `clips` those between what ran there, the rest being edge."""
        if not clips:
            inside = [stretch for stretch in self.busy if stretch[1] > start_ns and stretch[0] < end_ns]
            if not inside:
                return Counter(), Counter(), Counter()
            start_ns, end_ns = inside[0][1], inside[-1][0]
        by_cause, by_tax, by_place = Counter[str](), Counter[str](), Counter[str]()
        for piece in _from(self.pieces, start_ns):
            if piece.start_ns >= end_ns:
                break
            ns = min(piece.end_ns, end_ns) - max(piece.start_ns, start_ns)
            by_cause[f"{piece.cause}_ns"] += ns
            if piece.cause == "host":
                by_tax[_EXPOSED[piece.cls]] += ns
            if piece.place:
                by_place[piece.place] += ns
        return by_cause, by_tax, by_place


def _causes(segments: Sequence[Segment], fell_idle: int, opener: Activity) -> Iterable[_Piece]:
    """Cut the gap before an activity: until its launch by what the host did, from there on it is queue."""
    launched = min(max(opener.launch_ns, fell_idle), opener.start_ns)
    for segment in _from(segments, fell_idle):
        if segment.start_ns >= launched:
            break
        cause = "blocked" if segment.cls == "blocked" else "host"
        start_ns, end_ns = max(segment.start_ns, fell_idle), min(segment.end_ns, launched)
        yield _Piece(start_ns, end_ns, cause, segment.cls, segment.place)
    if launched < opener.start_ns:
        yield _Piece(launched, opener.start_ns, "queue")


def _from(stretches: Sequence, at_ns: int) -> Iterable:
    """Go through disjoint stretches in the order of time, from the one that holds an instant or follows it."""
    first = max(bisect_right(stretches, at_ns, key=lambda s: s.start_ns) - 1, 0)
    return (s for s in stretches[first:] if s.end_ns > at_ns)


def _union(activities: Sequence[Activity]) -> list[Stretch]:
    union: list[Stretch] = []
    for start_ns, end_ns in sorted((a.start_ns, a.end_ns) for a in activities):
        if union and start_ns <= union[-1][1]:
            union[-1] = union[-1][0], max(union[-1][1], end_ns)
        else:
            union.append((start_ns, end_ns))
    return union


def _within(stretches: Sequence[Stretch], start_ns: int, end_ns: int) -> int:
    return sum(max(min(end, end_ns) - max(start, start_ns), 0) for start, end in stretches)
