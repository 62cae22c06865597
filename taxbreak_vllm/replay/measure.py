"""Replay one call alone and read its costs off the profiler, with the same linking as any other trace.

In: a `Task`. Out: one `Baseline` for each kernel wanted. Runs in the child process (`child`), where a crash costs no
more than the task at hand.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from taxbreak_vllm.model.baseline import Baseline, Match, Outcome, Spread
from taxbreak_vllm.model.errors import TaxbreakError
from taxbreak_vllm.replay.inputs import Prepared, RefusedError, Size, TooLargeError, load_namespace, prepare, resized
from taxbreak_vllm.replay.task import Options, Task
from taxbreak_vllm.trace.calls import Call, Kernel, signature
from taxbreak_vllm.trace.dispatches import find_roots, link
from taxbreak_vllm.trace.events import EventKind, Events
from taxbreak_vllm.trace.intervals import Int64
from taxbreak_vllm.trace.read.kineto import read_events
from taxbreak_vllm.trace.timeline import HostClass, partition_host

WINDOW = "taxbreak.replay:"
PACE = "pace"

_LONG_RUN_S = 0.02  # a call that takes longer is run less often
_MIN_RUNS = 5
# A library's front-end can be 20 ns, the difference of two medians of 1 µs: short calls are run more often for that.
_SHORT_RUN_S, _SHORT_RUNS = 50e-6, 5
_TURNS, _PACE_RUNS = 10, 80
_ATTEMPTS, _SLOW_RATIO, _PATIENCE_S = 3, 1.15, 1.0
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "bad_alloc", "cannot allocate memory", "bad allocation")


def warm_up(options: Options) -> None:
    """Load what the tasks will need and start the profiler once, which takes seconds that are no task's own."""
    for namespace in ("aten", *options.namespaces):
        with suppress(RefusedError):
            load_namespace(namespace, options.modules)
    with torch.profiler.profile(activities=_activities(options)):
        pass


class Gauge:
    """Tells in which turns a core ran at its full pace, by the shortest that an op without work has taken here.

    On a core that others share, all ops take twice as long for milliseconds or seconds on end, with as little spread.
    """

    def __init__(self) -> None:
        self._least_ns = self._least_plain_ns = float("inf")
        self._empty = torch.empty(0)

    def call(self) -> None:
        """Do what the pace is told by."""
        self._empty.add_(self._empty)

    def wait(self) -> None:
        """Return once the core is at full pace, or after a second."""
        deadline_s = time.monotonic() + _PATIENCE_S
        while self._is_slow() and time.monotonic() < deadline_s:
            time.sleep(0.001)

    def _is_slow(self) -> bool:
        times_ns = []
        for _ in range(3):
            begun_ns = time.perf_counter_ns()
            for _ in range(_PACE_RUNS):
                self.call()
            times_ns.append(time.perf_counter_ns() - begun_ns)
        self._least_plain_ns = min(self._least_plain_ns, *times_ns)
        return min(times_ns) > _SLOW_RATIO * self._least_plain_ns

    def at_full_pace(self, turns: Sequence["Turn"]) -> list["Turn"]:
        """Return the turns that began and ended at full pace, as the next one began; all of this task in order."""
        paces_ns = [float(np.median(turn[PACE])) for turn in turns]
        self._least_ns = min(self._least_ns, *paces_ns)
        limit_ns = _SLOW_RATIO * self._least_ns
        paces_after_ns = [*paces_ns[1:], paces_ns[-1]]
        paces = zip(turns, paces_ns, paces_after_ns, strict=True)
        return [turn for turn, before_ns, after_ns in paces if max(before_ns, after_ns) <= limit_ns]


Turn = dict[str, Int64]
"""What each run took in one turn of the calls, ns, by the call's name."""


