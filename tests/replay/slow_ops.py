"""Ops whose costs are known, and recorded traces of loops over them; `--import slow_ops` registers them in a child.

On the CPU the work is one `memset`, which is no op of torch, so that the op itself is what computes. On a GPU it is a
kernel of ATen's, `neg` after `wait` and `exp` after `library`.
"""

import ctypes
import gc
import os
import time
from pathlib import Path

import torch

_LIBRARY = torch.library.Library("slow", "FRAGMENT")


def busy(us):
    """Keep the processor busy for so many µs."""
    until_ns = time.perf_counter_ns() + us * 1000
    while time.perf_counter_ns() < until_ns:
        pass


def _work(x, kernel):
    if x.is_cuda:
        kernel(x)
    else:
        ctypes.memset(x.data_ptr(), 0, x.nbytes)


def _wait(x, us):
    busy(us)
    _work(x, torch.Tensor.neg_)


def _library(x, us):
    if x.numel():  # a front-end is paid only where there is something to do
        busy(us)
    _work(x, torch.Tensor.exp_)


def _nested(x, us):
    busy(us)
    torch.ops.slow.wait(x, 0)


def _hang(x):
    while True:
        time.sleep(1)


def _say_much(x):
    os.write(1, b"much " * 10**4)
    os.write(2, b"more " * 10**4)


def _raise(x):
    raise ValueError("never again\nnor this")


_IMPLEMENTED = {
    "wait(Tensor(a!) x, int us) -> ()": _wait,
    "library(Tensor(a!) x, int us) -> ()": _library,
    "nested(Tensor(a!) x, int us) -> ()": _nested,
    "segfault(Tensor x) -> ()": lambda x: ctypes.string_at(0),
    "hang(Tensor x) -> ()": _hang,
    "exit(Tensor x) -> ()": lambda x: os._exit(7),
    "say_much(Tensor x) -> ()": _say_much,
    "fail(Tensor x) -> ()": _raise,
    "want(Tensor x) -> ()": lambda x: torch.empty(2**40, dtype=torch.uint8, device=x.device).zero_() and None,
}
for _schema, _call in _IMPLEMENTED.items():
    _LIBRARY.define(_schema)
    _LIBRARY.impl(_schema.partition("(")[0], _call, "CompositeExplicitAutograd")


def record(path: Path, steps, device="cpu"):
    """Profile steps, given as (name, what to call) pairs, one annotation each."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device != "cpu":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    for _, call in steps[:20]:
        call()
    gc.disable()  # of a process that has run other tests, a collection takes as long as many steps
    try:
        with torch.inference_mode(), torch.profiler.profile(activities=activities, record_shapes=True) as profile:
            for name, call in steps:
                with torch.profiler.record_function("taxbreak.step:" + name):
                    call()
                if device != "cpu":
                    torch.cuda.synchronize()
    finally:
        gc.enable()
    profile.export_chrome_trace(str(path))
    return path
