"""The process that replays: tasks come in as JSON lines, results go out so, and whatever a task does stays in here.

`python -m taxbreak_vllm.replay.child RESULT_FD`; standard input brings first the `Options`, then a `Task` a line.
Results go to a pipe of their own, since what is replayed may print. The process ends with its input or its parent.
"""

import os
import resource
import sys
import time
from pathlib import Path
from typing import IO

import msgspec

from taxbreak_vllm.machine.parent import die_with_parent
from taxbreak_vllm.model.baseline import Baseline, Environment, Floors
from taxbreak_vllm.model.ceilings import MeasuredCeilings
from taxbreak_vllm.replay.task import Options, Task

_MAX_FILE_BYTES = 2**30  # what is replayed may print without end


class Ready(msgspec.Struct, frozen=True, kw_only=True):
    """The first line: where the replays take place."""

    environment: Environment
    cpu_ns: int


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """A task's entries, or floors and ceilings where those were asked for; `cpu_ns` is what the process has used.

    `is_spent` says that this process can replay nothing more, as after a fault of the device.
    """

    entries: tuple[Baseline, ...] = ()
    floors: Floors | None = None
    ceilings: MeasuredCeilings | None = None
    cpu_ns: int = 0
    is_spent: bool = False


def main(result_fd: int) -> int:
    """Serve tasks until standard input ends."""
    die_with_parent()
    options = msgspec.json.decode(sys.stdin.buffer.readline(), type=Options)
    os.nice(options.niceness)
    resource.setrlimit(resource.RLIMIT_FSIZE, (_MAX_FILE_BYTES, _MAX_FILE_BYTES))
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # two lines of tracing probes at every profiler start otherwise
    with os.fdopen(result_fd, "wb", buffering=0) as out:
        from taxbreak_vllm.replay.floors import here, measure_floors
        from taxbreak_vllm.replay.measure import Gauge, measure, warm_up

        _take_device(options.device, options.max_bytes)
        warm_up(options)
        gauge = Gauge()
        _send(out, Ready(environment=here(options.device), cpu_ns=time.process_time_ns()))
        decoder = msgspec.json.Decoder(Task | None)
        for line in sys.stdin.buffer:
            task = decoder.decode(line)
            if task is None:
                floors, ceilings = measure_floors(options.device), _ceilings(options)
                _send(out, Result(floors=floors, ceilings=ceilings, cpu_ns=time.process_time_ns()))
                continue
            _limit_host(options.max_bytes)
            entries = tuple(measure(task, options, gauge=gauge))
            is_spent = options.device != "cpu" and any(_is_device_fault(entry.reason) for entry in entries)
            _send(out, Result(entries=entries, cpu_ns=time.process_time_ns(), is_spent=is_spent))
    return 0


def _ceilings(options: Options) -> MeasuredCeilings | None:
    if not options.ceilings_s:
        return None
    from taxbreak_vllm.replay.ceilings import measure_ceilings
    from taxbreak_vllm.replay.floors import shortest_kernel_ns

    shortest_ns = None if options.device == "cpu" else shortest_kernel_ns()
    return measure_ceilings(options.device, options.ceilings_s, shortest_kernel_ns=shortest_ns)


def _send(out: IO[bytes], message: msgspec.Struct) -> None:
    out.write(msgspec.json.encode(message) + b"\n")


def _limit_host(max_bytes: int) -> None:
    """Let the process hold `max_bytes` more data than now: an allocation beyond that fails."""
    lines = Path("/proc/self/status").read_text().splitlines()
    data_kib = next(int(line.split()[1]) for line in lines if line.startswith("VmData:"))
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (data_kib * 1024 + max_bytes, hard))


def _take_device(device: str, max_bytes: int) -> None:
    """Make the device the current one of this thread, and let the process hold `max_bytes` on it."""
    if device != "cpu":
        import torch

        index = torch.device(device).index or 0  # torch refuses "cuda" here, which names no one device
        if index >= torch.cuda.device_count():
            sys.exit(f"torch {torch.__version__} has no {device} here; choose another --device")
        torch.cuda.set_device(index)
        total = torch.cuda.get_device_properties(index).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, max_bytes / total), index)


def _is_device_fault(reason: str) -> bool:
    return "CUDA error" in reason or "HIP error" in reason or "device-side assert" in reason


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
