"""The least that a launch, a graph and a dispatch cost here (methodology sections 5 and 6), on the profiler's clock.

Runs in the child process. On a GPU the empty kernel is compiled at run time by torch's own NVRTC path
(`torch.cuda._compile_kernel`), or by Triton where torch is older than that or finds no CUDA toolkit; on the CPU backend
there is no launch.
"""

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import torch

from taxbreak_vllm.machine.processor import processor_name
from taxbreak_vllm.model.baseline import Environment, Floor, FloorKind, Floors, Spread
from taxbreak_vllm.trace.dispatches import Activities, Dispatches, find_roots, link
from taxbreak_vllm.trace.events import EventKind, Events
from taxbreak_vllm.trace.read.kineto import read_events

GRAPH_NODES = (1, 8, 64, 512)
_RUNS = 200
_GRAPH_RUNS = 50
_BATCHES, _CALLS_PER_BATCH = 21, 64
_SOURCE = 'extern "C" __global__ void taxbreak_nothing() {}'


def here(device: str) -> Environment:
    """Return the environment of this process's device."""
    if device == "cpu":
        return Environment(device_type="cpu", device_name=processor_name(), torch=str(torch.__version__))
    is_rocm = torch.version.hip is not None
    return Environment(
        device_type="rocm" if is_rocm else "cuda",
        device_name=torch.cuda.get_device_name(device),
        torch=str(torch.__version__),
        driver="" if is_rocm else str(torch._C._cuda_getDriverVersion()),
    )


def measure_floors(device: str, *, now_ns: Callable[[], int] = time.time_ns) -> Floors:
    """Measure every floor this device has; what could not be measured is named in the notes."""
    floors = [*_dispatch_floors(), Floor(kind=FloorKind.PROFILER_OP, spread=profiler_op_cost())]
    notes: list[str] = []
    source = ""
    if device == "cpu":
        notes.append("the CPU backend has no launch path, so there are no launch floors")
    else:
        try:
            launch, source = _compile_empty_kernel()
            floors += [*_launch_floors(launch), *_graph_floors(launch)]
        except Exception as error:
            notes.append(f"the launch floors could not be measured: {type(error).__name__}: {error}"[:300])
    return Floors(
        floors=tuple(floors),
        clock="kineto" if device == "cpu" else "cupti",
        kernel_source=source,
        host_cpu=processor_name(),
        governor=_governor(),
        measured_unix_ns=now_ns(),
        notes=tuple(notes),
    )


def _dispatch_floors() -> list[Floor]:
    """What an op costs that computes nothing: one registered in Python, and one of aten on no elements."""
    library = torch.library.Library("taxbreak", "FRAGMENT")
    library.define("nothing(Tensor x) -> ()")
    library.impl("nothing", lambda x: None, "CompositeExplicitAutograd")
    empty = torch.empty(0)
    python_op = torch.ops.taxbreak.nothing
    with torch.inference_mode():
        return [
            Floor(kind=FloorKind.DISPATCH, spread=_op_spread(lambda: python_op(empty))),
            Floor(kind=FloorKind.ATEN_DISPATCH, spread=_op_spread(lambda: empty.add_(empty))),
        ]


