"""Servers to run: some made by hand, whose figures can be checked by eye, and random ones, one for each seed."""

from collections.abc import Iterator
from dataclasses import replace
from random import Random

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

GEMM = "ampere_sgemm_128x64_tn"


def tokens_later(ns: int = 2_000, call_ns: int = 2_000) -> tuple[Item, ...]:
    """Copy the step's tokens to the host on a stream of their own; somebody waits for them after the step."""
    return (
        Record("forward", call_ns),
        Wait("forward", call_ns, COPIES),
        Copy(ns, call_ns, to_host=True, stream=COPIES),
        Record(TOKENS, call_ns, COPIES),
    )


def tokens_now(ns: int = 2_000, call_ns: int = 2_000) -> tuple[Item, ...]:
    """Copy the step's tokens to the host and wait for them."""
    return (Copy(ns, call_ns, to_host=True, blocks=True),)


def device_bound(steps: int = 8) -> Server:
    """Return a server with 20 ms of device work and 4 ms of host work a step, under async scheduling: HDBI 0.85.

    200 kernels of 100 µs, one right after the other, and a copy of 2 µs. Before each kernel 5,300 ns of python, 5,000
    of dispatch and a floor of 7,349: 20,002 / (20,002 + 200 · 17.649) µs.
    """
    op = Op("aten::add", (Work(5_000), Kernel(100_000, 5_000), Work(4_600)))
    step = Step((Work(5_300), op) * 200, (*tokens_later(), Work(12_000)))
    return Server(steps=(step,) * steps, latency_ns=2_349, gap_ns=0, floor_ns=7_349)


def host_bound(steps: int = 8) -> Server:
    """Return a server whose device waits for the host, under async scheduling: exposed tax 4.04 ms a step.

    200 kernels of 4 µs, 31,185 ns from call to call. A kernel begins 7 µs after its call began, so before the next call
    the device waits 20,185 ns; once a step it waits 3 µs more, while the host copies tokens, less the copy's own time.
    """
    op = Op("aten::add", (Work(8_000), Kernel(4_000, 5_000), Work(1_000)))
    step = Step((Work(17_185), op) * 200, tokens_later())
    return Server(steps=(step,) * steps, engine_ns=100_000, floor_ns=7_000)


def full_queue(steps: int = 4) -> Server:
    """Return a server whose launch calls wait for the device, 1,100 kernels of 20 µs a step launched in 6 µs each."""
    step = Step((Work(1_000), Op("aten::add", (Work(2_000), Kernel(20_000, 3_000)))) * 1_100, tokens_later())
    return Server(steps=(step,) * steps)


def profiled(server: Server, first: int, last: int, *, start_ns: int = 1_000_000, stop_ns: int = 3_000_000) -> Server:
    """Return the server with a profiler started before step `first` and stopped after `last`, which take that long.

    Stopping it waits for the device.
    """
    steps = list(server.steps)
    steps[first] = replace(steps[first], before_ns=start_ns)
    steps[last] = replace(steps[last], after=(Synchronize(2_000), Work(stop_ns)))
    return replace(server, steps=tuple(steps))


def random_server(seed: int) -> Server:
    """Return a server as they may be: eager, in graphs or both, host-bound or not, async or not, with peers or not."""
    return _Draw(Random(seed)).server()


def polled(server: Server, seed: int) -> Server:
    """Return the server with nobody waiting for an event in a call: it is asked for until it has passed.

    Half of them ask for other events too, which have passed, as an allocator does within ops.
    """
    random = Random(seed)
    pause_ns = int(2_000 * 20 ** random.random())
    asks = random.random() < 0.5

    def item(it: Item) -> Item:
        if isinstance(it, Synchronize) and it.event is not None:
            return Poll(it.call_ns, it.event, pause_ns)
        if isinstance(it, Op):
            body = tuple(map(item, it.body))
            asked = asks and random.random() < 0.3
            return replace(
                it, body=(Call(500, "cudaEventQuery"), Call(500, "cudaEventQuery"), *body) if asked else body
            )
        return it

    steps = (
        replace(step, execute=tuple(map(item, step.execute)), sample=tuple(map(item, step.sample)))
        for step in server.steps
    )
    return replace(server, steps=tuple(steps), pause_ns=pause_ns)


