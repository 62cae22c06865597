"""What timing an engine's loop costs its thread: turns of an engine whose calls do nothing, with and without hooks.

    python benchmarks/loop_cost.py

Rounds of bare and hooked turns take turns in one run; a round's cost is the mean CPU time of its turns. Reported are
the median round, and the best hooked one over the best bare one, which is held to the limit: what else the machine does
only adds. Where a call through an empty hook takes longer in the same run than where the limits were set, they are as
much higher (`yardstick.py`). Beside it what a worker takes to time a step's calls for its engine, and what another
thread takes to count a second's rows, to keep a window of them and to keep what the scheduler chose, at 500 turns a
second.
"""

import queue
import statistics
import sys
import tempfile
import time
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from yardstick import USUAL_NS, allowed_ns, empty_hook_ns

from taxbreak_vllm.iterations.account import Turns
from taxbreak_vllm.iterations.rows import NUM_COLUMNS, Column
from taxbreak_vllm.iterations.window import NUM_TURNS as NUM_WINDOW
from taxbreak_vllm.iterations.window import Window
from taxbreak_vllm.serving.engine.hooks import LoopHooks
from taxbreak_vllm.serving.engine.ring import Ring
from taxbreak_vllm.serving.engine.setup import INSTANTS
from taxbreak_vllm.serving.engine.traffic import STEP, UPDATE, Lines, Traffic
from taxbreak_vllm.serving.worker_times import NUMBER, TIMES, StepTimes
from taxbreak_vllm.traffic.log import Log
from taxbreak_vllm.traffic.rows import Setup, stamped

NUM_ROUNDS = 101
NUM_TURNS = 500  # as many as another thread takes at once
LIMIT_NS = 6000
WORKER_LIMIT_NS = 2000
ROWS_PER_S = 500
NUM_REQUESTS = 64


