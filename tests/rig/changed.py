"""A server with a change made to it: what a prediction from its recording is compared with."""

from dataclasses import replace

from rig.program import Call, Copy, Graph, Item, Kernel, Op, Record, Server, Step, Synchronize, Wait, Work


def changed(server: Server, *, host: float = 1.0, kernels: float = 1.0) -> Server:
    """Return the server with all its host work, and all its kernels but collectives, that much longer.

    Its peers are changed alike, so that no collective waits for them.
    """

    def item(it: Item) -> Item:
        match it:
            case Op():
                return replace(it, body=tuple(map(item, it.body)))
            case Work() | Call():
                return replace(it, ns=round(it.ns * host))
            case Kernel():
                if it.peer_ns is not None:
                    return replace(it, call_ns=round(it.call_ns * host), peer_ns=0)
                return replace(it, ns=round(it.ns * kernels), call_ns=round(it.call_ns * host))
            case Graph():
                call_ns = round(it.call_ns * host)
                nodes = tuple(round(ns * kernels) for ns in it.node_ns)
                return replace(it, node_ns=nodes, call_ns=call_ns, first_ns=it.first_ns + call_ns - it.call_ns)
            case Copy() | Record() | Wait() | Synchronize():
                return replace(it, call_ns=round(it.call_ns * host))

    def step(it: Step) -> Step:
        return replace(
            it,
            execute=tuple(map(item, it.execute)),
            sample=tuple(map(item, it.sample)),
            gap_ns=round(it.gap_ns * host),
        )

    return replace(
        server,
        steps=tuple(map(step, server.steps)),
        engine_ns=round(server.engine_ns * host),
        output_ns=round(server.output_ns * host),
        wait_call_ns=round(server.wait_call_ns * host),
    )
