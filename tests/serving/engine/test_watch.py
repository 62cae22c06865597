"""What an engine publishes adds up, turn by turn, and is there for the sidecar to read."""

import struct
import time
from types import SimpleNamespace

import pytest

from taxbreak_vllm.iterations.rows import UNKNOWN
from taxbreak_vllm.model.engine import Between, EngineState
from taxbreak_vllm.model.step import PHASES, Phase
from taxbreak_vllm.serving.engine.watch import LoopWatch
from taxbreak_vllm.settings import load_settings
from taxbreak_vllm.spool.spool import Spool
from tests.serving.engine.test_hooks import Engine


class TimedEngine(Engine):
    """One whose worker takes its time in the engine's own thread."""

    def __init__(self):
        super().__init__(worker=self._times)
        self.phase = PHASES.index(Phase.DECODE)

    def _execute(self, scheduled, non_block=False):
        self.begun = time.monotonic_ns()
        future = super()._execute(scheduled, non_block)
        self.ended = time.monotonic_ns()
        return future

    def _times(self, number):
        now = time.monotonic_ns()
        return "server", number, self.begun, self.ended, now, time.monotonic_ns(), self.phase, UNKNOWN, UNKNOWN


@pytest.fixture
def spool(tmp_path):
    return Spool(tmp_path / "spool", max_bytes=2**20, max_captures=10)


def watching(spool, *, kind=TimedEngine, engine="0", **members):
    state = EngineState(engine=engine, model_name="m", **members)
    engine = kind()
    watch = LoopWatch(engine, spool, state, load_settings())
    watch._hooks.attach()
    return engine, watch


def test_the_sums_are_those_of_all_turns_however_they_are_counted(spool):
    engine, watch = watching(spool)
    for batch in (1, 7, 2, 50):
        for _ in range(batch):
            engine.turn()
        watch.turn()

    (state,) = spool.engine_states()
    assert (state.server_id, state.engine, state.num_iterations) == ("server", "0", 59)
    assert state.iterations_ns == state.worker_ns + sum(state.exposed_ns.values()) + sum(state.between_ns.values())
    assert min(*state.exposed_ns.values(), *state.busy_ns.values()) >= 0
    assert (state.num_unjoined, state.num_lost, state.off_reason) == (0, 0, None)


def test_the_sums_are_told_phase_by_phase(spool):
    engine, watch = watching(spool)
    for phase in (Phase.PREFILL, Phase.DECODE, Phase.DECODE, Phase.DECODE):
        engine.phase = PHASES.index(phase)
        engine.turn()
    watch.turn()

    (state,) = spool.engine_states()
    assert {phase: sums.num for phase, sums in state.phases.items()} == {Phase.PREFILL: 1, Phase.DECODE: 2}
    assert sum(sums.total_ns for sums in state.phases.values()) == state.iterations_ns


def test_of_an_engine_that_works_ahead_nothing_is_called_exposed(spool):
    engine, watch = watching(spool, works_ahead=True)
    for _ in range(10):
        engine.turn()
    watch.turn()

    (state,) = spool.engine_states()
    assert state.num_iterations == 9
    assert (state.exposed_ns, state.between_ns) == ({}, {})
    assert state.busy_ns


def test_a_fault_is_published_and_the_sums_stay(spool):
    engine, watch = watching(spool)
    for _ in range(10):
        engine.turn()
    watch.turn()
    engine.worker = lambda number: 5
    engine.turn()
    watch.turn()

    (state,) = spool.engine_states()
    assert state.off_reason == "hook"
    assert state.num_iterations == 9


class WaitingEngine(TimedEngine):
    """One that has no request before each turn."""

    def _process_input_queue(self):
        self.input_queue.put("a request")
        self.input_queue.get()


class Queueing(TimedEngine):
    """An engine with a scheduler whose requests wait in a queue."""

    def __init__(self):
        super().__init__()
        schedule = self.scheduler.schedule
        self.scheduler.schedule = lambda: SimpleNamespace(**vars(schedule()), scheduled_new_reqs=())
        self.scheduler.add_request = lambda request: None
        self.scheduler.waiting = SimpleNamespace(peek_request=lambda: None)
        self.scheduler.kv_cache_manager = SimpleNamespace(allocate_slots=lambda request: None)
        self.scheduler._try_schedule_encoder_inputs = lambda request: None


@pytest.mark.parametrize(("kind", "reason"), [(TimedEngine, "scheduler"), (Queueing, None)])
def test_an_engine_whose_scheduler_is_another_says_so_and_is_timed_all_the_same(spool, kind, reason):
    engine, watch = watching(spool, kind=kind)
    for _ in range(5):
        engine.turn()
    watch.turn()

    (state,) = spool.engine_states()
    assert (state.queue_off_reason, state.off_reason, state.num_iterations) == (reason, None, 4)


def test_a_fault_in_what_tells_the_requests_waits_is_published_and_the_loop_is_timed_on(spool):
    engine, watch = watching(spool, kind=Queueing)
    engine.turn()
    engine.scheduler.add_request(SimpleNamespace())  # which is not as vLLM's are
    for _ in range(4):
        engine.turn()
    watch.turn()

    (state,) = spool.engine_states()
    assert (state.queue_off_reason, state.off_reason, state.num_iterations) == ("hook", None, 4)


@pytest.mark.parametrize("num_turns", [1, 3])
def test_an_idle_engine_reads_no_requests_on_their_way(spool, num_turns, monkeypatch):
    engine, watch = watching(spool)
    for _ in range(3):
        engine.turn()
    watch.turn()
    watch.turn()  # what was held back
    read = []
    monkeypatch.setattr("taxbreak_vllm.serving.engine.watch.read_arrivals", read.append)
    for _ in range(num_turns):
        watch.turn()

    assert not read
    assert watch.state.num_iterations == 2


@pytest.mark.parametrize(
    ("engine_of_request", "cause"),
    [(-1, Between.FRONTEND), (3, Between.FRONTEND), (2, Between.NO_WORK)],
    ids=["not known yet", "its own", "another's"],
)
def test_what_an_engine_waits_for_is_told_by_the_api_servers(spool, engine_of_request, cause):
    engine, watch = watching(spool, kind=WaitingEngine, engine="3")
    folder = spool.api_dir("server", "0")
    folder.mkdir(parents=True)
    sent_ns = 0 if engine_of_request < 0 else time.monotonic_ns() + 3600 * 10**9
    (folder / "arrivals").write_bytes(struct.pack("=4q", 1, sent_ns, engine_of_request, 0))
    for _ in range(3):
        engine.turn()
    watch.turn()

    (state,) = spool.engine_states()
    waits = {label: ns for label, ns in state.between_ns.items() if not label.startswith("ipc_")}
    assert {label for label, ns in waits.items() if ns} == {cause}


def test_no_work_is_told_from_the_engines_own_parts(spool):
    engine, watch = watching(spool)
    for _ in range(3):
        engine.turn()
    watch.turn()

    (state,) = spool.engine_states()
    assert state.between_ns[Between.NO_WORK] == 0
