"""One profiler bracket at a time around a step and its neighbours, on the steps' own thread.

A step to record comes in, a `RecordedStep` goes out: a stopped profile not yet exported, for the outbox
to store. Whatever fails here is counted by reason, logged the first time, and leaves the step as it would have been.
"""

import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from taxbreak_vllm.model.step import StepInfo
from taxbreak_vllm.serving.drops import Drops, logger
from taxbreak_vllm.serving.other_profilers import injected_profiler, is_profiler_running
from taxbreak_vllm.serving.sampling.sampler import CaptureProgress
from taxbreak_vllm.serving.tokens import SampledTokens

STEP_ANNOTATION = "taxbreak.step:"
BEFORE_ANNOTATION = "taxbreak.neighbour:before"
AFTER_ANNOTATION = "taxbreak.neighbour:after"
ENGINE_ANNOTATION = "taxbreak.engine"

_ACTIVITIES = {"cuda": "CUDA", "xpu": "XPU"}  # torch calls AMD's devices cuda too


class Profile(Protocol):
    """One profiler run: begun and ended on one thread, exported once on any; spans nest, and it begins with one."""

    def start(self) -> None: ...
    def enter(self, name: str) -> None: ...
    def leave(self) -> None: ...
    def stop(self) -> None: ...
    def export(self, path: Path) -> None: ...


@dataclass(frozen=True, slots=True)
class RecordedStep:
    """A recorded step on its way to the spool, its tokens perhaps still on theirs from the device."""

    info: StepInfo
    profile: Profile
    progress: CaptureProgress | None
    tokens: SampledTokens


class TorchProfile:
    """torch.profiler; its spans are annotations in the trace, that of the step recorded `taxbreak.step:<step id>`.

    `device_type` is torch's word for the device that the worker computes on; what that runs is recorded where this
    torch can.
    """

    def __init__(self, span: str, *, stacks: bool, device_type: str = "cpu") -> None:
        from torch.profiler import ProfilerActivity, profile, supported_activities

        activities = {ProfilerActivity.CPU}
        if (name := _ACTIVITIES.get(device_type)) is not None:
            activities |= {getattr(ProfilerActivity, name)} & supported_activities()
        self._profile = profile(activities=activities, record_shapes=True, with_stack=stacks)
        self._first_span = span
        self._spans: list[AbstractContextManager[object]] = []

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
        finally:
            self._profile.stop()

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


def device_type(worker: Any) -> str:  # noqa: ANN401 - a vLLM worker
    """Return torch's word for the device of a worker, empty where it has none yet."""
    return str(getattr(getattr(worker, "device", None), "type", ""))


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


class Recorder:
    """Opens and closes the bracket around a step; there is at most one."""

    def __init__(
        self,
        drops: Drops,
        *,
        open_profile: Callable[..., Profile] = TorchProfile,
        is_taken: Callable[[Any], bool] = is_profiler_running,
        find_injected: Callable[[], str | None] = injected_profiler,
        time_op: Callable[[], int] = time_empty_op,
        load: Callable[[], None] = load_profiler,
    ) -> None:
        self._drops = drops
        self._open_profile = open_profile
        self._is_taken = is_taken
        self._injected = find_injected()
        self._time_op = time_op
        self._load = load
        self._is_warm = False
        self._profile: Profile | None = None
        self.op_cost_ns: int | None = None

    def load(self) -> None:
        """Import what the first profiler start would: nearly all of its two seconds, and any thread may do it."""
        try:
            self._load()
        except Exception as error:
            logger.debug("taxbreak: loading the profiler: %r", error)

    def warm(self, worker: Any) -> None:  # noqa: ANN401 - a vLLM worker
        """Start and stop the profiler once, before the first step is recorded; learn what it adds to an op."""
        if self._is_warm:
            return
        # kineto writes two lines of tracing probes to stderr at every start, at a level above its errors
        os.environ.setdefault("KINETO_LOG_LEVEL", "6")
        try:
            if self._injected or self._is_taken(worker):
                return  # the next step to record tries again
            self._is_warm = True
            self._profile = self._open_profile("warm-up", stacks=False, device_type=device_type(worker))
            self._profile.start()
            recorded_ns = self._time_op()
            self._close()
            self.op_cost_ns = max(0, recorded_ns - self._time_op())
        except Exception as error:
            logger.debug("taxbreak: the profiler's cost per op is unknown: %r", error)
            self._close()

    def start(self, worker: Any, span: str, *, stacks: bool) -> bool:  # noqa: ANN401 - a vLLM worker
        """Open the bracket and its first span; False where the profiler is taken or fails."""
        try:
            if self._injected or self._is_taken(worker):
                why = f"as {self._injected} names another" if self._injected else "while another runs in this process"
                self._drops.add("vllm_profiler", f"{why}, and there is room for one profiler")
                return False
            self._profile = self._open_profile(span, stacks=stacks, device_type=device_type(worker))
            self._profile.start()
        except Exception as error:
            self._drops.add("profiler", repr(error))
            self._close()
            return False
        return True

    def enter(self, name: str) -> None:
        """Begin a span of what is being recorded; does nothing outside a bracket."""
        self._mark(lambda profile: profile.enter(name))

    def leave(self) -> None:
        """End the span begun last."""
        self._mark(lambda profile: profile.leave())

    def _mark(self, act: Callable[[Profile], None]) -> None:
        if self._profile is None:
            return
        try:
            act(self._profile)
        except Exception as error:
            self._drops.add("profiler", repr(error))
            self._close()

    def stop(self) -> Profile | None:
        """Close the bracket and return what it held; None where the profiler fails."""
        profile, self._profile = self._profile, None
        try:
            if profile is not None:
                profile.stop()
        except Exception as error:
            self._drops.add("profiler", repr(error))
            return None
        return profile

    def discard(self, reason: str, detail: object = "") -> None:
        """Close the bracket, if one is open, and count its step as lost."""
        if self._profile is not None:
            self._drops.add(reason, detail)
            self._close()

    def _close(self) -> None:
        profile, self._profile = self._profile, None
        if profile is None:
            return
        try:
            profile.stop()
        except Exception as error:
            logger.debug("taxbreak: stopping a failed profile: %r", error)