def measure(
    task: Task, options: Options, *, gauge: Gauge | None = None, now_ns: Callable[[], int] = time.time_ns
) -> list[Baseline]:
    """Replay a task; what goes wrong in Python becomes the outcome of its entries. One gauge serves a whole process."""
    try:
        load_namespace(task.call.op.partition("::")[0])
        with torch.inference_mode():
            return (
                _measure_cpu(task, options, gauge or Gauge(), now_ns())
                if options.device == "cpu"
                else _measure_gpu(task, options, now_ns())
            )
    except RefusedError as error:
        return task.entries(Outcome.DENIED, str(error), now_ns=now_ns())
    except (TooLargeError, MemoryError, torch.OutOfMemoryError) as error:
        return task.entries(Outcome.OUT_OF_MEMORY, _line(error), now_ns=now_ns())
    except Exception as error:
        is_memory = any(text in str(error).lower() for text in _OUT_OF_MEMORY)
        outcome = Outcome.OUT_OF_MEMORY if is_memory else Outcome.FAILED
        return task.entries(outcome, _line(error), now_ns=now_ns())


def _measure_cpu(task: Task, options: Options, gauge: Gauge, now_ns: int) -> list[Baseline]:
    """Methodology section 7: no elements cost dispatch, unit size adds a library's front-end, full size the work."""
    full = _first_that_runs(task.call, Size.FULL, options)
    assert full is not None
    empty = _first_that_runs(task.call, Size.ZERO, options)
    unit = _first_that_runs(task.call, Size.UNIT, options)
    calls: dict[str, Prepared] = {
        size: call for size, call in ((Size.FULL, full), (Size.ZERO, empty), (Size.UNIT, unit)) if call is not None
    }
    if empty is None:
        reason = "it takes no inputs without elements, so its dispatch cannot be told from its work"
        return task.entries(Outcome.FAILED, reason, now_ns=now_ns)
    own = _at_full_pace(calls, options, gauge)
    dispatch = Spread.of(own[Size.ZERO].tolist())
    library = None
    if Size.UNIT in own:
        beyond = own[Size.UNIT] - dispatch.median_ns
        library = Spread.of(np.maximum(beyond, 0).tolist())
    ahead = dispatch.median_ns + (library.median_ns if library else 0)
    return [
        Baseline(
            signature=signature(task.call, kernel),
            op=task.call.op,
            kernel=kernel.name,
            outcome=Outcome.MEASURED,
            dispatch=dispatch,
            library=library,
            active=Spread.of(np.maximum(own[Size.FULL] - ahead, 0).tolist()),
            match=Match.NAME,
            match_ratio=1.0,
            measured_unix_ns=now_ns,
        )
        for kernel in task.kernels
    ]


def _at_full_pace(calls: Mapping[str, Prepared], options: Options, gauge: Gauge) -> dict[str, Int64]:
    """Record until the core ran at its full pace for half of an attempt, and return what each call's runs took then.

    Where it never does, the turns all count.
    """
    turns: list[Turn] = []
    for _ in range(_ATTEMPTS):
        gauge.wait()
        with _recorded({PACE: gauge.call, **calls}, options) as path:
            turns += _turns(read_events(path))
        found = gauge.at_full_pace(turns)
        if len(found) >= _TURNS // 2:
            break

    def runs(call: str) -> Int64:
        # a long call is not run in each turn
        chosen = [turn[call] for turn in found if len(turn[call])] or [turn[call] for turn in turns]
        return np.concatenate(chosen)

    return {call: runs(call) for call in calls}


def _first_that_runs(call: Call, size: Size, options: Options) -> Prepared | None:
    """Return the first form of a call at this size that the op takes; at full size its refusal is raised."""
    for form in resized(call, size):
        try:
            prepared = prepare(form, device=options.device, max_bytes=options.max_bytes, dtype=options.dtype)
            prepared()
        except Exception:
            if size is Size.FULL:
                raise
        else:
            return prepared
    return None


@contextmanager
def _recorded(calls: Mapping[str, Callable[[], object]], options: Options) -> Iterator[Path]:
    """Run each call alone, again and again, under the profiler that a server uses; give the trace."""
    runs = {name: _PACE_RUNS if name == PACE else _warm(call, options) for name, call in calls.items()}
    with TemporaryDirectory(prefix="taxbreak-replay-") as folder:
        with torch.profiler.profile(activities=_activities(options), record_shapes=True) as profile:
            for turn in range(_TURNS):  # the sizes are compared with one another, so they share what drifts
                for name, call in calls.items():
                    with torch.profiler.record_function(WINDOW + name):
                        for _ in range(turn, runs[name], _TURNS):
                            call()
                            synchronize(options.device)
        path = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(path))
        yield path


