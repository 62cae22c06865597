"""A server with a change made to it: what a prediction from its recording is compared with."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from rig.program import (
    COPIES,
    TOKENS,
    Call,
    Copy,
    Graph,
    Item,
    Kernel,
    Op,
    Poll,
    Record,
    Server,
    Step,
    Synchronize,
    Wait,
    Work,
)
from taxbreak_vllm.trace.kernels import Family
from taxbreak_vllm.trace.timeline import HostClass

FAMILY = {"vectorized_elementwise_kernel": Family.ELEMENTWISE, "ampere_sgemm_128x64_tn": Family.GEMM}


def changed(
    server: Server,
    *,
    host: float | Mapping[HostClass, float] = 1.0,
    kernels: float | Mapping[Family, float] = 1.0,
) -> Server:
    """Return the server with its host work, and its kernels but collectives, that much longer, by class and family.

    Its peers are changed alike, so that no collective waits for them.
    """
    times = (
        dict.fromkeys(HostClass, host) if isinstance(host, int | float) else {**dict.fromkeys(HostClass, 1.0), **host}
    )

    def took(cls: HostClass, ns: int) -> int:
        return round(ns * times[cls])

    def ran(family: Family, ns: int) -> int:
        return round(ns * (kernels if isinstance(kernels, int | float) else kernels.get(family, 1.0)))

    def item(it: Item, *, in_op: bool) -> Item:
        match it:
            case Op():
                return replace(it, body=tuple(item(each, in_op=True) for each in it.body))
            case Work():
                cls = HostClass.LIBRARY if it.is_library else HostClass.DISPATCH
                return replace(it, ns=took(cls if in_op else HostClass.PYTHON, it.ns))
            case Call():
                return replace(it, ns=took(HostClass.RUNTIME, it.ns))
            case Kernel():
                call_ns = took(HostClass.LAUNCH, it.call_ns)
                if it.peer_ns is not None:
                    return replace(it, call_ns=call_ns, peer_ns=0)
                return replace(it, ns=ran(FAMILY[it.name], it.ns), call_ns=call_ns)
            case Graph():
                call_ns = took(HostClass.LAUNCH, it.call_ns)
                nodes = tuple(ran(Family.OTHER, ns) for ns in it.node_ns)
                return replace(it, node_ns=nodes, call_ns=call_ns, first_ns=it.first_ns + call_ns - it.call_ns)
            case Copy() | Record() | Wait() | Synchronize():
                return replace(it, call_ns=took(HostClass.RUNTIME, it.call_ns))
            case Poll():
                call_ns, pause_ns = took(HostClass.RUNTIME, it.call_ns), took(HostClass.PYTHON, it.pause_ns)
                return replace(it, call_ns=call_ns, pause_ns=pause_ns)

    def step(it: Step) -> Step:
        return replace(
            it,
            execute=tuple(item(each, in_op=False) for each in it.execute),
            sample=tuple(item(each, in_op=False) for each in it.sample),
            gap_ns=took(HostClass.PYTHON, it.gap_ns),
        )

    return replace(
        server,
        steps=tuple(map(step, server.steps)),
        engine_ns=took(HostClass.PYTHON, server.engine_ns),
        output_ns=took(HostClass.PYTHON, server.output_ns),
        wait_call_ns=took(HostClass.RUNTIME, server.wait_call_ns),
        pause_ns=None if server.pause_ns is None else took(HostClass.PYTHON, server.pause_ns),
    )


def recorded(server: Server, *, op_ns: int, call_ns: int) -> Server:
    """Return the server as a profiler slows it that takes so long for each op and each call that it records."""

    def item(it: Item) -> Item:
        match it:
            case Op():
                return replace(it, body=(Work(op_ns), *map(item, it.body)))
            case Work():
                return it
            case Call():
                return replace(it, ns=it.ns + call_ns)
            case Graph():
                return replace(it, call_ns=it.call_ns + call_ns, first_ns=it.first_ns + call_ns)
            case Kernel() | Copy() | Record() | Wait() | Synchronize() | Poll():
                return replace(it, call_ns=it.call_ns + call_ns)

    steps = (
        replace(step, execute=tuple(map(item, step.execute)), sample=tuple(map(item, step.sample)))
        for step in server.steps
    )
    return replace(server, steps=tuple(steps), wait_call_ns=server.wait_call_ns + call_ns)


def with_floor(server: Server, floor_ns: int) -> Server:
    """Return the server on a device whose kernels, launched one by one, begin later by what T_sys is longer."""
    return replace(
        server,
        floor_ns=floor_ns,
        latency_ns=server.latency_ns + floor_ns - server.floor_ns,
        copy_latency_ns=server.latency_ns,
    )


def without_device_sync(server: Server) -> Server:
    """Return the server with nobody waiting for the whole device any more; the calls are made all the same."""

    def unwaited(it: Item) -> Item:
        return Call(it.call_ns) if isinstance(it, Synchronize) and it.event is None else it

    return each_item(server, unwaited)


def one_step_ahead(server: Server) -> Server:
    """Return a server that waited for each step's tokens waiting at the same place for those of the step before."""
    return replace(
        server, steps=tuple(replace(step, sample=_ahead(step.sample, n)) for n, step in enumerate(server.steps))
    )


def _ahead(sample: Sequence[Item], number: int) -> tuple[Item, ...]:
    """Let the last wait of a step be for the event that the step before recorded there."""
    waits = (
        n for n, it in enumerate(sample) if isinstance(it, Synchronize | Poll) or (isinstance(it, Copy) and it.blocks)
    )
    last = max(waits)
    it, ahead = sample[last], Synchronize(0, f"{TOKENS}.{number - 1}")
    if isinstance(it, Copy):
        instead = (replace(it, blocks=False), Record(f"{TOKENS}.{number}", 0, it.stream), ahead)
    elif isinstance(it, Poll):
        instead = (Record(f"{TOKENS}.{number}", 0, COPIES), replace(it, event=f"{TOKENS}.{number - 1}"))
    else:
        instead = (Record(f"{TOKENS}.{number}", 0, COPIES), replace(ahead, call_ns=it.call_ns))
    return (*sample[:last], *instead, *sample[last + 1 :])


def each_item(server: Server, change: Callable[[Item], Item]) -> Server:
    def item(it: Item) -> Item:
        return replace(it, body=tuple(map(item, it.body))) if isinstance(it, Op) else change(it)

    return replace(
        server,
        steps=tuple(
            replace(step, execute=tuple(map(item, step.execute)), sample=tuple(map(item, step.sample)))
            for step in server.steps
        ),
    )
