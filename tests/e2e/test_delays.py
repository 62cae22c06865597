"""A server that is slow at one of several places: the account of the whole server names the place, and by how much."""

from collections import Counter

import pytest
from rig.knobs import Knob, Knobs
from rig.plugins import python_path
from rig.slow_places import PLACES

from taxbreak_vllm.demo.load import Requests, send
from taxbreak_vllm.demo.servers import WORKER_EXTENSION, start_vllm
from taxbreak_vllm.model.engine import Between, EnginePart
from taxbreak_vllm.model.frontend import Stage
from taxbreak_vllm.model.step import Phase
from taxbreak_vllm.spool.spool import Spool

pytestmark = [pytest.mark.e2e, pytest.mark.nightly, pytest.mark.timeout(900)]

DELAY_NS = 2_000_000
ONE_BY_ONE = Requests(num_requests=16, prompt_tokens=8, output_tokens=48, concurrency=1)

OF_ITERATION = {
    Knob.SCHEDULE: EnginePart.SCHEDULE,
    Knob.GRAMMAR: "busy grammar",  # beside the worker's step, which hides it
    Knob.UPDATE: EnginePart.UPDATE,
    Knob.POST: EnginePart.POST,
    Knob.IPC: Between.IPC_DISPATCH,
    Knob.WORKER: "worker",
}
OF_REQUEST = {
    Knob.TOKENIZER: Stage.RENDER,
    Knob.OUTPUT_THREAD: Stage.IPC_OUTPUT,
    Knob.DETOKENIZER: Stage.DETOKENIZE,
}


class SlowServer:
    """A server that can be made slow, and means of what it publishes about itself."""

    def __init__(self, server, spool: Spool, knobs: Knobs) -> None:
        self._server = server
        self._spool = spool
        self._knobs = knobs
        self._seed = 0

    def means(self, **delays_ns: int):
        """Return the mean of each part of a decode iteration and of each stage of a request, ns, while it is slow."""
        self._knobs.turn(**delays_ns)
        before = self._count(self._spent())
        after = self._count(before)
        return {
            key: (total - before[key]) / (after[_number(key)] - before[_number(key)])
            for key, total in after.items()
            if not isinstance(key, tuple)
        }

    def _count(self, before):
        """Send requests and return the sums once most of them are in."""
        self._seed += 1
        send(self._server.url, "tiny-llama", seed=self._seed, rounds=(ONE_BY_ONE,))
        num = ONE_BY_ONE.num_requests
        wanted = {("num", "iteration"): num * (ONE_BY_ONE.output_tokens - 2), ("num", "request"): num}
        self._server.process.wait_until(
            lambda: all(self._spent()[key] - before[key] >= value for key, value in wanted.items()),
            "done with counting its iterations and requests",
            timeout_s=60,
        )
        return self._spent()

    def _spent(self):
        spent = Counter()
        for engine in self._spool.engine_states():
            spent[("num", "turn")] += engine.num_iterations
            spent.update({f"busy {part}": value for part, value in engine.busy_ns.items()})
            sums = engine.phases.get(Phase.DECODE)
            if sums is not None:
                spent.update({("num", "iteration"): sums.num, "worker": sums.worker_ns})
                spent.update(sums.exposed_ns)
                spent.update(sums.between_ns)
        for api in self._spool.frontend_states():
            spent[("num", "request")] += api.total.num
            spent.update({stage: histogram.sum_ns for stage, histogram in api.stages.items()})
        return spent


def _number(key):
    return ("num", "request" if isinstance(key, Stage) else "turn" if key.startswith("busy ") else "iteration")


@pytest.fixture(scope="module")
def slow_server(commands, tiny_llama):
    path = commands.folder / "knobs"
    knobs = Knobs(path)
    env = {
        "PYTHONPATH": python_path(commands.folder / "plugins"),
        "SLOW_PLACES": str(path),
        "VLLM_PLUGINS": "taxbreak,slow_places",
        "TAXBREAK_SPOOL": str(commands.folder / "spool"),
        "TAXBREAK_SAMPLE_EVERY": "1000000",  # a recorded step is a slow one
        "OMP_NUM_THREADS": "1",  # a thread that waits for its like takes the time of others
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }
    server = start_vllm(commands, tiny_llama, flags=WORKER_EXTENSION, env=env).wait()
    return SlowServer(server, Spool(commands.folder / "spool", max_bytes=2**30, max_captures=10), knobs)


def test_every_place_has_a_part_of_its_own():
    assert PLACES.keys() == OF_ITERATION.keys() | OF_REQUEST.keys()


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.name.lower())
def test_a_delay_is_found_where_it_was_put(slow_server, place):
    """Within a tenth; a busy machine adds to any part, so it is given three tries."""
    part = OF_ITERATION.get(place) or OF_REQUEST[place]
    tried = []
    for _ in range(3):
        plain, slow = slow_server.means(), slow_server.means(**{place.name.lower(): DELAY_NS})
        tried.append({str(key): round(slow[key] - plain[key]) for key in slow if _number(key) == _number(part)})
        if abs(tried[-1][part] - DELAY_NS) <= 0.1 * DELAY_NS:
            return
    pytest.fail(f"{part}: {tried}")