def _activities(options: Options) -> list[torch.profiler.ProfilerActivity]:
    cpu, gpu = torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA
    return [cpu] if options.device == "cpu" else [cpu, gpu]


def _warm(call: Callable[[], object], options: Options) -> int:
    """Run the warm-ups; return how many measured runs a call of that length gets."""
    shortest_s = float("inf")
    for _ in range(options.warmups):
        started_s = time.perf_counter()
        call()
        synchronize(options.device)
        shortest_s = min(shortest_s, time.perf_counter() - started_s)
        if shortest_s > _LONG_RUN_S * 5:
            return min(_MIN_RUNS, options.runs)
    if shortest_s < _SHORT_RUN_S:
        return options.runs * _SHORT_RUNS
    return options.runs if shortest_s < _LONG_RUN_S else max(_MIN_RUNS, options.runs // 4)


def synchronize(device: str) -> None:
    """Wait until the device is done; the CPU backend always is."""
    if device != "cpu":
        torch.cuda.synchronize()


def _turns(events: Events) -> list[Turn]:
    """What each root op did after its last child returned, as `trace.cpu` has an op's own work."""
    start, end = _roots(events)
    ops = events.rows(EventKind.OP)
    at, until = events.start_ns[ops], events.end_ns[ops]
    order = np.lexsort((-until, at))
    at, until = at[order], until[order]
    owner = np.searchsorted(start, at, side="right") - 1
    is_child = (owner >= 0) & (until <= end[owner]) & ~((at == start[owner]) & (until == end[owner]))
    last = start.copy()
    np.maximum.at(last, owner[is_child], until[is_child])
    own = end - last
    turns: list[Turn] = []
    for name, begun_ns, ended_ns in _windows(events):
        if not turns or name in turns[-1]:
            turns.append({})
        turns[-1][name] = own[(start >= begun_ns) & (end <= ended_ns)]
    return turns


def _roots(events: Events) -> tuple[Int64, Int64]:
    ops = events.rows(EventKind.OP)
    start, end = events.start_ns[ops], events.end_ns[ops]
    order = np.lexsort((-end, start))
    return find_roots(start[order], end[order])


def _windows(events: Events) -> list[tuple[str, int, int]]:
    """Return name, start and end of the windows in which calls were run, in order of time."""
    rows = events.rows(EventKind.ANNOTATION)
    return [
        (name.removeprefix(WINDOW), int(events.start_ns[row]), int(events.end_ns[row]))
        for row in rows[np.argsort(events.start_ns[rows], kind="stable")].tolist()
        if (name := events.names[events.name[row]]).startswith(WINDOW)
    ]


def _measure_gpu(task: Task, options: Options, now_ns: int) -> list[Baseline]:
    """Methodology section 6: find each kernel wanted among those seen, and take medians over the runs."""
    call = _first_that_runs(task.call, Size.FULL, options)
    assert call is not None
    with _recorded({Size.FULL: call}, options) as path:
        seen, runs = _seen(path)
    return [_entry(task.call, kernel, seen, runs, now_ns) for kernel in task.kernels]


@dataclass(frozen=True, slots=True)
class _Seen:
    """One launch of the replay: of which run, and its times in ns; a copy or a fill has the empty `Kernel`."""

    run: int
    kernel: Kernel
    dispatch_ns: int
    launch_ns: int
    active_ns: int


def _seen(path: Path) -> tuple[list[_Seen], int]:
    """Return the launches under the runs of a replay's trace, and the number of runs."""
    events = read_events(path, with_calls=True)
    calls = events.calls
    assert calls is not None
    host, activities, dispatches = link(events)
    partition = partition_host(host)
    start, end = _roots(events)
    is_run = np.zeros(len(start), dtype=bool)
    for _, begun_ns, ended_ns in _windows(events):
        is_run |= (start >= begun_ns) & (end <= ended_ns)
    start, end = start[is_run], end[is_run]
    kernel_rows = events.rows(EventKind.KERNEL)
    seen: list[_Seen] = []
    returned: dict[int, int] = {}
    for index in np.argsort(dispatches.launch_ns, kind="stable").tolist():
        at_ns = int(dispatches.launch_ns[index])
        run = int(np.searchsorted(start, at_ns, side="right")) - 1
        if run < 0 or at_ns >= end[run]:
            continue
        # exclusive, as in `taxes.spans`: a later launch of the op starts where the one before it returned, and what
        # other runtime calls take (an allocation, a query) is not the op's
        key = int(dispatches.launch_key[index])
        from_key = min(returned.get(run, key - at_ns + int(start[run])), key)
        returned[run] = int(dispatches.return_key[index])
        own = partition.between(np.array([from_key]), np.array([key]))[HostClass.DISPATCH]
        first = int(dispatches.first[index])
        kernel = Kernel()  # a copy or a fill
        if dispatches.num_kernels[index] > 0:
            first = int(dispatches.first_kernel[index])
            row = int(activities.row[first])
            kernel = calls.kernels[calls.configuration_of_kernel[np.searchsorted(kernel_rows, row)]]
            kernel = kernel.named(events.names[events.name[row]])
        seen.append(
            _Seen(
                run=run,
                kernel=kernel,
                dispatch_ns=int(own[0]),
                launch_ns=int(activities.start_ns[first]) - at_ns,
                active_ns=int(activities.end_ns[first] - activities.start_ns[first]),
            )
        )
    return seen, len(start)


def _entry(call: Call, wanted: Kernel, seen: Sequence[_Seen], runs: int, now_ns: int) -> Baseline:
    match, chosen = find(wanted, [launch.kernel for launch in seen])
    same = [launch for launch in seen if launch.kernel == chosen]
    entry = Baseline(
        signature=signature(call, wanted), op=call.op, kernel=wanted.name, outcome=Outcome.FAILED,
        reason="its kernel was not seen in its replay", measured_unix_ns=now_ns,
    )  # fmt: skip
    if match is None or not same:
        return entry

    return Baseline(
        signature=entry.signature,
        op=entry.op,
        kernel=entry.kernel,
        outcome=Outcome.MEASURED,
        dispatch=Spread.of([launch.dispatch_ns for launch in same]),
        launch=Spread.of([launch.launch_ns for launch in same]) if wanted.name else None,
        active=Spread.of([launch.active_ns for launch in same]),
        match=match,
        match_ratio=len({launch.run for launch in same}) / runs,
        measured_unix_ns=now_ns,
    )


def find(wanted: Kernel, seen: Sequence[Kernel]) -> tuple[Match | None, Kernel | None]:
    """Find a traced kernel among those a replay showed: by configuration, name, part of the name, else the commonest.

    Of several with the wanted configuration, one of the wanted name goes first. A copy or a fill, which has neither,
    is found by that.
    """
    if not wanted.name:
        return (Match.NAME, wanted) if wanted in seen else (None, None)
    seen = [kernel for kernel in seen if kernel.name]
    if not seen:
        return None, None

    def first(holds: Callable[[Kernel], bool]) -> Kernel | None:
        return next((kernel for kernel in seen if holds(kernel)), None)

    def launch(kernel: Kernel) -> tuple[Any, ...]:
        return kernel.grid, kernel.block, kernel.shared_memory, kernel.registers

    if wanted.grid:
        found = first(lambda k: k == wanted) or first(lambda k: launch(k) == launch(wanted))
        if found is not None:
            return Match.CONFIGURATION, found
    found = first(lambda k: k.name == wanted.name)
    if found is not None:
        return Match.NAME, found
    found = first(lambda k: k.name in wanted.name or wanted.name in k.name)
    if found is not None:
        return Match.SUBSTRING, found
    return Match.FREQUENT, max(seen, key=seen.count)


def _line(error: BaseException) -> str:
    if isinstance(error, TaxbreakError):
        return str(error)
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:300]