def _op_spread(call: Callable[[], object]) -> Spread:
    for _ in range(_RUNS // 4):
        call()
    events = _profile(call, _RUNS, is_gpu=False)
    ops = events.rows(EventKind.OP)
    start, end = events.start_ns[ops], events.end_ns[ops]
    order = np.lexsort((-end, start))
    start, end = find_roots(start[order], end[order])
    return Spread.of((end - start).tolist())


def profiler_op_cost(now_ns: Callable[[], int] = time.perf_counter_ns) -> Spread:
    """ε_op: what recording adds to an op, over batches with the profiler and the median without.

    The cost grows with what there is to record, so the ops are of the kinds a step has most, on no elements.
    """
    empty, aten = torch.empty(0), torch.ops.aten

    def five_ops() -> None:
        aten.slice.Tensor(empty, 0, 0, 0, 1)  # records as_strided too
        aten.add_.Tensor(empty, empty)
        aten.copy_.default(empty, empty, True)
        aten.view.default(empty, [0])

    with torch.inference_mode():
        return _profiler_cost(five_ops, ops=5, is_gpu=False, now_ns=now_ns)


def _profiler_cost(call: Callable[[], object], *, ops: int, is_gpu: bool, now_ns: Callable[[], int]) -> Spread:
    """The cost per op of a call that records `ops` of them, or per launch."""

    def batches() -> list[float]:
        times_ns = []
        for _ in range(_BATCHES):
            begun_ns = now_ns()
            for _ in range(_CALLS_PER_BATCH):
                call()
            times_ns.append((now_ns() - begun_ns) / (_CALLS_PER_BATCH * ops))
            if is_gpu:
                torch.cuda.synchronize()
        return times_ns

    batches()
    plain_ns = batches()
    with torch.profiler.profile(activities=_activities(is_gpu=is_gpu), record_shapes=True):
        recorded_ns = batches()
    plain_ns += batches()
    middle_ns = median(plain_ns)
    return Spread.of([max(0.0, recorded - middle_ns) for recorded in recorded_ns])


def _compile_empty_kernel() -> tuple[Callable[[], object], str]:
    """Return a call that launches a kernel that does nothing, and what compiled it."""
    try:
        kernel = torch.cuda._compile_kernel(_SOURCE, "taxbreak_nothing")
        return lambda: kernel(grid=(1, 1, 1), block=(1, 1, 1)), "NVRTC through torch.cuda._compile_kernel"
    except (AttributeError, OSError, RuntimeError):
        # OSError where CUDA_HOME is not set, though nothing is included from there
        return _triton_kernel(), "Triton"


def _triton_kernel() -> Callable[[], object]:
    import triton

    @triton.jit  # type: ignore[untyped-decorator, unused-ignore]
    def taxbreak_nothing() -> None:
        pass

    return lambda: taxbreak_nothing[(1,)]()


def _launch_floors(launch: Callable[[], object]) -> list[Floor]:
    """T_sys: from the launch call to the start of a kernel that does nothing, on an idle device; and ε_launch."""
    for _ in range(_RUNS // 4):
        launch()
    torch.cuda.synchronize()
    _, activities, dispatches = link(_profile(launch, _RUNS, is_gpu=True))
    has_kernel = dispatches.first_kernel >= 0
    latency_ns = activities.start_ns[dispatches.first_kernel[has_kernel]] - dispatches.launch_ns[has_kernel]
    return [
        Floor(kind=FloorKind.KERNEL, spread=Spread.of(latency_ns.tolist()), nodes=1),
        Floor(
            kind=FloorKind.PROFILER_LAUNCH,
            spread=_profiler_cost(launch, ops=1, is_gpu=True, now_ns=time.perf_counter_ns),
        ),
    ]


def shortest_kernel_ns() -> int | None:
    """Return how long the device is at work on a kernel that does nothing; None where none can be compiled here."""
    try:
        launch, _ = _compile_empty_kernel()
        launch()
        torch.cuda.synchronize()
        _, activities, _ = link(_profile(launch, _GRAPH_RUNS, is_gpu=True))
    except Exception:  # the floors, which need the same kernel, say why
        return None
    length_ns = (activities.end_ns - activities.start_ns)[activities.is_kernel]
    return int(length_ns.min()) if len(length_ns) else None


def _graph_floors(launch: Callable[[], object]) -> list[Floor]:
    """T_sys_graph(n): from the launch call to the end of the last of n empty nodes, less the time they run."""
    floors = []
    for nodes in GRAPH_NODES:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(nodes):
                launch()
        for _ in range(5):
            graph.replay()
        torch.cuda.synchronize()
        _, activities, dispatches = link(_profile(graph.replay, _GRAPH_RUNS, is_gpu=True))
        latency_ns = _graph_latencies(activities, dispatches, nodes)
        if latency_ns:
            floors.append(Floor(kind=FloorKind.GRAPH, nodes=nodes, spread=Spread.of(latency_ns)))
    return floors


def _graph_latencies(activities: Activities, dispatches: Dispatches, nodes: int) -> list[int]:
    # by the call: with one node, what torch launches to seed the generator of a graph looks alike
    whole = dispatches.is_graph & (dispatches.num_activities == nodes)
    latency_ns = []
    for index in np.flatnonzero(whole).tolist():
        own = activities.dispatch == index
        start_ns, end_ns = activities.start_ns[own], activities.end_ns[own]
        latency_ns.append(int(end_ns.max() - dispatches.launch_ns[index] - (end_ns - start_ns).sum()))
    return latency_ns


def _profile(call: Callable[[], object], runs: int, *, is_gpu: bool) -> Events:
    """Record the runs of a call, each alone on the device."""
    with TemporaryDirectory(prefix="taxbreak-floors-") as folder:
        with torch.profiler.profile(activities=_activities(is_gpu=is_gpu), record_shapes=True) as profile:
            for _ in range(runs):
                call()
                if is_gpu:
                    torch.cuda.synchronize()
        path = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(path))
        return read_events(path)


def _activities(*, is_gpu: bool) -> list[torch.profiler.ProfilerActivity]:
    cpu, gpu = torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA
    return [cpu, gpu] if is_gpu else [cpu]


def _governor() -> str:
    """The frequency governor of the first core; empty where the machine doesn't say, as a virtual one."""
    try:
        return Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").read_text().strip()
    except OSError:
        return ""