class _Draw:
    """Draws a server's traits once, then its steps by them."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._kernel_ns = self._about(2_000, 100_000)
        self._python_ns = self._about(500, 30_000)
        self._dispatch_ns = self._about(1_000, 20_000)  # of every op: T_base tells it from a library's front-end
        self._library_ns = self._about(500, 20_000)
        self._call_ns = self._about(2_000, 10_000)
        self._mode = random.choice(("eager", "graph", "piecewise"))
        self._has_peers = random.random() < 0.3
        self._has_side_stream = random.random() < 0.3
        self._has_gap = random.random() < 0.3
        self._has_waits = random.random() < 0.2

    def server(self) -> Server:
        random = self._random
        steps_ahead = random.choice((0, 1, 1))
        latency_ns = random.randint(1_000, 4_000)
        kinds = random.choice((("same",), ("same",), ("long", "same"), ("same", "idle")))
        size = random.randint(3, 14)
        steps = tuple(
            self._step(
                {"same": size, "long": 2 * size, "idle": 0}[random.choice(kinds)],
                is_async=steps_ahead > 0,
            )
            for _ in range(random.randint(5, 7))
        )
        return Server(
            steps=steps,
            steps_ahead=steps_ahead,
            has_output_thread=random.random() < 0.5,
            engine_ns=self._about(20_000, 2_000_000),
            output_ns=self._about(10_000, 200_000),
            latency_ns=latency_ns,
            gap_ns=random.randint(0, 2_000),
            node_gap_ns=random.randint(0, 1_500),
            return_ns=self._about(1_000, 40_000),
            floor_ns=self._call_ns + latency_ns,
        )

    def _step(self, size: int, *, is_async: bool) -> Step:
        execute = tuple(self._forward(size))
        sample = (self._work(), self._op("aten::argmax", self._kernel()), self._work())
        later = is_async or self._random.random() < 0.3
        copy_ns = self._random.randint(1_000, 5_000)
        sample += tokens_later(copy_ns) if later else tokens_now(copy_ns)
        if later and not is_async:
            sample += (Synchronize(2_000, TOKENS),)
        gap_ns = self._about(10_000, 500_000) if self._has_gap else 0
        return Step(execute, (*sample, self._work()), gap_ns)

    def _forward(self, size: int) -> Iterator[Item]:
        random = self._random
        yield self._work()
        for _ in range(random.randint(1, 3)):
            yield Op("aten::copy_", (Work(self._dispatch_ns), Copy(random.randint(1_000, 3_000), self._call_ns)))
            yield self._work()
        if self._mode == "graph":
            yield self._graph(8 * size + 1)
            return
        for number in range(size):
            yield self._work()
            if self._mode == "piecewise" and number % 3:
                yield self._graph(random.randint(2, 16))
            else:
                yield from self._layer(number)

    def _layer(self, number: int) -> Iterator[Item]:
        random = self._random
        kind = random.choice(("add", "add", "mm", "two", "malloc"))
        if self._has_peers and number % 4 == 3:
            peer_ns = random.randint(0, 40 * (self._kernel_ns + self._python_ns))
            yield self._op("vllm::all_reduce", self._kernel("ncclDevKernel_AllReduce_Sum", peer_ns=peer_ns))
        elif self._has_side_stream and number % 5 == 4:
            yield Record("fork", 1_500)
            yield Wait("fork", 1_500, COPIES + 1)
            yield self._op("aten::mul", self._kernel(stream=COPIES + 1))
            yield self._op("aten::add", self._kernel())
            yield Record("join", 1_500, COPIES + 1)
            yield Wait("join", 1_500)
        elif self._has_waits and number % 4 == 2:
            copy = Copy(random.randint(1_000, 3_000), self._call_ns, to_host=True, blocks=True)
            yield Op("aten::item", (Work(self._dispatch_ns), copy)) if random.random() < 0.5 else Synchronize(1_500)
        elif kind == "mm":
            inner = (Work(self._dispatch_ns), Work(self._library_ns, is_library=True), self._kernel(GEMM))
            yield Op("aten::linear", (Op("aten::mm", inner), self._work()))
        elif kind == "two":
            yield Op(
                "aten::softmax", (*self._op("aten::exp", self._kernel()).body, Work(self._dispatch_ns), self._kernel())
            )
        else:
            if kind == "malloc":
                yield Call(self._about(1_000, 50_000))
            yield self._op("aten::add", self._kernel())

    def _op(self, name: str, launch: Item) -> Op:
        return Op(name, (Work(self._dispatch_ns), launch, self._work()))

    def _kernel(self, name: str = "vectorized_elementwise_kernel", **how: int) -> Kernel:
        return Kernel(self._near(self._kernel_ns), self._near(self._call_ns), name, **how)

    def _graph(self, size: int) -> Graph:
        nodes = tuple(self._near(self._kernel_ns) for _ in range(size))
        call_ns = self._call_ns + 400 * size
        return Graph(nodes, call_ns, first_ns=self._random.randint(self._call_ns, call_ns + 2_000), graph_id=size)

    def _work(self) -> Work:
        return Work(self._near(self._python_ns))

    def _near(self, ns: int) -> int:
        return int(ns * self._random.uniform(0.7, 1.3))

    def _about(self, low_ns: int, high_ns: int) -> int:
        return int(low_ns * (high_ns / low_ns) ** self._random.random())
