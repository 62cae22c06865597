"""What recording a step holds up its thread: opening, starting and stopping the profiler, by what is recorded of an op.

    python benchmarks/stop_cost.py [--json FILE]

Steps of many small ops on the CPU are recorded with shapes and with times alone, each with and without `trace_only`
(which torch has from 2.13 on). All four take turns in every round; a figure is the median round, a ratio the median
over rounds of shapes without `trace_only` over the rest.
"""

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path

from machine import describe_machine

from taxbreak_vllm.serving.sampling.stalls import Detail
from taxbreak_vllm.serving.torch_profile import TorchProfile, load_profiler

NUM_ROUNDS = 15
OPS = (500, 5000)  # as torch counts them, one within another
_OPS_A_CALL = 5  # of an `add_` of a number, which is made a tensor first

# `is_read`: without trace_only, as its events could not be looked at otherwise
CASES = {
    "shapes": (Detail.SHAPES, True),
    "shapes, trace_only": (Detail.SHAPES, False),
    "times": (Detail.TIMES, True),
    "times, trace_only": (Detail.TIMES, False),
}


def record(detail: Detail, *, is_read: bool, ops: int) -> tuple[float, float]:
    """Record one step; return what comes before it and what comes after it, in ms."""
    import torch

    value = torch.ones(8)
    begun_ns = time.perf_counter_ns()
    profile = TorchProfile("step", detail=detail, is_read=is_read)
    profile.start()
    started_ns = time.perf_counter_ns()
    with torch.inference_mode():
        for _ in range(ops // _OPS_A_CALL):
            value.add_(1)
    ended_ns = time.perf_counter_ns()
    profile.stop()
    return (started_ns - begun_ns) / 1e6, (time.perf_counter_ns() - ended_ns) / 1e6


def measure(ops: int) -> list[dict[str, float | int | str]]:
    rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in CASES}
    for _ in range(NUM_ROUNDS):
        for name, (detail, is_read) in CASES.items():
            rounds[name].append(record(detail, is_read=is_read, ops=ops))
    stalls = {name: [before + after for before, after in pairs] for name, pairs in rounds.items()}
    return [
        {
            "ops": ops,
            "recorded": name,
            "start_ms": round(statistics.median(before for before, _ in pairs), 2),
            "stop_ms": round(statistics.median(after for _, after in pairs), 2),
            "stall_ms": round(statistics.median(stalls[name]), 2),
            "ratio": round(statistics.median(a / b for a, b in zip(stalls["shapes"], stalls[name], strict=True)), 2),
        }
        for name, pairs in rounds.items()
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    load_before = os.getloadavg()[0]
    load_profiler()
    record(Detail.SHAPES, is_read=True, ops=max(OPS))
    rows = [row for ops in OPS for row in measure(ops)]
    print(f"{'ops':>6}  {'recorded':<20} {'start':>9} {'stop':>10} {'stall':>10} {'ratio':>6}")
    for row in rows:
        print(
            f"{row['ops']:>6}  {row['recorded']:<20} {row['start_ms']:>6} ms {row['stop_ms']:>7} ms "
            f"{row['stall_ms']:>7} ms {row['ratio']:>6}"
        )
    if options.json:
        load = {"load_before": load_before, "load_after": os.getloadavg()[0]}
        machine = describe_machine("taxbreak-vllm", "torch") | load
        options.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
