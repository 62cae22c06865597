"""The stage `sessions` of `gpu_check.py`: what the profiler loses, costs and keeps over many short recordings.

A step replays two graphs (on a CPU: runs as many ops), a recording is of three steps, and between two recordings the
device is idle. What each should hold is known.
"""

import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from gpu_book import Book, table
from gpu_lab import Lab, Step

from taxbreak_vllm.serving.sampling.stalls import Detail
from taxbreak_vllm.serving.torch_profile import TorchProfile, load_profiler

_NODES = (64, 200)
_NUM, _NUM_TINY = 60, 12
_IDLE_S = 0.2
_OPS = (0, 500, 5000)
_ROUNDS = 9


def sessions(book: Book, lab: Lab) -> None:
    """Records lost at the head, replays told apart, the first replay's time, memory; and what start and stop take."""
    found = book.case("sessions", "three steps each", partial(_sessions, lab))
    table("many short recordings", [{"what": key, "seen": value} for key, value in (found or {}).items()])
    found = book.case("sessions", "profiler", partial(_profiler, lab))
    table("what the profiler holds up, by the launches of a step", found["rows"] if found else [])


def _sessions(lab: Lab) -> dict[str, Any]:
    step, memory = _two_graphs(lab), [_memory(lab)]
    kernels: list[list[int]] = []
    slow, unlinked = [], 0
    for number in range(_NUM_TINY if lab.is_tiny else _NUM):
        time.sleep(_IDLE_S)
        path = lab.record("session", [(f"session.{number}.{n}", step) for n in range(3)])
        breakdown = lab.analyze(path)
        kernels.append([each.kernels for each in breakdown.steps])
        slow.append(breakdown.steps[0].window_ns / breakdown.steps[-1].window_ns)
        unlinked += breakdown.coverage.unlinked
        memory.append(_memory(lab))
    wanted = sum(_NODES)
    return {
        "recordings": len(kernels),
        "whole": sum(set(own) == {wanted} for own in kernels),
        "records lost of first steps": sum(max(0, wanted - own[0]) for own in kernels),
        "records lost of the others": sum(max(0, wanted - each) for own in kernels for each in own[1:]),
        "steps with too many": sum(each > wanted for own in kernels for each in own),
        "unlinked": unlinked,
        "first step / third": median(slow),
        "host MiB, before": memory[0]["host"],
        "host MiB, after one": memory[1]["host"],
        "host MiB, after all": memory[-1]["host"],
        "device MiB, before": memory[0]["device"],
        "device MiB, after all": memory[-1]["device"],
    }


def _two_graphs(lab: Lab) -> Step:
    x = torch.ones(1, device=lab.device)

    def ops(num: int) -> None:
        for _ in range(num):
            torch.neg(x)

    if not lab.is_gpu:
        return lambda: [ops(num) for num in _NODES]
    graphs = []
    ops(1)
    for num in _NODES:
        graph = torch.cuda.CUDAGraph()
        with torch.inference_mode(), torch.cuda.graph(graph):
            ops(num)
        graphs.append(graph)
    return lambda: [graph.replay() for graph in graphs]


def _memory(lab: Lab) -> dict[str, float | None]:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    free, total = torch.cuda.mem_get_info() if lab.is_gpu else (0, 0)
    return {"host": int(lines["VmRSS"].split()[0]) / 1024, "device": (total - free) / 2**20 if lab.is_gpu else None}


def _profiler(lab: Lab) -> dict[str, Any]:
    load_profiler()
    x, rows = torch.ones(8, device=lab.device), []
    for num in _OPS:
        taken: list[tuple[int, int]] = []
        for _ in range(_ROUNDS):
            lab.synchronize()
            begun_ns = time.perf_counter_ns()
            profile = TorchProfile("step", detail=Detail.SHAPES, is_read=True)
            profile.start()
            started_ns = time.perf_counter_ns()
            with torch.inference_mode():
                for _ in range(num):
                    torch.neg(x)
            ended_ns = time.perf_counter_ns()
            profile.stop()
            taken.append((started_ns - begun_ns, time.perf_counter_ns() - ended_ns))
        before, after = zip(*taken[1:], strict=True)
        rows.append(
            {"launches": num, "start_ns": median(before), "stop_ns": median(after), "first start_ns": taken[0][0]}
        )
    return {"rows": rows}
