"""Ops with a cost that is known because we put it there; importing this registers them as `taxbreak_check::`.

`dispatch` waits D µs before it launches an elementwise kernel, `library` before it launches a GEMM, `launch` starts its
kernel behind D µs of work on another stream, so that the way from launch to start is that much longer.
"""

import time

import torch

_LIBRARY = torch.library.Library("taxbreak_check", "DEF")
_side: dict[int, torch.cuda.Stream] = {}


class Waited:
    """How long was really waited so far: on a busy machine that is more than was asked for."""

    total_ns = 0


def spin(wait_ns: int) -> None:
    """Keep this thread busy."""
    begun_ns = now_ns = time.perf_counter_ns()
    while now_ns - begun_ns < wait_ns:
        now_ns = time.perf_counter_ns()
    Waited.total_ns += now_ns - begun_ns


def _dispatch(x: torch.Tensor, us: int) -> torch.Tensor:
    spin(us * 1000)
    return torch.neg(x)


def _library(x: torch.Tensor, us: int) -> torch.Tensor:
    spin(us * 1000)
    return torch.mm(x, x)


def _launch(x: torch.Tensor, cycles: int) -> torch.Tensor:
    if not x.is_cuda:
        raise ValueError("only a GPU has a launch path")
    main = torch.cuda.current_stream()
    side = _side.setdefault(x.device.index, torch.cuda.Stream(x.device))
    side.wait_stream(main)
    with torch.cuda.stream(side):
        torch.cuda._sleep(cycles)
    main.wait_stream(side)
    return torch.neg(x)


for _name, _call, _argument in (
    ("dispatch", _dispatch, "us"),
    ("library", _library, "us"),
    ("launch", _launch, "cycles"),
):
    _LIBRARY.define(f"{_name}(Tensor x, int {_argument}) -> Tensor")
    _LIBRARY.impl(_name, _call, "CompositeExplicitAutograd")
