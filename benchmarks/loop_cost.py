"""What timing an engine's loop costs its thread: turns of an engine whose calls do nothing, with and without hooks.

    python benchmarks/loop_cost.py

Rounds of bare and hooked turns take turns in one run; a round's cost is the mean CPU time of its turns, and what is
reported is the median round. Beside it the time another thread takes to count a second's rows, at 500 turns a second.
"""

import queue
import statistics
import sys
import time
from concurrent.futures import Future
from types import SimpleNamespace

import numpy as np

from taxbreak_vllm.iterations.account import Turns
from taxbreak_vllm.iterations.rows import NUM_COLUMNS, Column
from taxbreak_vllm.serving.engine.hooks import LoopHooks
from taxbreak_vllm.serving.engine.ring import Ring
from taxbreak_vllm.serving.worker_times import NUMBER, TIMES

NUM_ROUNDS = 41
NUM_TURNS = 2000
LIMIT_NS = 6000
ROWS_PER_S = 500


class Engine:
    """The calls of a synchronous engine with its worker in another process, doing nothing."""

    def __init__(self) -> None:
        self.input_queue: queue.Queue[object] = queue.Queue()
        self.scheduled = SimpleNamespace()
        self.output = SimpleNamespace(req_ids=["a"])
        self.future: Future[None] = Future()
        self.future.set_result(None)
        self.scheduler = SimpleNamespace(
            schedule=lambda: self.scheduled,
            get_grammar_bitmask=lambda scheduled: None,
            update_from_output=lambda scheduled, output: {},
        )
        results = SimpleNamespace(dequeue=lambda: (0, self.output))
        self.model_executor = SimpleNamespace(
            execute_model=self._execute,
            sample_tokens=self._sample,
            rpc_broadcast_mq=SimpleNamespace(enqueue=lambda message: None),
            response_mqs=[results],
            output_rank=0,
        )
        self.step_fn = self.step

    def _execute(self, scheduled: object, non_block: bool = False) -> Future[None]:
        self.model_executor.rpc_broadcast_mq.enqueue(("execute_model", (scheduled,), {}, 0))
        return self.future

    def _sample(self, grammar: object) -> object:
        self.model_executor.rpc_broadcast_mq.enqueue(("sample_tokens", (grammar,), {}, 0))
        return self.model_executor.response_mqs[0].dequeue()[1]

    def step(self) -> tuple[object, bool]:
        scheduled = self.scheduler.schedule()
        self.model_executor.execute_model(scheduled, non_block=True)
        grammar = self.scheduler.get_grammar_bitmask(scheduled)
        self.model_executor.response_mqs[0].dequeue()
        output = self.model_executor.sample_tokens(grammar)
        return self.scheduler.update_from_output(scheduled, output), True

    def _process_input_queue(self) -> None:
        return None

    def _process_engine_step(self) -> bool:
        return self.step_fn()[1]


def time_turns(engine: Engine) -> float:
    """Return the mean CPU time of a turn in ns."""
    begun_ns = time.thread_time_ns()
    for _ in range(NUM_TURNS):
        engine._process_input_queue()
        engine._process_engine_step()
    return (time.thread_time_ns() - begun_ns) / NUM_TURNS


def made_up_rows() -> np.ndarray:
    """Return a second's turns of 2 ms, with spans of some 20 µs."""
    rows = np.zeros((ROWS_PER_S, NUM_COLUMNS), dtype=np.int64)
    rows[:, Column.SCHEDULED] = rows[:, Column.UPDATED] = np.arange(1, ROWS_PER_S + 1)
    order = [
        "INPUT0 INPUT1 SCHEDULE0 SCHEDULE1 EXECUTE0 EXECUTE_SENT EXECUTE1 GRAMMAR0 GRAMMAR1 WAIT0 WORKER_EXECUTE0",
        "WORKER_EXECUTE1 WAIT1 SAMPLE0 SAMPLE_SENT WAIT_AGAIN0 WORKER_SAMPLE0 WORKER_SAMPLE1 WAIT_AGAIN1 SAMPLE1",
        "UPDATE0 UPDATE1 STEP1 END",
    ]
    for place, name in enumerate(" ".join(order).split()):
        rows[:, Column[name]] = 10**15 + np.arange(ROWS_PER_S) * 2_000_000 + place * 20_000
    return rows


def main() -> int:
    bare, hooked = Engine(), Engine()
    ring = Ring(capacity=NUM_TURNS)
    LoopHooks(hooked, ring.write).attach()
    setattr(hooked.scheduled, NUMBER, 0)
    rounds = []
    for _ in range(NUM_ROUNDS):
        without = time_turns(bare)
        setattr(hooked.output, TIMES, ("server", 0, 1, 2, 3, 4, 1, -1, -1))
        rounds.append(time_turns(hooked) - without)
        ring.take()
    rows, counting = made_up_rows(), []
    for _ in range(NUM_ROUNDS):
        begun_ns = time.thread_time_ns()
        turns = Turns(rows)
        turns.iterations()
        turns.busy_ns(int(rows[0, Column.INPUT0]), int(rows[-1, Column.INPUT0]))
        counting.append(time.thread_time_ns() - begun_ns)
    cost_ns = statistics.median(rounds)
    print(f"a turn of the engine's loop: {cost_ns:,.0f} ns (best round {min(rounds):,.0f} ns); at most {LIMIT_NS:,} ns")
    print(f"counting {ROWS_PER_S} turns, on another thread: {statistics.median(counting) / 1e6:.2f} ms")
    return int(cost_ns > LIMIT_NS)


if __name__ == "__main__":
    sys.exit(main())
