"""A fault of ours in whichever hook: vLLM's call happens once and returns its result, and the account says it ended."""

from collections import Counter
from types import SimpleNamespace

import pytest

from taxbreak_vllm.iterations.rows import NUM_COLUMNS, Column
from taxbreak_vllm.model.engine import EngineState
from taxbreak_vllm.serving.engine.hooks import LoopHooks
from taxbreak_vllm.serving.engine.watch import LoopWatch
from taxbreak_vllm.settings import load_settings
from taxbreak_vllm.spool.spool import Spool
from tests.serving.engine.test_watch import TimedEngine

# Each hook, by what it stands for, and what it writes to a row.
HOOKS = {
    "engine._process_input_queue": ("reset", Column.INPUT0, Column.INPUT1),
    "input_queue.get": (Column.IDLE0, Column.IDLE1),
    "scheduler.schedule": (Column.SCHEDULE0, Column.SCHEDULE1, Column.SCHEDULED),
    "scheduler.get_grammar_bitmask": (Column.GRAMMAR0, Column.GRAMMAR1),
    "scheduler.update_from_output": (Column.UPDATE0, Column.UPDATE1, Column.UPDATED, "times"),
    "executor.execute_model": (Column.EXECUTE0, Column.EXECUTE1),
    "executor.sample_tokens": (Column.SAMPLE0, Column.SAMPLE1),
    "calls.enqueue": (Column.EXECUTE_SENT, Column.SAMPLE_SENT),
    "results.dequeue": (Column.WAIT0, Column.WAIT1, Column.WAIT_AGAIN0, Column.WAIT_AGAIN1),
    "engine.step_fn": (Column.STEP1,),
    "engine._process_engine_step": (Column.END, Column.THREAD_CPU),
}


class Queues(TimedEngine):
    """An engine that waits for a request before each turn and whose worker is behind queues; its calls are counted."""

    def __init__(self):
        super().__init__()
        self.calls = Counter()
        self.results = SimpleNamespace(dequeue=lambda: self.worker_answers())
        self.messages = SimpleNamespace(enqueue=lambda message: f"sent {message[0]}")
        self.model_executor = SimpleNamespace(
            execute_model=self._execute_elsewhere,
            sample_tokens=self._sample_elsewhere,
            rpc_broadcast_mq=self.messages,
            response_mqs=[self.results],
            output_rank=0,
        )
        for owner, name in self.hooked():
            self._count(owner, name)

    def hooked(self):
        return [(self.owners()[owner], name) for owner, _, name in (hook.partition(".") for hook in HOOKS)]

    def owners(self):
        executor = self.model_executor
        return {
            "engine": self,
            "input_queue": self.input_queue,
            "scheduler": self.scheduler,
            "executor": executor,
            "calls": executor.rpc_broadcast_mq,
            "results": executor.response_mqs[0],
        }

    def _count(self, owner, name):
        call = getattr(owner, name)

        def counted(*args, **kwargs):
            self.calls[name] += 1
            return call(*args, **kwargs)

        setattr(owner, name, counted)

    def worker_answers(self):
        return self.answer

    def _execute_elsewhere(self, scheduled, non_block=False):
        assert self.messages.enqueue(("execute_model", (scheduled,))) == "sent execute_model"
        self.answer = "nothing yet"
        future = super()._execute(scheduled, non_block)
        assert self.results.dequeue() == "nothing yet"
        return future

    def _sample_elsewhere(self, grammar):
        assert self.messages.enqueue(("sample_tokens", (grammar,))) == "sent sample_tokens"
        self.answer = super()._sample(grammar)
        return self.results.dequeue()

    def _process_input_queue(self):
        self.input_queue.put("a request")
        assert self.input_queue.get() == "a request"


class Faulty(list):
    """A row to which one thing cannot be written."""

    def __init__(self, what):
        super().__init__([0] * NUM_COLUMNS)
        self.what = what
        self.num_faults = 0

    def __setitem__(self, place, value):
        kind = place if isinstance(place, int) else "times" if place.start else "reset"
        if kind == self.what:
            self.num_faults += 1
            raise ZeroDivisionError("ours")
        super().__setitem__(place, value)


def turns_of(engine, num=3):
    for _ in range(num):
        outputs, executed = engine.turn()
        assert executed
        assert outputs["outputs"].req_ids == ["a"]


@pytest.fixture
def expected():
    engine = Queues()
    turns_of(engine)
    return engine.calls


@pytest.mark.parametrize(
    ("hook", "what"), [(hook, what) for hook, columns in HOOKS.items() for what in columns], ids=str
)
def test_whatever_a_hook_cannot_write_vllms_calls_are_made_once_and_the_watch_says_that_it_ended(
    tmp_path, expected, hook, what
):
    spool = Spool(tmp_path / "spool", max_bytes=2**20, max_captures=10)
    engine = Queues()
    watch = LoopWatch(engine, spool, EngineState(engine="0"), load_settings())
    row = watch._hooks._row = Faulty(None)
    watch._hooks.attach()
    turns_of(engine)
    watch.turn()
    engine.calls.clear()

    row.what = what
    turns_of(engine)
    row.what = None
    watch.turn()
    turns_of(engine)
    watch.turn()

    assert row.num_faults
    assert engine.calls == expected + expected
    (state,) = spool.engine_states()
    assert (state.num_iterations, state.off_reason) == (2, "hook")


def test_these_are_all_hooks_that_there_are():
    engine = Queues()
    before = {name: dict(vars(owner)) for name, owner in engine.owners().items()}

    LoopHooks(engine, lambda row: None).attach()

    after = {name: dict(vars(owner)) for name, owner in engine.owners().items()}
    hooked = {
        f"{owner}.{name}"
        for owner in after
        for name in after[owner]
        if after[owner][name] is not before[owner].get(name)
    }
    assert hooked == HOOKS.keys()


def test_every_column_is_written_by_a_hook():
    written = {what for columns in HOOKS.values() for what in columns}

    brought = {column for column in Column if column.name.startswith(("WORKER_", "DEVICE_"))}
    assert set(Column) - brought == written - {"reset", "times"}


@pytest.mark.parametrize("name", [hook.partition(".")[2] for hook in HOOKS])
def test_what_a_call_of_vllms_raises_passes_unchanged(name):
    engine = Queues()
    owner = next(owner for owner, hooked in engine.hooked() if hooked == name)
    error = TimeoutError("vLLM's own")

    def fails(*args, **kwargs):
        raise error

    setattr(owner, name, fails)
    hooks = LoopHooks(engine, lambda row: None)
    hooks.attach()

    with pytest.raises(TimeoutError) as caught:
        engine.turn()

    assert caught.value is error
    assert hooks.fault is None
