"""Recording a step as the plugin does, and reading its figures: what every stage of `gpu_check.py` needs.

In: a callable that runs one step. Out: a trace with a window a step, and medians over the steps of its breakdown.
"""

import gzip
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from taxbreak_vllm.baselines.store import Baselines
from taxbreak_vllm.model.breakdown import Breakdown, StepBreakdown
from taxbreak_vllm.replay.command import Account, replay_paths
from taxbreak_vllm.replay.runner import Limits
from taxbreak_vllm.replay.task import Options
from taxbreak_vllm.taxes.analyze import analyze

Step = Callable[[], object]
_MAX_TRACE_BYTES = 1_000_000
_MAX_TRACES = 4


@dataclass(frozen=True, slots=True)
class Lab:
    """Where to measure, and where to put what was measured; `work` is for what need not be kept."""

    device: str
    out: Path
    work: Path
    is_tiny: bool = False

    @property
    def is_gpu(self) -> bool:
        return self.device != "cpu"

    @property
    def store(self) -> Path:
        return self.work / "baselines.sqlite3"

    @property
    def options(self) -> Options:
        return Options(device=self.device, max_bytes=16 * 2**30 if self.is_gpu else 4 * 2**30, modules=("gpu_ops",))

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.is_gpu:
            torch.cuda.synchronize()

    def record(self, name: str, steps: Sequence[tuple[str, Step]], *, config: str = "") -> Path:
        """Record steps, each alone on the device and in a window of its own; return the trace."""
        activities = [torch.profiler.ProfilerActivity.CPU]
        if self.is_gpu:
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        experimental = torch._C._profiler._ExperimentalConfig(custom_profiler_config=config) if config else None
        with (
            torch.inference_mode(),
            torch.profiler.profile(
                activities=activities, record_shapes=True, experimental_config=experimental
            ) as profile,
        ):
            for label, step in steps:
                self.synchronize()
                with torch.profiler.record_function(f"taxbreak.step:{label}"):
                    step()
        path = self.work / f"{name}.json"
        profile.export_chrome_trace(str(path))
        return path

    def plain_ns(self, step: Step, count: int = 10) -> list[int]:
        """Time the step without a profiler, after as many to warm up."""
        times = []
        with torch.inference_mode():
            for number in range(2 * count):
                self.synchronize()
                begun_ns = time.perf_counter_ns()
                step()
                self.synchronize()
                if number >= count:
                    times.append(time.perf_counter_ns() - begun_ns)
        return times

    def replay(self, paths: Sequence[Path], *, seconds: float | None = None) -> Account:
        """Replay what the traces hold and the store lacks."""
        return replay_paths(paths, self.store, self.options, Limits(total_s=seconds))

    def analyze(self, path: Path) -> Breakdown:
        """Decompose a trace, with what was replayed so far."""
        with Baselines(self.store) as store:
            return analyze(path, baselines=store)

    def keep(self, path: Path) -> str | None:
        """Keep a trace beside the results, gzipped, while there is room: four, each under 1 MB."""
        kept = self.out / f"{path.stem}.json.gz"
        if len(list(self.out.glob("*.json.gz"))) >= _MAX_TRACES and not kept.exists():
            return None
        packed = gzip.compress(_without_paths(path), mtime=0)
        if len(packed) > _MAX_TRACE_BYTES:
            return None
        kept.write_bytes(packed)
        return kept.name


def _without_paths(path: Path) -> bytes:
    """A trace without what tells of the machine's files and host name."""
    tree = json.loads(path.read_text())
    for key in ("traceName", "trace_id", "distributedInfo"):
        tree.pop(key, None)
    return json.dumps(tree, separators=(",", ":")).encode()


def conservation(breakdown: Breakdown) -> list[str]:
    """Name every sum of a breakdown that does not come out to the nanosecond (methodology sections 3 and 4)."""
    wrong = []
    for step in (*breakdown.steps, breakdown.total):
        host, device = step.host, step.device
        sums = {
            "host": (sum(getattr(host, name) for name in host.__dataclass_fields__), step.window_ns),
            "device": (device.active_ns + device.other_active_ns + device.idle_ns, device.window_ns),
            "idle": (sum(getattr(device.idle, name) for name in device.idle.__dataclass_fields__), device.idle_ns),
            "exposed": (
                sum(getattr(step.exposed, name) for name in step.exposed.__dataclass_fields__),
                device.idle.host_ns,
            ),
        }
        wrong += [f"{step.name or 'total'} {name}: {a} != {b}" for name, (a, b) in sums.items() if a != b]
    return wrong


def figures(steps: Sequence[StepBreakdown], *, tokens: int | None = None) -> dict[str, Any]:
    """Medians over steps; `tokens` are the output tokens of one."""

    def of(read: Callable[[StepBreakdown], float | None]) -> float | None:
        values = [value for value in map(read, steps) if value is not None]
        return median(values) if values else None

    kernels = of(lambda s: s.kernels)
    return {
        "steps": len(steps),
        "window_ns": of(lambda s: s.window_ns),
        "device_ns": of(lambda s: s.device.active_ns),
        "ft_ns": of(lambda s: s.taxes.delta_ft_ns),
        "ct_ns": of(lambda s: s.taxes.delta_ct_ns),
        "kt_ns": of(lambda s: s.taxes.delta_kt_ns),
        "excess_ns": of(lambda s: s.taxes.delta_kt_excess_ns),
        "orchestration_ns": of(lambda s: s.taxes.orchestration_ns),
        "hdbi": of(lambda s: s.hdbi),
        "tklqt_ns": of(lambda s: s.tklqt_ns),
        "exposed_ns": of(lambda s: s.device.idle.host_ns),
        "python_ns": of(lambda s: s.host.python_ns),
        "dispatch_ns": of(lambda s: s.host.dispatch_ns),
        "library_ns": of(lambda s: s.host.library_ns),
        "launch_ns": of(lambda s: s.host.launch_ns),
        "runtime_ns": of(lambda s: s.host.runtime_ns),
        "blocked_ns": of(lambda s: s.host.blocked_ns),
        "queue_ns": of(lambda s: s.device.idle.queue_ns),
        "launches": of(lambda s: s.launches),
        "kernels": kernels,
        "kernels_per_token": None if not tokens or kernels is None else kernels / tokens,
    }


def child_environment() -> None:
    """Let the processes that replay find these modules and the package."""
    here = Path(__file__).resolve().parent
    parts = [str(here), str(here.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(parts)
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
