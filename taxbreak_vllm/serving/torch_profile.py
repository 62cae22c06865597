"""torch.profiler as a recorder uses it: the detail and the device wanted in, a trace file out."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

from taxbreak_vllm.serving.sampling.stalls import Detail

_ACTIVITIES = {"cuda": "CUDA", "xpu": "XPU"}  # torch calls AMD's devices cuda too


class DeviceUnseenError(Exception):
    """This torch does not record what the worker's device does."""


class TorchProfile:
    """torch.profiler; its spans are annotations in the trace, that of the step recorded `taxbreak.step:<step id>`.

    `device_type` is torch's word for the device that the worker computes on, which is always recorded: a first profile
    without it can leave Kineto without CUPTI for good. Raises DeviceUnseenError where this torch cannot. `is_read` is
    for one whose events are looked at here. `stop_ns` is what stopping took, without waiting for the device.
    """

    def __init__(
        self, span: str, *, detail: Detail = Detail.SHAPES, device_type: str = "cpu", is_read: bool = False
    ) -> None:
        from torch.profiler import ProfilerActivity, profile, supported_activities

        activities = {ProfilerActivity.CPU}
        if (name := _ACTIVITIES.get(device_type)) is not None:
            activities.add(getattr(ProfilerActivity, name))
        if missing := activities - supported_activities():
            raise DeviceUnseenError(f"this torch has no {', '.join(sorted(activity.name for activity in missing))}")
        self._profile = profile(
            activities=activities,
            record_shapes=detail is not Detail.TIMES,
            with_stack=detail is Detail.STACKS,
            experimental_config=_config(
                trace_only=not is_read and detail is not Detail.STACKS,
                enable_cuda_sync_events=has_cupti(device_type),
            ),
        )
        self._device_type = device_type
        self._first_span = span
        self._spans: list[AbstractContextManager[object]] = []
        self.stop_ns = 0

    def start(self) -> None:
        self._profile.start()
        self.enter(self._first_span)

    def enter(self, name: str) -> None:
        from torch.profiler import record_function

        span = record_function(name)
        span.__enter__()
        self._spans.append(span)

    def leave(self) -> None:
        self._spans.pop().__exit__(None, None, None)

    def stop(self) -> None:
        try:
            while self._spans:
                self.leave()
            if self._device_type in _ACTIVITIES:  # as torch would itself, but not in `stop_ns`
                synchronize(self._device_type)
        finally:
            begun_ns = time.perf_counter_ns()
            self._profile.stop()
            self.stop_ns = time.perf_counter_ns() - begun_ns

    def num_device_records(self) -> int:
        """Return how many records of the device's work came back; only for one that `is_read`, once it has stopped."""
        from torch.autograd import DeviceType

        results: Any = self._profile.profiler
        return sum(event.device_type() != DeviceType.CPU for event in results.kineto_results.events())

    def export(self, path: Path) -> None:
        try:
            self._profile.export_chrome_trace(str(path))
        finally:
            self._free()

    def __del__(self) -> None:
        self._free()

    def _free(self) -> None:
        # torch's object refers to itself: left to the collector of old objects, which seldom comes in a server, each
        # would hold its whole recording, some 20 kB to 100 kB, for hours
        vars(vars(self).get("_profile", self)).clear()


def _config(**wanted: bool) -> Any:  # noqa: ANN401 - an _ExperimentalConfig
    """Ask torch for as much of what is wanted as it offers; None where that is nothing.

    `trace_only` (since 2.13): to build no objects for Python, a fifth of a stop. `enable_cuda_sync_events` (since 2.1):
    to record which event or stream each wait was for.
    """
    from torch._C._profiler import _ExperimentalConfig

    offered: dict[str, Any] = {}
    for option in (option for option, is_wanted in wanted.items() if is_wanted):
        with suppress(TypeError):
            _ExperimentalConfig(**offered, **dict[str, Any]({option: True}))
            offered[option] = True
    return _ExperimentalConfig(**offered) if offered else None


def device_type(worker: Any) -> str:  # noqa: ANN401 - a vLLM worker
    """Return torch's word for the device of a worker, empty where it has none yet."""
    return str(getattr(getattr(worker, "device", None), "type", ""))


def is_launched_to(kind: str) -> bool:
    """Tell a device that work is launched to, and whose records the profiler asks for."""
    return kind in _ACTIVITIES


def launch_kernel(worker: Any) -> None:  # noqa: ANN401 - a vLLM worker
    """Run a small kernel on a worker's device, to its end."""
    import torch

    torch.zeros(1, device=worker.device).add_(1)
    synchronize(device_type(worker))


def synchronize(kind: str) -> None:
    """Wait for the current device of this kind."""
    import torch

    getattr(torch, kind).synchronize()


def has_cupti(kind: str) -> bool:
    """Tell whether this torch records a device through CUPTI."""
    if kind != "cuda":
        return False
    import torch

    return torch.version.hip is None


def load_profiler() -> None:
    """Import what torch.profiler imports when it starts for the first time."""
    import torch._inductor.config  # noqa: F401


def time_empty_op(now_ns: Callable[[], int] = time.perf_counter_ns, *, batches: int = 21, calls: int = 8) -> int:
    """Time an op that does nothing, in ns: the median over batches (about 1 ms in all).

    What the profiler adds to an op grows with what there is to record, so these are of the kinds a step has most.
    """
    import torch

    empty, aten = torch.empty(0), torch.ops.aten

    def call_five() -> None:
        aten.slice.Tensor(empty, 0, 0, 0, 1)  # as_strided is another
        aten.add_.Tensor(empty, empty)
        aten.copy_.default(empty, empty, True)
        aten.view.default(empty, [0])

    with torch.inference_mode():
        call_five()
        times_ns = []
        for _ in range(batches):
            begun_ns = now_ns()
            for _ in range(calls):
                call_five()
            times_ns.append((now_ns() - begun_ns) // (5 * calls))
    return sorted(times_ns)[batches // 2]
