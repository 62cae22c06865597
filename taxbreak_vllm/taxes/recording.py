"""A trace or a capture, read but not yet decomposed: for whoever wants its columns rather than its breakdown.

In: a path. Out: `Recording`, the events and the step windows, labelled by the capture's StepInfo where there is one.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from taxbreak_vllm.model.step import StepInfo
from taxbreak_vllm.spool.capture import Capture
from taxbreak_vllm.spool.layout import STEP
from taxbreak_vllm.taxes.decompose import is_cpu_backend, is_rocm, measure
from taxbreak_vllm.taxes.measured import Measured
from taxbreak_vllm.trace.kernels import KernelRules
from taxbreak_vllm.trace.read.kineto import Events, read_events
from taxbreak_vllm.trace.steps import StepWindow, find_steps, whole_trace


@dataclass(frozen=True, slots=True)
class Recording:
    """The events of a trace; `windows` are its steps (empty: the trace names none), `info` what the worker knew."""

    events: Events
    windows: tuple[StepWindow, ...]
    info: StepInfo | None = None

    def environment(self) -> dict[str, str]:
        """What the recording tells of where it was made, as `Environment.fits` takes it; empty what it does not."""
        return told(self.events, self.info)

    def measure(self, *, rules: KernelRules | None = None, floor_ns: int | None = None) -> Measured:
        """Join, classify and apply the equations; a trace without steps is one step."""
        windows = self.windows or (whole_trace(self.events),)
        return measure(self.events, windows, rules=rules or KernelRules.load(), floor_ns=floor_ns)[0]


def read_recording(path: str | Path) -> Recording:
    """Read a trace (.json, .json.gz, .json.zst) or a capture (its folder).

    Raises TraceFormatError for a file that is missing, damaged or not a trace, SpoolError for a capture without its
    StepInfo.
    """
    path = Path(path)
    if not (path / STEP).is_file():
        events = read_events(path)
        return Recording(events, tuple(find_steps(events)))
    capture = Capture(path)
    info = capture.read_info()
    events = read_events(capture.trace_path)
    windows = tuple(dataclasses.replace(window, phase=info.phase, batch=info.batch) for window in find_steps(events))
    return Recording(events, windows, info)


def told(events: Events, info: StepInfo | None = None) -> dict[str, str]:
    """What a trace and, for a capture, its StepInfo tell of device and software; empty what they don't."""
    server = info.server if info else None
    device_type = "cpu" if is_cpu_backend(events) else "rocm" if is_rocm(events) else "cuda"
    driver = events.metadata.get("cuda_driver_version", "")
    return {
        "device_type": device_type,
        "device_name": (server.device_name if server else "") or events.device_name,
        "torch": server.torch if server else "",
        "driver": str(driver),
    }
