"""Servers of the rig whose batch grows, and the size from which on their device decides, by their making.

A step launches `NUM` kernels, each after `HOST_NS` of the host. A kernel takes `base_ns`, and `each_ns` a request;
between two is a gap. So the host decides as long as a kernel and its gap take less than `HOST_NS`: `knee` is the
smallest batch at which they take as long.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from random import Random

from rig.program import Graph, Kernel, Op, Server, Step, Work
from rig.servers import tokens_later, tokens_now

NUM, HOST_NS = 24, 20_000
PYTHON_NS, DISPATCH_NS, CALL_NS, FLOOR_NS = 8_000, 7_000, 5_000, 7_000
MIDDLE = 2  # the step to be recorded, of five


@dataclass(frozen=True, slots=True, kw_only=True)
class Batches:
    """A server under any batch; `noise` is by what share kernels and host work of a step differ by chance."""

    base_ns: int = 2_000
    each_ns: int = 1_000
    steps_ahead: int = 1
    noise: float = 0.0
    gap_ns: int = 1_000

    @property
    def knee(self) -> int:
        """The smallest batch whose kernels take as long as the host between two of them."""
        return -(-(HOST_NS - self.gap_ns - self.base_ns) // self.each_ns)

    @property
    def balance(self) -> int:
        """The smallest batch whose kernels take as long as what leads up to them: HDBI is one half there."""
        return -(-(PYTHON_NS + DISPATCH_NS + FLOOR_NS - self.base_ns) // self.each_ns)

    def server(self, batch: int, random: Random | None = None) -> Server:
        """Return the server under a batch."""
        steps = tuple(self._step(batch, random) for _ in range(5))
        return Server(
            steps=steps, steps_ahead=self.steps_ahead, gap_ns=self.gap_ns, engine_ns=100_000, floor_ns=FLOOR_NS
        )

    def _step(self, batch: int, random: Random | None) -> Step:
        kernels, hosts = (1.0 if random is None else random.uniform(1 - self.noise, 1 + self.noise) for _ in range(2))

        def some(ns: int) -> int:  # kernels of a model differ
            return round(ns * (1.0 if random is None else random.uniform(1 - self.noise, 1 + self.noise)))

        def items() -> Iterator[Work | Op]:
            for _ in range(NUM):
                kernel = Kernel(some(round((self.base_ns + self.each_ns * batch) * kernels)), CALL_NS)
                yield Work(some(round(PYTHON_NS * hosts)))
                yield Op("aten::add", (Work(round(DISPATCH_NS * hosts)), kernel))

        return Step(tuple(items()), (*(tokens_later() if self.steps_ahead else tokens_now()), Work(PYTHON_NS)))


def in_graphs(batches: Batches, batch: int) -> Server:
    """Return the server with its kernels in one graph a step, and the host's time before its launch."""
    server = replace(batches.server(batch), engine_ns=20_000, output_ns=5_000)
    nodes = tuple(batches.base_ns + batches.each_ns * batch for _ in range(NUM))
    others_ns = server.engine_ns + server.output_ns + server.wait_call_ns + 4 * 2_000  # after the graph, and between
    host_ns = NUM * HOST_NS - others_ns - CALL_NS
    step = Step((Work(host_ns), Graph(nodes, CALL_NS, first_ns=CALL_NS + server.latency_ns)), tokens_later())
    return replace(server, steps=(step,) * 5, node_gap_ns=batches.gap_ns, has_output_thread=False)


def neighbours(sizes: Iterable[int], knee: int) -> tuple[int | None, int | None]:
    """Return the largest of the sizes below a knee, and the smallest from it on."""
    below = [size for size in sizes if size < knee]
    above = [size for size in sizes if size >= knee]
    return max(below, default=None), min(above, default=None)
