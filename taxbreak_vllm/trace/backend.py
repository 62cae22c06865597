"""Kinds of device: what their runtimes call things, and which of them a trace is of.

In: the names of a trace's runtime calls, its metadata, what the worker that recorded it said. Out: its `Backend`. To
teach the analysis another device, add a row to `BACKENDS` (and its categories to `trace.read.kineto`, if new).
"""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

UNKNOWN = "unknown"  # the type of a device that is not understood

_NEVER = r"(?!)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """One kind of device.

    `has_launches`: work is launched to a device of its own, where it runs later; else ops compute where they are
    dispatched, so there is no launch path, no queue, and what blocks the host is its own computing (`waits_as`).
    The rest are regular expressions over names of runtime calls, tried with `search`: `launch` starts kernels or a
    graph, `graph_launch` a graph, `copy` a copy or fill, `wait` does nothing but wait, `synchronous_copy` copies and
    waits; `metadata` matches keys that only a profiler of this device writes, `call` any call of its runtime.
    """

    device_type: str
    has_launches: bool = True
    waits_as: str = "blocked"
    launch: str = _NEVER
    graph_launch: str = _NEVER
    copy: str = _NEVER
    wait: str = _NEVER
    synchronous_copy: str = _NEVER
    call: str = _NEVER
    metadata: str = _NEVER


CPU = Backend(device_type="cpu", has_launches=False, waits_as="compute")
CUDA = Backend(
    device_type="cuda",
    launch=r"^cu(?:da)?.*Launch(?!HostFunc)",
    graph_launch=r"GraphLaunch",
    copy=r"^cu(?:da)?.*Mem(?:cpy|set)",
    wait=r"Synchronize",
    synchronous_copy=r"^cu(?:da)?Memcpy(?!.*Async)",
    call=r"^cu",
)
ROCM = Backend(
    device_type="rocm",
    launch=r"^hip.*Launch(?!HostFunc)",
    copy=r"^hip.*Mem(?:cpy|set)",
    synchronous_copy=r"^hip(?:Drv)?Memcpy(?!.*Async)",
    call=r"^hip",
    metadata=r"^(?:roctracer|rocprof|hip_)",
)
# Unified Runtime, its forerunner PI and Level Zero
XPU = Backend(
    device_type="xpu",
    launch=r"^(?:ur|pi)Enqueue.*Launch|^zeCommandListAppendLaunch",
    graph_launch=r"^urEnqueueCommandBuffer|^urCommandBufferEnqueue",
    copy=r"^(?:ur|pi)Enqueue(?:USM|Mem).*(?:Memcpy|Fill|Copy|Memset)|^zeCommandListAppendMemory",
    wait=r"^(?:ur|pi)(?:EventWait|EventsWait|QueueFinish)|^ze.*Synchronize",
    call=r"^(?:ur|pi)[A-Z]|^ze[A-Z]",
)
BACKENDS = (CPU, ROCM, CUDA, XPU)  # of several that a trace shows signs of, the first is its own

_WAITS_FOR_DEVICE = re.compile(r"^(?:cuda|cu|hip)(?:Device|Ctx)Synchronize")
_FILL = re.compile(r"Memset|MemoryFill|MemFill|USMFill")
_DEVICE_TO_HOST = re.compile(r"DtoH|Device(?: Memory)? -> (?:Host|Pinned|Pageable)|D2H|DeviceToHost")


def _any(field: str) -> re.Pattern[str]:
    patterns = [getattr(backend, field) for backend in BACKENDS]
    return re.compile("|".join(f"(?:{pattern})" for pattern in patterns if pattern != _NEVER))


_LAUNCH, _GRAPH_LAUNCH, _COPY, _WAIT, _SYNCHRONOUS_COPY, _CALL = map(
    _any, ("launch", "graph_launch", "copy", "wait", "synchronous_copy", "call")
)


def is_launch(name: str) -> bool:
    """Tell by its name a call that launches kernels or a graph."""
    return _LAUNCH.search(name) is not None


def is_graph_launch(name: str) -> bool:
    """Tell by its name a call that replays a graph."""
    return _GRAPH_LAUNCH.search(name) is not None


def does_enqueue(name: str) -> bool:
    """Tell by its name a call that puts work on a device: a launch, a copy or a fill."""
    return is_launch(name) or _COPY.search(name) is not None


def is_wait(name: str) -> bool:
    """Tell by its name a call that does nothing but wait: no activity comes of it, whatever id it carries."""
    return _WAIT.search(name) is not None


def waits_for_device(name: str) -> bool:
    """Tell by its name a call in which the host waits for all that its device was given."""
    return _WAITS_FOR_DEVICE.search(name) is not None


def is_copy(name: str) -> bool:
    """Tell by its name a call that copies; a fill is none."""
    return _COPY.search(name) is not None and _FILL.search(name) is None


def is_blocking(name: str) -> bool:
    """Tell by its name a call in which the host waits."""
    return is_wait(name) or _SYNCHRONOUS_COPY.search(name) is not None


def copies_to_host(name: str) -> bool:
    """Tell by its name an activity that copies from a device to the host."""
    return _DEVICE_TO_HOST.search(name) is not None


def backend_of(
    *,
    calls: Iterable[str],
    num_activities: int,
    metadata: Mapping[str, object],
    device_type: str = "",
    unread: Collection[str] = (),
) -> Backend:
    """Return the backend of a trace with these runtime `calls`, by name, and so many device activities.

    `device_type` is that which the worker gave for its own ("": nobody did). torch calls an AMD GPU "cuda", so the
    trace decides between the two. `unread` are categories of events that nobody here understands. Ops alone, without a
    sign of any device, are the CPU backend's: a device that is not understood, or of which the trace holds nothing, is
    still a device.
    """
    names = tuple(calls)
    seen = next((b for b in BACKENDS if _is_seen(b, names, metadata)), None)
    has_device = bool(num_activities or metadata.get("deviceProperties"))
    has_device |= any(does_enqueue(name) or not _CALL.search(name) for name in names)
    is_foreign = bool(unread) or (bool(names) and not any(does_enqueue(name) or _CALL.search(name) for name in names))
    if device_type == "" and is_foreign and not seen and not num_activities:
        return Backend(device_type=UNKNOWN)
    if device_type in ("", CPU.device_type):
        return seen or CUDA if has_device else CPU
    if device_type == CUDA.device_type:
        return seen or CUDA
    return next((b for b in BACKENDS if b.device_type == device_type), Backend(device_type=device_type))


def _is_seen(backend: Backend, calls: Iterable[str], metadata: Mapping[str, object]) -> bool:
    return any(re.search(backend.metadata, key) for key in metadata) or any(
        re.search(backend.call, name) for name in calls
    )
