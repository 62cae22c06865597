"""What a launch costs this process before it ever profiled, under the profiler, and after: one JSON line, ns a launch.

python benchmarks/gpu_probe.py cuda
"""

import json
import sys
import time
from collections.abc import Callable
from statistics import median

import torch

_BATCHES, _LAUNCHES = 41, 64


def main(device: str) -> None:
    """Print the medians over batches of launches."""
    x = torch.ones(1, device=device)
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.inference_mode():
        _time(lambda: torch.neg(x))
        found = {"before_ns": _time(lambda: torch.neg(x))}
        begun_ns = time.perf_counter_ns()
        with torch.profiler.profile(activities=activities):
            found["first start_ns"] = time.perf_counter_ns() - begun_ns
            found["during_ns"] = _time(lambda: torch.neg(x))
        found["after_ns"] = _time(lambda: torch.neg(x))
        begun_ns = time.perf_counter_ns()
        with torch.profiler.profile(activities=activities):
            found["later start_ns"] = time.perf_counter_ns() - begun_ns
            torch.neg(x)
            stopping_ns = time.perf_counter_ns()
        found["later stop_ns"] = time.perf_counter_ns() - stopping_ns
        found["after the second_ns"] = _time(lambda: torch.neg(x))
    print(json.dumps(found))


def _time(launch: Callable[[], object]) -> float:
    times = []
    for _ in range(_BATCHES):
        torch.cuda.synchronize()
        begun_ns = time.perf_counter_ns()
        for _ in range(_LAUNCHES):
            launch()
        times.append((time.perf_counter_ns() - begun_ns) / _LAUNCHES)
    return median(times)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "cuda")
