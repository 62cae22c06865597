"""One profiler bracket at a time around a step and its neighbours, on the steps' own thread.

A step to record comes in, a `RecordedStep` goes out: a stopped profile not yet exported, for the outbox
to store. Whatever fails here is counted by reason, logged the first time, and leaves the step as it would have been.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from taxbreak_vllm.machine.cupti import loaded_cupti_version
from taxbreak_vllm.machine.injected import injected_profiler
from taxbreak_vllm.model import cupti
from taxbreak_vllm.model.step import StepInfo
from taxbreak_vllm.serving.chosen_experts import ChosenExperts
from taxbreak_vllm.serving.drops import Drops, logger
from taxbreak_vllm.serving.kineto_log import kineto_errors, stderr_bytes
from taxbreak_vllm.serving.other_profilers import is_profiler_running
from taxbreak_vllm.serving.sampling.sampler import CaptureProgress
from taxbreak_vllm.serving.sampling.stalls import Detail
from taxbreak_vllm.serving.tokens import SampledTokens
from taxbreak_vllm.serving.torch_profile import (
    TorchProfile,
    device_type,
    has_cupti,
    is_launched_to,
    launch_kernel,
    load_profiler,
    time_empty_op,
)

STEP_ANNOTATION = "taxbreak.step:"
BEFORE_ANNOTATION = "taxbreak.neighbour:before"
AFTER_ANNOTATION = "taxbreak.neighbour:after"
ENGINE_ANNOTATION = "taxbreak.engine"

FIRST_START = (
    "the profiler has not started yet: its first start takes seconds, within the first step that is recorded, and "
    "CUPTI then stays attached to the server, which may slow it down even while nothing is recorded"
)


class Profile(Protocol):
    """One profiler run: begun and ended on one thread, exported once on any; spans nest, and it begins with one."""

    stop_ns: int

    def start(self) -> None: ...
    def enter(self, name: str) -> None: ...
    def leave(self) -> None: ...
    def stop(self) -> None: ...
    def num_device_records(self) -> int: ...
    def export(self, path: Path) -> None: ...


@dataclass(frozen=True, slots=True)
class RecordedStep:
    """A recorded step on its way to the spool, its tokens perhaps still on theirs from the device.

    `experts` are those that its routers chose, yet to be counted.
    """

    info: StepInfo
    profile: Profile
    progress: CaptureProgress | None
    tokens: SampledTokens
    experts: ChosenExperts | None = None


@dataclass(frozen=True, slots=True)
class Torch:
    """What a recorder asks of torch; one value each, so that a test can stand in for a device it does not have."""

    open_profile: Callable[..., Profile] = TorchProfile
    is_taken: Callable[[Any], bool] = is_profiler_running
    time_op: Callable[[], int] = time_empty_op
    load: Callable[[], None] = load_profiler
    launch_kernel: Callable[[Any], None] = launch_kernel
    has_cupti: Callable[[str], bool] = has_cupti
    cupti_version: Callable[[], int | None] = loaded_cupti_version


class Recorder:
    """Opens and closes the bracket around a step; there is at most one.

    `num_sessions` counts the profiler's starts; CUPTI is attached from the first of a CUDA device on.
    """

    def __init__(
        self, drops: Drops, *, torch: Torch = Torch(), find_injected: Callable[[], str | None] = injected_profiler
    ) -> None:
        self._drops = drops
        self._torch = torch
        self._injected = find_injected()
        self._is_warm = False
        self._failure: str | None = None
        self._profile: Profile | None = None
        self._op_costs_ns: Mapping[Detail, int | None] = {}
        self.num_sessions = 0
        self.is_cupti_attached = False
        self.cupti_version: int | None = None

    def load(self) -> None:
        """Import what the first profiler start would: nearly all of its two seconds, and any thread may do it."""
        try:
            self._torch.load()
        except Exception as error:
            logger.debug("taxbreak: loading the profiler: %r", error)

    def warm(self, worker: Any) -> bool:  # noqa: ANN401 - a vLLM worker
        """Start and stop the profiler, before the first step is recorded; learn what it adds to an op.

        False where it brings no record of the worker's device: then none of its recordings would be true.
        """
        if self._is_warm:
            return self._failure is None
        kind, since = device_type(worker), stderr_bytes()
        try:
            if self._injected or self._torch.is_taken(worker):
                return True  # the next step to record tries again
            self._is_warm = True
            if not is_launched_to(kind):
                # two lines of tracing probes at every start, at a level above errors, which without a device are none
                os.environ.setdefault("KINETO_LOG_LEVEL", "6")
            if self._torch.has_cupti(kind):
                # attached once, it stays: taking it away crashes behind CUDA graphs before 12.6 and races after
                os.environ.setdefault("TEARDOWN_CUPTI", "0")
            self._op_costs_ns = {detail: self._try(worker, detail) for detail in (Detail.SHAPES, Detail.TIMES)}
        except Exception as error:
            self._close()
            if is_launched_to(kind):
                self._failure = f"the profiler brings no record of a kernel on {worker.device}: {error}"
                logger.warning("taxbreak: %s, so no step is recorded; %s", self._failure, kineto_errors(since))
            else:
                logger.debug("taxbreak: the profiler does not start: %r", error)
        if self.is_cupti_attached:
            self.cupti_version = self._torch.cupti_version()
            if fault := cupti.faults(self.cupti_version):
                logger.warning("taxbreak: %s", fault)
        return self._failure is None

    def op_cost_ns(self, detail: Detail) -> int | None:
        """Return what the profiler adds to an op; what stacks add to that is not measured."""
        return self._op_costs_ns.get(Detail.TIMES if detail is Detail.TIMES else Detail.SHAPES)

    def notes(self, kind: str) -> tuple[str, ...]:
        """Say what whoever reads figures of this kind of device should know, or whoever turns recording on."""
        is_late = self.num_sessions == 0 and self._torch.has_cupti(kind)
        said = (self._failure, cupti.faults(self.cupti_version), FIRST_START if is_late else None)
        return tuple(note for note in said if note)

    def _try(self, worker: Any, detail: Detail) -> int | None:  # noqa: ANN401 - a vLLM worker
        """Profile a kernel, which must come back; return what profiling adds to an op in ns, None where that fails."""
        kind = device_type(worker)
        profile = self._profile = self._torch.open_profile("warm-up", detail=detail, device_type=kind, is_read=True)
        self._begin(profile, kind)
        if is_launched_to(kind):
            self._torch.launch_kernel(worker)
        recorded_ns = self._time_op()
        self._profile = None
        profile.stop()
        if is_launched_to(kind) and not profile.num_device_records():
            raise LookupError("one ran and left none")
        plain_ns = self._time_op()
        return None if recorded_ns is None or plain_ns is None else max(0, recorded_ns - plain_ns)

    def _time_op(self) -> int | None:
        try:
            return self._torch.time_op()
        except Exception as error:
            logger.debug("taxbreak: the profiler's cost per op is unknown: %r", error)
            return None

    def _begin(self, profile: Profile, kind: str) -> None:
        self.num_sessions += 1
        profile.start()
        self.is_cupti_attached = self.is_cupti_attached or self._torch.has_cupti(kind)

    def start(self, worker: Any, span: str, *, detail: Detail) -> bool:  # noqa: ANN401 - a vLLM worker
        """Open the bracket and its first span; False where the profiler is taken or fails."""
        try:
            if self._injected or self._torch.is_taken(worker):
                why = f"as {self._injected} names another" if self._injected else "while another runs in this process"
                self._drops.add("vllm_profiler", f"{why}, and there is room for one profiler")
                return False
            kind = device_type(worker)
            self._profile = self._torch.open_profile(span, detail=detail, device_type=kind)
            self._begin(self._profile, kind)
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
