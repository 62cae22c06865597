"""An engine's loop runs as ever with the hooks on it, faults of theirs included, and leaves rows behind."""

import queue
from concurrent.futures import Future
from types import SimpleNamespace

import pytest

from taxbreak_vllm.iterations.rows import UNKNOWN, Column
from taxbreak_vllm.serving.engine.hooks import LoopHooks
from taxbreak_vllm.serving.engine.ring import Ring
from taxbreak_vllm.serving.worker_times import NUMBER, TIMES


class Engine:
    """The calls of an engine and of its worker, in the order in which vLLM's synchronous engine makes them."""

    def __init__(self, worker=None):
        self.input_queue = queue.Queue()
        self.scheduler = SimpleNamespace(
            schedule=lambda: SimpleNamespace(tokens=1),
            get_grammar_bitmask=lambda scheduled: None,
            update_from_output=lambda scheduled, output: {"outputs": output},
        )
        self.model_executor = SimpleNamespace(execute_model=self._execute, sample_tokens=self._sample)
        self.step_fn = self.step
        self.worker = worker or (lambda number: ("server", number, 1, 2, 3, 4, 5, 6, 7))
        self.failure = None

    def _execute(self, scheduled, non_block=False):
        self.number = getattr(scheduled, NUMBER, None)
        future = Future()
        future.set_result(None)
        return future

    def _sample(self, grammar):
        if self.failure:
            raise self.failure
        output = SimpleNamespace(req_ids=["a"])
        setattr(output, TIMES, self.worker(self.number))
        return output

    def step(self):
        scheduled = self.scheduler.schedule()
        future = self.model_executor.execute_model(scheduled, non_block=True)
        grammar = self.scheduler.get_grammar_bitmask(scheduled)
        output = future.result() or self.model_executor.sample_tokens(grammar)
        return self.scheduler.update_from_output(scheduled, output), True

    def _process_input_queue(self):
        while not self.input_queue.empty():
            self.input_queue.get_nowait()

    def _process_engine_step(self):
        return self.step_fn()

    def turn(self):
        self._process_input_queue()
        return self._process_engine_step()


@pytest.fixture
def ring():
    return Ring(capacity=8)


def hooked(engine, write):
    hooks = LoopHooks(engine, write)
    hooks.attach()
    return hooks


def test_each_turn_leaves_a_row_with_the_times_of_its_step(ring):
    engine = Engine()
    hooks = hooked(engine, ring.write)

    for _ in range(3):
        engine.turn()

    rows = ring.take()
    assert rows[:, Column.SCHEDULED].tolist() == rows[:, Column.UPDATED].tolist() == [1, 2, 3]
    assert rows[:, Column.WORKER_EXECUTE0 :].tolist() == [[1, 2, 3, 4, 5, 6, 7]] * 3
    assert hooks.server_id == "server"
    order = [Column.INPUT0, Column.INPUT1, Column.SCHEDULE0, Column.SCHEDULE1, Column.EXECUTE0, Column.EXECUTE1]
    order += [Column.GRAMMAR0, Column.SAMPLE0, Column.SAMPLE1, Column.UPDATE0, Column.UPDATE1, Column.STEP1, Column.END]
    assert (rows[:, order[1:]] >= rows[:, order[:-1]]).all()
    assert (rows[:, order] > 0).all()


def test_an_error_of_vllms_passes_and_the_next_turn_counts(ring):
    engine = Engine()
    hooked(engine, ring.write)
    engine.failure = RuntimeError("the worker died")

    with pytest.raises(RuntimeError, match="the worker died"):
        engine.turn()
    engine.failure = None
    engine.turn()

    assert ring.take()[:, Column.UPDATED].tolist() == [2]


@pytest.mark.parametrize("times", [("server", 99, 1, 2, 3, 4, 5, 6, 7), None], ids=["another step's", "none"])
def test_times_of_another_step_are_not_taken(ring, times):
    engine = Engine(worker=lambda number: times)
    hooked(engine, ring.write)

    engine.turn()

    assert ring.take()[:, Column.WORKER_EXECUTE0].tolist() == [UNKNOWN]


def fail(*args):
    raise ZeroDivisionError("ours")


def slotted(engine):
    """A schedule on which nothing can be put."""
    engine.scheduler.schedule = lambda: object()
    return engine


@pytest.mark.parametrize(
    ("engine", "write"),
    [(Engine(), fail), (slotted(Engine()), None), (Engine(worker=lambda number: 5), None)],
    ids=["row", "number", "times"],
)
def test_a_fault_of_ours_ends_the_timing_and_never_a_turn(ring, engine, write):
    hooks = hooked(engine, write or ring.write)

    for _ in range(2):
        outputs, executed = engine.turn()
        assert executed
        assert outputs["outputs"].req_ids == ["a"]

    assert hooks.fault


def test_a_ring_that_nobody_reads_loses_rows_and_says_how_many(ring):
    engine = Engine()
    hooked(engine, ring.write)

    for _ in range(11):
        engine.turn()

    assert ring.take()[:, Column.UPDATED].tolist() == list(range(1, 9))
    assert ring.num_lost == 3
    engine.turn()
    assert ring.take()[:, Column.UPDATED].tolist() == [12]