class Engine:
    """The calls of a synchronous engine with its worker in another process, doing nothing."""

    def __init__(self) -> None:
        self.input_queue: queue.Queue[object] = queue.Queue()
        self.scheduled = SimpleNamespace(scheduled_new_reqs=[], preempted_req_ids=None)
        self.output = SimpleNamespace(req_ids=["a"], kv_connector_output=None)
        self.future: Future[None] = Future()
        self.future.set_result(None)
        self.scheduler = SimpleNamespace(
            schedule=lambda: self.scheduled,
            get_grammar_bitmask=lambda scheduled: None,
            update_from_output=lambda scheduled, output: {},
            add_request=lambda request: None,
            finish_requests=lambda request_ids, status: None,
            waiting=SimpleNamespace(peek_request=lambda: None),
            kv_cache_manager=SimpleNamespace(allocate_slots=lambda request: None),
            _try_schedule_encoder_inputs=lambda request: None,
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


def time_steps(times: StepTimes, scheduled: object, output: object) -> float:
    """Return the mean CPU time of timing a step of a worker in ns, the loop around it included."""
    begun_ns = time.thread_time_ns()
    for _ in range(NUM_TURNS):
        times.begin_execute(scheduled, 1)
        times.end_execute(None, "server")
        times.begin_sample()
        times.end_sample(output, "server")
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


def time_lines() -> int:
    """Return the CPU time of making and packing the lines of a second's steps."""
    scheduler = SimpleNamespace(add_request=lambda request: None, finish_requests=lambda request_ids, status: None)
    traffic = Traffic(scheduler)
    traffic.attach()
    ids = [f"cmpl-{number}" for number in range(NUM_REQUESTS)]
    cached = SimpleNamespace(
        req_ids=ids,
        num_computed_tokens=[1000] * NUM_REQUESTS,
        num_output_tokens=[9] * NUM_REQUESTS,
        resumed_req_ids=set(),
    )
    for number in range(ROWS_PER_S):
        scheduled = SimpleNamespace(
            finished_req_ids=set(),
            scheduled_new_reqs=[],
            scheduled_cached_reqs=cached,
            scheduled_spec_decode_tokens={},
            num_scheduled_tokens=dict.fromkeys(ids, 1),
            total_num_scheduled_tokens=NUM_REQUESTS,
            **{NUMBER: number},
        )
        traffic.note(STEP, scheduled, False)
        traffic.note(UPDATE, scheduled, 0)
    lines = Lines(traffic, hash_block_size=16, keeps_hashes=True)
    with tempfile.TemporaryDirectory() as folder:
        log = Log(Path(folder), Setup(server_id="server", source="engine-0"), max_bytes=2**20)
        begun_ns = time.thread_time_ns()
        log.append(lines.take() + stamped(made_up_rows(), INSTANTS))
        return time.thread_time_ns() - begun_ns


def main() -> int:
    bare, hooked = Engine(), Engine()
    ring = Ring(capacity=NUM_TURNS)
    hooks = LoopHooks(hooked, ring.write, keeps_traffic=True)
    hooks.attach()
    setattr(hooked.scheduled, NUMBER, 0)
    scheduled, steps = SimpleNamespace(num_scheduled_tokens={"a": 1}, **{NUMBER: 1}), []
    without, rounds, empty = [], [], []
    for _ in range(NUM_ROUNDS):
        empty.append(empty_hook_ns())
        steps.append(time_steps(StepTimes(None), scheduled, SimpleNamespace(req_ids=["a"])))
        without.append(time_turns(bare))
        setattr(hooked.output, TIMES, ("server", 0, 1, 2, 3, 4, 1, -1, -1))
        rounds.append(time_turns(hooked))
        ring.take()
        num_events = len(list(hooks.traffic.take()))
    if hooks.fault or hooks.queue_off_reason or hooks.traffic.fault or num_events != 2 * NUM_TURNS:
        raise SystemExit("a hook is off")
    rows, counting = made_up_rows(), []
    for _ in range(NUM_ROUNDS):
        begun_ns = time.thread_time_ns()
        turns = Turns(rows)
        turns.iterations()
        turns.busy_ns(int(rows[0, Column.INPUT0]), int(rows[-1, Column.INPUT0]))
        counting.append(time.thread_time_ns() - begun_ns)
    window = Window(
        engine="0", server_id="server", works_ahead=False, rows=rows[:NUM_WINDOW], slots=np.zeros((0, 4), np.int64)
    )
    begun_ns = time.thread_time_ns()
    num_bytes = len(window.encode())
    window_ns = time.thread_time_ns() - begun_ns
    lines_ns = time_lines()
    median = statistics.median(with_hooks - bare_ns for with_hooks, bare_ns in zip(rounds, without, strict=True))
    is_dear = False
    for what, median_ns, best_ns, limit_ns in (
        ("a turn of the engine's loop", median, min(rounds) - min(without), LIMIT_NS),
        ("a worker's step", statistics.median(steps), min(steps), WORKER_LIMIT_NS),
    ):
        most_ns = allowed_ns(limit_ns, min(empty))
        is_dear |= best_ns > most_ns
        print(f"{what}: {median_ns:,.0f} ns (best {best_ns:,.0f} ns); at most {limit_ns:,} ns, here {most_ns:,.0f} ns")
    print(f"a call through an empty hook: best {min(empty):,.0f} ns, {USUAL_NS} ns where the limits were set")
    print(f"counting {ROWS_PER_S} turns, on another thread: {statistics.median(counting) / 1e6:.2f} ms")
    print(f"a window of {NUM_WINDOW} turns, on that thread too: {window_ns / 1e6:.2f} ms, {num_bytes:,} bytes")
    print(f"lines of {ROWS_PER_S} steps of {NUM_REQUESTS} requests, on that thread too: {lines_ns / 1e6:.1f} ms")
    return int(is_dear)


if __name__ == "__main__":
    sys.exit(main())
