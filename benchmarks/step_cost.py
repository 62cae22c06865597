"""What an unrecorded step costs the worker: the hooks around calls that do nothing, beside hooks that do nothing.

    python benchmarks/step_cost.py [--json FILE]

Rounds of bare calls, empty wrappers and watched calls take turns in one run. A round is many steps; its cost is their
mean CPU time, and what is reported is the median round and the best. The steps are of vLLM's own classes. Beside it
what comes on top where an engine asks for a step's times (`joined`), and on top of that where there are events of a
device (`framed`: recorded in bursts of steps, so the mean of all; `every`: in every step; here they do nothing).
Last what a recorded step alone pays: `sums`, those over its requests, of a model with two sizes of sliding windows.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from machine import describe_machine
from yardstick import USUAL_NS, allowed_ns, empty_hook_ns

from taxbreak_vllm.model.shape import AttentionShape, MatrixShape, ModelShape
from taxbreak_vllm.model.step import GraphMode, Server
from taxbreak_vllm.serving.device_idle import DeviceIdle
from taxbreak_vllm.serving.step_work import work_of
from taxbreak_vllm.serving.steps import GraphModes
from taxbreak_vllm.serving.watch import Watch
from taxbreak_vllm.serving.worker import install
from taxbreak_vllm.serving.worker_times import NUMBER
from taxbreak_vllm.settings import Settings

NUM_ROUNDS = 41
NUM_STEPS = 5000
NUM_SUMS = 5000
LIMIT_NS = 2000
SUMS_LIMIT_NS = 100_000  # at 256 requests


class Worker:
    """The calls of a vLLM worker, doing nothing."""

    def execute_model(self, scheduler_output: object) -> None:
        return None

    def sample_tokens(self, grammar_output: object) -> object:
        return grammar_output

    def execute_dummy_batch(self) -> None:
        return None

    def compile_or_warm_up_model(self) -> None:
        return None


class NoWatch:
    """What empty wrappers call."""

    server_id = "bench"
    phase_index = 0
    is_recording = False
    is_paused = False

    def arm(self) -> None: ...
    def begin(self, worker: object, scheduled: object) -> None: ...
    def end(self, output: object, *, has_sampled: bool) -> None: ...


class NoDraws:
    """No step is recorded here."""

    def __init__(self, seed: str, sample_every: int) -> None: ...

    def next(self, first: int, level: int = 0) -> int:
        return 2**62


def decode_step(batch: int) -> Any:  # noqa: ANN401 - vLLM's SchedulerOutput
    """Build a step of so many requests that generate."""
    from vllm.v1.core.sched.output import CachedRequestData, SchedulerOutput

    ids = [f"cmpl-{number:032x}-0" for number in range(batch)]
    step = SchedulerOutput.make_empty()
    step.scheduled_cached_reqs = CachedRequestData(
        req_ids=ids,
        resumed_req_ids=set(),
        new_token_ids=[],
        all_token_ids={},
        new_block_ids=[None] * batch,
        num_computed_tokens=[100] * batch,
        num_output_tokens=[7] * batch,
    )
    step.num_scheduled_tokens = dict.fromkeys(ids, 1)
    step.total_num_scheduled_tokens = batch
    return step


class NoEvent:
    """An event of no device."""

    def record(self) -> None: ...

    def query(self) -> bool:
        return True

    def elapsed_time(self, end_event: object) -> float:
        return 0.25


def hooked(watch: object, device_idle: DeviceIdle | None = None) -> Worker:
    worker = Worker()
    install(
        worker,
        open_watch=lambda _: watch,  # type: ignore[arg-type,return-value]
        open_device_idle=lambda _: device_idle,
    )
    return worker


def time_steps(worker: Worker, step: object) -> float:
    """Return the mean time of a step in ns."""
    output = SimpleNamespace(req_ids=["a"])
    begun_ns = time.thread_time_ns()
    for _ in range(NUM_STEPS):
        worker.execute_model(step)
        worker.sample_tokens(output)
    return (time.thread_time_ns() - begun_ns) / NUM_STEPS


def measure(batch: int, folder: Path) -> dict[str, float | int]:
    step, asked = decode_step(batch), decode_step(batch)
    setattr(asked, NUMBER, 1)
    watches = [
        Watch(
            Server(server_id="bench"),
            Settings(spool=folder),
            graph_modes=GraphModes(decode=GraphMode.FULL, mixed=GraphMode.PIECEWISE, max_tokens=512),
            draw=NoDraws,
        )
        for _ in range(4)
    ]
    workers: dict[str, tuple[Worker, object]] = {
        "bare": (Worker(), step),
        "empty": (hooked(NoWatch()), step),
        "watched": (hooked(watches[0]), step),
        "joined": (hooked(watches[1]), asked),
        "framed": (hooked(watches[2], DeviceIdle(NoEvent)), asked),
        "every": (hooked(watches[3], DeviceIdle(NoEvent, steps_between=lambda: 0)), asked),
    }
    rounds: dict[str, list[float]] = {name: [] for name in workers}
    for _ in range(NUM_ROUNDS):
        for name, (worker, scheduled) in workers.items():
            rounds[name].append(time_steps(worker, scheduled))
    for watch in watches:
        state = watch.state()
        if state.steps[0].num_steps != NUM_ROUNDS * NUM_STEPS or state.dropped:
            raise SystemExit(f"the steps were not all timed: {state}")

    def over(other: str, name: str, pick: Callable[[list[float]], float] = statistics.median) -> float:
        return pick([a - b for a, b in zip(rounds[name], rounds[other], strict=True)])

    return {
        "batch": batch,
        "empty_ns": round(over("bare", "empty")),
        "watched_ns": round(over("bare", "watched")),
        "watched_best_ns": round(over("bare", "watched", min)),
        "ratio": round(over("bare", "watched") / over("bare", "empty"), 2),
        "joined_ns": round(over("watched", "joined")),
        "framed_ns": round(over("joined", "framed")),
        "every_ns": round(over("joined", "every")),
    }


def measure_sums(batch: int) -> dict[str, Any]:
    """Time the sums over so many requests, one by one."""
    group = AttentionShape(layers=1, heads=1, kv_heads=1, head_size=1, head_size_v=1)
    model = ModelShape(
        dtype="bf16",
        product_dtype="bf16",
        linear=MatrixShape(),
        lm_head=MatrixShape(),
        attention=(group, replace(group, window=512), replace(group, window=4096)),
    )
    step, took_ns = decode_step(batch), []
    for _ in range(NUM_SUMS):
        started_ns = time.thread_time_ns()
        work = work_of(step, model, GraphMode.NONE)
        took_ns.append(time.thread_time_ns() - started_ns)
        if work is None or work.queries != batch:
            raise SystemExit(f"the step was not summed up: {work}")
    percentiles = statistics.quantiles(took_ns, n=100)
    return {"batch": batch, "median_ns": round(percentiles[49]), "p99_ns": round(percentiles[98])}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    load_before = os.getloadavg()[0]
    empty = [empty_hook_ns() for _ in range(NUM_ROUNDS)]
    with tempfile.TemporaryDirectory() as folder:
        rows = [measure(batch, Path(folder)) for batch in (1, 8, 64)]
    sums = [measure_sums(batch) for batch in (8, 64, 256)]
    names = f"{'batch':>6} {'empty wrappers':>15} {'watched':>9} {'best round':>11} {'ratio':>6}"
    print(f"{names} {'joined':>10} {'framed':>10} {'every':>10}")
    for row in rows:
        print(
            f"{row['batch']:>6} {row['empty_ns']:>12} ns {row['watched_ns']:>6} ns "
            f"{row['watched_best_ns']:>8} ns {row['ratio']:>6} {row['joined_ns']:>+7} ns {row['framed_ns']:>+7} ns "
            f"{row['every_ns']:>+7} ns"
        )
    for each in sums:
        print(f"sums of {each['batch']:>3} requests {each['median_ns']:>6} ns, p99 {each['p99_ns']} ns")
    empty_ns = min(empty + [empty_hook_ns() for _ in range(NUM_ROUNDS)])
    allowed = round(allowed_ns(LIMIT_NS, empty_ns))
    print(f"a watched step may take {LIMIT_NS:,} ns, here {allowed:,} ns: a call through an empty hook takes")
    print(f"{empty_ns:,.0f} ns, {USUAL_NS} ns where the limit was set")
    if options.json:
        load = {"load_before": load_before, "load_after": os.getloadavg()[0]}
        machine = describe_machine("taxbreak-vllm") | load
        limits = {"limit_ns": LIMIT_NS, "allowed_ns": allowed}
        options.json.write_text(json.dumps({"machine": machine, **limits, "rows": rows, "sums": sums}, indent=1) + "\n")
    is_dear = any(row["watched_best_ns"] >= allowed for row in rows if row["batch"] <= 8)
    return 1 if is_dear or sums[-1]["p99_ns"] >= SUMS_LIMIT_NS else 0


if __name__ == "__main__":
    sys.exit(main())
