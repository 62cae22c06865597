"""The most that this machine's device reaches: FLOP/s by dtype and bytes/s by working set, best of several ways.

Runs in the child process, for about as long as it is told to. What was reached can be reached, so each figure is a
maximum, "at least"; a busy device gives lower ones, and the store keeps the best of all runs. On a GPU time is the
device's own, by events around a batch of calls. On the CPU backend it is that of the quickest call, on one core and on
all that the process may use: beside other work a call on all of them waits for the slowest.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from taxbreak_vllm.model.ceilings import MeasuredCeilings, Rate

WORKING_SETS = tuple(2**power * 2**20 for power in range(10))  # 1 to 512 MiB
_PRODUCTS_SHARE = 0.6  # of the time; the rest is for bandwidth
_BATCH_S = {"cpu": 0.03, "cuda": 0.01}  # on a GPU long beside a launch
_MOST_CALLS = 1000
_LONGEST_CALL_S = 0.5
_HOPELESS_RATIO = 0.8  # of the best of its kind: what is slower once is not tried again
_DTYPES: Mapping[str, torch.dtype] = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
    "tf32": torch.float32,
    "fp8": torch.float8_e4m3fn,
    "int8": torch.int8,
    "fp64": torch.float64,
}
_FP4 = "torch multiplies it in formats of its own alone, with a scale for each block"
_NOT_MEASURED = {
    "cpu": {"fp4": _FP4, "fp8": "torch has no fast product of it on the CPU: one of 512×512×512 takes ten seconds"},
    "cuda": {"fp4": _FP4},
}
_SHAPES = {  # m, n, k; the smallest first, as it tells whether a larger one would take too long
    "cpu": ((512, 512, 512), (1024, 1024, 1024), (2048, 2048, 2048), (512, 4096, 4096), (4096, 4096, 4096)),
    "cuda": ((4096, 4096, 4096), (8192, 8192, 8192), (4096, 8192, 16384), (16384, 8192, 4096)),
}

Call = Callable[[], object]
Batch = Callable[[Call, int], float]


@dataclass(frozen=True, slots=True)
class _Way:
    """One way to reach a ceiling: `key` is a dtype or a working set, `work` the FLOPs or bytes of a call."""

    key: str | int
    name: str
    work: int
    prepare: Callable[[], Call]


@dataclass(slots=True)
class _Reached:
    """The best of each key so far, and why others have none."""

    best: dict[str | int, Rate]
    missing: dict[str | int, str]


def measure_ceilings(
    device: str,
    seconds: float,
    *,
    shortest_kernel_ns: int | None = None,
    now_ns: Callable[[], int] = time.time_ns,
    now_s: Callable[[], float] = time.perf_counter,
) -> MeasuredCeilings:
    """Measure for about so many seconds: each dtype and each working set once, then the best ways again.

    A dtype that this device or torch does not multiply is in `missing`, with the reason.
    """
    kind = "cpu" if device == "cpu" else "cuda"
    batch = _cpu_batch(now_s) if kind == "cpu" else _gpu_batch
    reached = _Reached({}, {})
    begun_s = now_s()
    with _as_it_was(), torch.inference_mode():
        for ways, share in ((_products(device, kind), _PRODUCTS_SHARE), (_movements(device, kind), 1.0)):
            _reach(ways, begun_s + seconds * share, _BATCH_S[kind], batch, now_s, reached)
    return MeasuredCeilings(
        flops_per_s={dtype: reached.best[dtype] for dtype in _DTYPES if dtype in reached.best},
        bytes_per_s={size: reached.best[size] for size in WORKING_SETS if size in reached.best},
        shortest_kernel_ns=shortest_kernel_ns,
        missing=_NOT_MEASURED[kind]
        | {str(key): why for key, why in reached.missing.items() if key in _DTYPES and key not in reached.best},
        measured_unix_ns=now_ns(),
    )


def _reach(
    ways: Sequence[_Way], deadline_s: float, batch_s: float, batch: Batch, now_s: Callable[[], float], reached: _Reached
) -> None:
    """Try all ways, those of each key in turn, then those again that came near the best, until the time is over.

    A key that has no figure by then still gets one.
    """
    rates: dict[_Way, float] = {}
    left = _in_turn(ways)
    while left:
        for way in left:
            best = reached.best.get(way.key)
            if best is not None and (now_s() >= deadline_s or way.work / best.per_s > _LONGEST_CALL_S):
                continue
            try:
                rate = way.work / _call_s(way.prepare(), batch_s, batch)
            except Exception as error:  # whatever a backend raises for what it does not have
                reached.missing.setdefault(way.key, f"{way.name}: {_first_line(error)}")
                continue
            rates[way] = max(rate, rates.get(way, 0.0))
            if best is None or rate > best.per_s:
                reached.best[way.key] = Rate(per_s=rate, by=way.name)
        if now_s() >= deadline_s:
            return
        left = [way for way in rates if rates[way] >= _HOPELESS_RATIO * reached.best[way.key].per_s]


def _first_line(error: Exception) -> str:
    return (str(error).strip() or repr(error)).splitlines()[0][:160]


def _in_turn(ways: Sequence[_Way]) -> list[_Way]:
    """Order ways so that each key has its first one before any has its second."""
    count: dict[str | int, int] = {}
    turns = []
    for way in ways:
        count[way.key] = count.get(way.key, -1) + 1
        turns.append(count[way.key])
    return [way for _, way in sorted(zip(turns, ways, strict=True), key=lambda pair: pair[0])]


def _call_s(call: Call, batch_s: float, batch: Batch) -> float:
    """Return the time of a call, after one to warm up and one to tell how many make a batch."""
    call()
    once_s = batch(call, 1)
    return batch(call, max(1, min(_MOST_CALLS, round(batch_s / max(once_s, 1e-9)))))


def _cpu_batch(now_s: Callable[[], float]) -> Batch:
    def batch(call: Call, num: int) -> float:
        least_s = float("inf")
        for _ in range(num):
            begun_s = now_s()
            call()
            least_s = min(least_s, now_s() - begun_s)
        return least_s

    return batch


def _gpu_batch(call: Call, num: int) -> float:
    begun, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    begun.record()
    for _ in range(num):
        call()
    ended.record()
    ended.synchronize()
    return float(begun.elapsed_time(ended)) / 1000 / num


def _products(device: str, kind: str) -> list[_Way]:
    """Products of every dtype, shape, layout of the second operand, op and library."""
    libraries = ("cublas", "cublaslt") if kind == "cuda" else ("",)  # torch's words on AMD too
    return [
        _product(device, dtype, shape, op, library, is_transposed, num_cores)
        for shape in _SHAPES[kind]
        for num_cores in _numbers_of_cores(kind)
        for library in libraries
        for is_transposed in (False, True)
        for dtype in _DTYPES
        if dtype not in _NOT_MEASURED[kind]
        for op in _ops(dtype, is_transposed)
    ]


def _ops(dtype: str, is_transposed: bool) -> tuple[str, ...]:
    if dtype == "fp8":
        return ("scaled_mm", "scaled_mm (fast accumulation)") if is_transposed else ()  # it takes no other layout
    if dtype == "int8":
        return ("int_mm",)
    return ("mm", "addmm")


def _product(
    device: str, dtype: str, shape: tuple[int, int, int], op: str, library: str, is_transposed: bool, num_cores: int
) -> _Way:
    m, n, k = shape

    def prepare() -> Call:
        torch.set_num_threads(num_cores)
        torch.set_float32_matmul_precision("high" if dtype == "tf32" else "highest")
        if library:
            torch.backends.cuda.preferred_blas_library(library)
        a = _operand((m, k), dtype, device)
        b = _operand((n, k), dtype, device).t() if is_transposed else _operand((k, n), dtype, device)
        if op == "int_mm":
            return lambda: torch._int_mm(a, b)
        if dtype == "fp8":
            one = torch.ones((), device=device)
            is_fast = "fast" in op
            return lambda: torch._scaled_mm(
                a, b, scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=is_fast
            )
        out = torch.empty((m, n), dtype=_DTYPES[dtype], device=device)
        if op == "addmm":
            bias = _operand((n,), dtype, device)
            return lambda: torch.addmm(bias, a, b, out=out)
        return lambda: torch.mm(a, b, out=out)

    layout = ", transposed" if is_transposed else ""
    words = f"{op} {m}×{n}×{k}{layout}" + (f", {library}" if library else _on(num_cores))
    return _Way(dtype, words, 2 * m * n * k, prepare)


def _operand(shape: tuple[int, ...], dtype: str, device: str) -> torch.Tensor:
    if dtype == "int8":
        return torch.randint(-9, 9, shape, dtype=torch.int8, device=device)
    plain = torch.float64 if dtype == "fp64" else torch.float32
    return torch.randn(shape, dtype=plain, device=device).to(_DTYPES[dtype])


def _movements(device: str, kind: str) -> list[_Way]:
    """Reading, copying, adding up with a factor, and a product with one vector, of every working set."""
    return [
        _movement(device, size, name, allocate, num_cores)
        for num_cores in _numbers_of_cores(kind)
        for name, allocate in (("read (sum)", _read), ("copy", _copied), ("triad", _triad), ("mv", _vector))
        for size in WORKING_SETS
    ]


def _movement(device: str, size: int, name: str, allocate: Callable[[int, str], Call], num_cores: int) -> _Way:
    def prepare() -> Call:
        torch.set_num_threads(num_cores)
        return allocate(size // 4, device)

    return _Way(size, name + ("" if device != "cpu" else _on(num_cores)), size, prepare)


def _on(num_cores: int) -> str:
    return f", {num_cores} cores" if num_cores > 1 else ", 1 core"


def _numbers_of_cores(kind: str) -> tuple[int, ...]:
    """Return on how many cores to try; floors and replays are of one."""
    return tuple(sorted({1, len(os.sched_getaffinity(0))})) if kind == "cpu" else (torch.get_num_threads(),)


def _read(num: int, device: str) -> Call:
    x = torch.ones(num, device=device)
    return lambda: x.sum()


def _copied(num: int, device: str) -> Call:
    x, y = (torch.ones(num // 2, device=device) for _ in range(2))
    return lambda: y.copy_(x)


def _triad(num: int, device: str) -> Call:
    x, y, z = (torch.ones(num // 3, device=device) for _ in range(3))
    return lambda: torch.add(x, y, alpha=3, out=z)


def _vector(num: int, device: str) -> Call:
    rows = torch.ones((num // 1024, 1024), device=device)
    x, out = torch.ones(1024, device=device), torch.empty(num // 1024, device=device)
    return lambda: torch.mv(rows, x, out=out)


@contextmanager
def _as_it_was() -> Iterator[None]:
    """Put back how torch multiplies single precision, which library it asks, and on how many cores."""
    precision, num_cores = torch.get_float32_matmul_precision(), torch.get_num_threads()
    library = torch.backends.cuda.preferred_blas_library() if torch.cuda.is_available() else None
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.set_num_threads(num_cores)
        if library is not None:
            torch.backends.cuda.preferred_blas_library(library)
