"""vLLM's own engine over a worker whose device is a clock: its scheduler, executors and processes run unchanged.

`prepare(folder)` once in the process that starts vLLM, which must fork its others; its worker is `WORKER`. In: `knobs`,
which may be turned while the engine runs. Out: in `truth` what the device did in each step, and in `rows` the stamps of
each turn of the engine's loop, as numbers of 64 bits.
"""

import functools
import mmap
import struct
import time
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path
from time import monotonic_ns
from typing import Any, NamedTuple, Self

from vllm.platforms.cpu import CpuPlatform
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine.core import EngineCoreProc
from vllm.v1.outputs import EMPTY_MODEL_RUNNER_OUTPUT, AsyncModelRunnerOutput, ModelRunnerOutput
from vllm.v1.worker.cpu_worker import CPUWorker

from rig.device import Device
from taxbreak_vllm.serving.device_idle import DeviceIdle
from taxbreak_vllm.serving.engine import watch
from taxbreak_vllm.serving.engine.ring import Ring
from taxbreak_vllm.serving.worker import install
from taxbreak_vllm.serving.worker_times import NUMBER

WORKER = "rig.simulated.Worker"
_WAKE_NS = 150_000  # a thread may sleep so much too long


class Knob(IntEnum):
    """What may be turned, all ns: the device's time of a step, the host's to launch it, and delays."""

    DEVICE = 0
    LAUNCH = 1
    SCHEDULE = 2
    GRAMMAR = 3
    UPDATE = 4
    POST = 5
    WORKER = 6


class Truth(NamedTuple):
    """What one step was: when the host came to each of its calls, and how long the device had been idle by then."""

    number: int
    execute_ns: int
    idle_ns: int
    sample_ns: int
    sample_idle_ns: int
    done_ns: int


def wait_until(at_ns: int) -> None:
    """Return at that time and hardly later, leaving the processor to others until shortly before."""
    if (ahead_ns := at_ns - monotonic_ns() - _WAKE_NS) > 0:
        time.sleep(ahead_ns / 1e9)
    while monotonic_ns() < at_ns:
        pass


class Knobs:
    """Integers that several processes share."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(bytes(8 * len(Knob)))
        with path.open("r+b") as file:
            self._values = memoryview(mmap.mmap(file.fileno(), 8 * len(Knob))).cast("q")

    def turn(self, **values_ns: int) -> None:
        """Set the knobs named, and all others to 0."""
        for knob in Knob:
            self._values[knob] = values_ns.get(knob.name.lower(), 0)

    def spend(self, knob: Knob) -> None:
        """Keep this thread for as long as a knob says."""
        wait_until(monotonic_ns() + self._values[knob])

    def __getitem__(self, knob: Knob) -> int:
        return self._values[knob]


class _Rig(NamedTuple):
    knobs: Knobs
    folder: Path


_rig: list[_Rig] = []  # of this process and its forks


def prepare(folder: Path, *, is_async: bool) -> Knobs:
    """Set this process up for one engine, with asynchronous scheduling or without."""
    knobs = Knobs(folder / "knobs")
    _rig[:] = [_Rig(knobs, folder)]
    _schedule_ahead(is_async)
    for place, name, knob in (
        (Scheduler, "schedule", Knob.SCHEDULE),
        (Scheduler, "get_grammar_bitmask", Knob.GRAMMAR),
        (Scheduler, "update_from_output", Knob.UPDATE),
        (EngineCoreProc, "post_step", Knob.POST),
    ):
        _delay(place, name, functools.partial(knobs.spend, knob))
    watch.Ring = functools.partial(RowsRing, folder / "rows")
    return knobs


def _schedule_ahead(is_async: bool) -> None:
    """Have vLLM's platform for the CPU leave asynchronous scheduling as it is wanted, which it turns off."""
    check = CpuPlatform.check_and_update_config

    def check_and_update_config(config: Any) -> None:
        check(config)
        config.scheduler_config.async_scheduling = is_async

    CpuPlatform.check_and_update_config = staticmethod(check_and_update_config)


def _delay(place: type, name: str, spend: Callable[[], None]) -> None:
    call = getattr(place, name)

    @functools.wraps(call)
    def delayed(*args: Any, **kwargs: Any) -> Any:
        spend()
        return call(*args, **kwargs)

    setattr(place, name, delayed)


class RowsRing(Ring):
    """The ring of an engine's loop, which keeps all rows in a file too."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._file = path.open("ab", buffering=0)

    def write(self, row: list[int]) -> None:
        super().write(row)
        self._file.write(struct.pack(f"={len(row)}q", *row))


class Output(AsyncModelRunnerOutput):
    """Tokens that are on the host once the device is done."""

    def __init__(self, output: ModelRunnerOutput, done_ns: int) -> None:
        self._output, self._done_ns = output, done_ns

    def get_output(self) -> ModelRunnerOutput:
        wait_until(self._done_ns)
        return self._output


class Worker(CPUWorker):
    """Launches the work of a step to the device, nine tenths in `execute_model`; its tokens are all the same."""

    def __new__(cls, *args: object, **kwargs: object) -> Self:
        worker = object.__new__(cls)
        worker._clock = Device()
        install(worker, open_device_idle=lambda _: DeviceIdle(worker._clock.event, steps_between=lambda: 0))
        return worker

    def load_model(self, **kwargs: Any) -> None:
        super().load_model(**kwargs)
        self._knobs, folder = _rig[0]
        self._truth = (folder / "truth").open("ab", buffering=0)
        self._left: dict[str, int] = {}  # tokens of each prompt that are still to be computed

    def execute_model(self, scheduled: Any) -> ModelRunnerOutput | None:
        for request in scheduled.finished_req_ids:
            self._left.pop(request, None)
        if not scheduled.total_num_scheduled_tokens:
            return EMPTY_MODEL_RUNNER_OUTPUT
        self._step = getattr(scheduled, NUMBER, 0), *self._call(0.9, Knob.WORKER)
        for request in scheduled.scheduled_new_reqs:
            self._left[request.req_id] = len(request.prompt_token_ids) - request.num_computed_tokens
        for request, num_tokens in scheduled.num_scheduled_tokens.items():
            self._left[request] -= num_tokens
        self._requests = list(scheduled.num_scheduled_tokens)
        return None

    def sample_tokens(self, grammar: Any) -> ModelRunnerOutput | AsyncModelRunnerOutput:
        truth = Truth(*self._step, *self._call(0.1), self._clock.done_ns)
        self._truth.write(struct.pack(f"={len(truth)}q", *truth))
        output = ModelRunnerOutput(
            req_ids=self._requests,
            req_id_to_index={request: place for place, request in enumerate(self._requests)},
            sampled_token_ids=[[65] if self._left[request] <= 0 else [] for request in self._requests],
        )
        later = Output(output, self._clock.done_ns)
        return later if self.vllm_config.scheduler_config.async_scheduling else later.get_output()

    def _call(self, share: float, *delays: Knob) -> tuple[int, int]:
        """Launch a share of a step's work; return when the call began and how long the device was idle by then."""
        begun_ns, done_ns = monotonic_ns(), self._clock.done_ns
        for knob in (Knob.LAUNCH, *delays):
            self._knobs.spend(knob)
        self._clock.launch(int(self._knobs[Knob.DEVICE] * share))
        return begun_ns, max(0, begun_ns - done_ns)
