"""The front-end of cublasLt alone: `cublasLtMatmul` called through ctypes, its way to the launch read off the profiler.

Beside it the same product through `torch.mm`: its T_dispatch replayed less T_base is the ΔCT that should agree.
"""

import ctypes
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
from gpu_lab import Lab

from taxbreak_vllm.model.breakdown import Breakdown
from taxbreak_vllm.taxes.analyze import analyze
from taxbreak_vllm.trace.dispatches import link
from taxbreak_vllm.trace.events import EventKind
from taxbreak_vllm.trace.read.kineto import read_events

_COMPUTE_32F, _R_32F, _R_16BF = 68, 0, 14  # cublas_api.h, library_types.h
_RUNS = 50


def direct(lab: Lab, m: int, n: int, k: int) -> dict[str, object]:
    """Compare for a [m, k] x [k, n] product in bf16; times in ns before the launch call."""
    a = torch.randn(m, k, device=lab.device, dtype=torch.bfloat16)
    b = torch.randn(k, n, device=lab.device, dtype=torch.bfloat16)
    with torch.inference_mode():
        matmul, result = _matmul(a, b)
        matmul()
        torch.cuda.synchronize()
        wanted = a @ b
        error = float((result - wanted).float().norm() / wanted.float().norm())

        def of_torch() -> object:
            return torch.mm(a, b)

        def of_neg() -> object:
            return torch.neg(a)

        calls = {"direct": matmul, "mm": of_torch, "neg": of_neg}
        for call in calls.values():
            for _ in range(10):
                call()
        path = lab.record(
            f"cublaslt-{m}-{n}-{k}", [(f"{name}.{i}", call) for i in range(_RUNS) for name, call in calls.items()]
        )
    before = _before_launch(path)
    plain = analyze(path)
    account = lab.replay([path], seconds=30)
    replayed = lab.analyze(path)
    return {
        "relative error": error,
        "direct_ns": before["direct"],
        "mm_ns": before["mm"],
        "neg_ns": before["neg"],
        "mm less neg_ns": before["mm"] - before["neg"],
        "ct_ns": _ct(replayed),
        "ct by the trace_ns": _ct(plain),
        "outcomes": " ".join(f"{count} {outcome}" for outcome, count in account.outcomes.items()),
    }


def _ct(breakdown: Breakdown) -> float | None:
    known = [step.taxes.delta_ct_ns for step in breakdown.steps if (step.name or "").startswith("mm.")]
    values = [value for value in known if value is not None]
    return median(values) if values else None


def _before_launch(path: Path) -> dict[str, float]:
    """From a step's start to its last launch call, without other runtime calls: median by kind of step."""
    events = read_events(path)
    _, _, dispatches = link(events)
    found: dict[str, list[int]] = {}
    calls = events.rows(EventKind.RUNTIME)
    for row in events.rows(EventKind.ANNOTATION).tolist():
        name = events.names[events.name[row]]
        if not name.startswith("taxbreak.step:"):
            continue
        start, end = int(events.start_ns[row]), int(events.end_ns[row])
        own = np.flatnonzero(
            (dispatches.launch_ns >= start) & (dispatches.launch_ns < end) & (dispatches.num_kernels > 0)
        )
        if not len(own):
            continue
        launch = int(dispatches.launch_ns[own[-1]])
        inside = calls[(events.start_ns[calls] >= start) & (events.end_ns[calls] <= launch)]
        others = int((events.end_ns[inside] - events.start_ns[inside]).sum())
        found.setdefault(name.removeprefix("taxbreak.step:").partition(".")[0], []).append(launch - start - others)
    return {name: median(values) for name, values in found.items()}


def _matmul(a: torch.Tensor, b: torch.Tensor) -> tuple[Callable[[], None], torch.Tensor]:
    """A call of cublasLtMatmul for row-major tensors, and where its result goes.

    cublasLt takes columns first: the transposed product b' x a' has the same memory.
    """
    library = _load()
    (m, k), n = a.shape, b.shape[1]
    result = torch.empty(m, n, device=a.device, dtype=a.dtype)
    handle, description = ctypes.c_void_p(), ctypes.c_void_p()
    _check(library.cublasLtCreate(ctypes.byref(handle)))
    _check(library.cublasLtMatmulDescCreate(ctypes.byref(description), _COMPUTE_32F, _R_32F))
    layouts = []
    for rows, columns in ((n, k), (k, m), (n, m)):
        layout = ctypes.c_void_p()
        _check(
            library.cublasLtMatrixLayoutCreate(
                ctypes.byref(layout), _R_16BF, ctypes.c_uint64(rows), ctypes.c_uint64(columns), ctypes.c_int64(rows)
            )
        )
        layouts.append(layout)
    workspace = torch.empty(32 * 2**20, device=a.device, dtype=torch.uint8)
    one, zero = ctypes.c_float(1.0), ctypes.c_float(0.0)
    arguments = (
        handle, description, ctypes.byref(one), ctypes.c_void_p(b.data_ptr()), layouts[0],
        ctypes.c_void_p(a.data_ptr()), layouts[1], ctypes.byref(zero), ctypes.c_void_p(result.data_ptr()), layouts[2],
        ctypes.c_void_p(result.data_ptr()), layouts[2], None, ctypes.c_void_p(workspace.data_ptr()),
        ctypes.c_size_t(workspace.numel()), ctypes.c_void_p(torch.cuda.current_stream().cuda_stream),
    )  # fmt: skip
    keep = (a, b, workspace, one, zero)

    def call() -> None:
        _check(library.cublasLtMatmul(*arguments), keep)

    return call, result


def _load() -> ctypes.CDLL:
    """The library that torch has loaded, found by its place in the process."""
    torch.cuda.current_blas_handle()
    for line in Path("/proc/self/maps").read_text().splitlines():
        if "libcublasLt.so" in line:
            return ctypes.CDLL(line.split(maxsplit=5)[5])
    raise OSError("torch has not loaded libcublasLt")


def _check(status: int, keep: object = None) -> None:
    del keep  # named, so that what the call points to lives as long as the call
    if status:
        raise RuntimeError(f"cublasLt returned {status}")
