"""vLLM's own engine over a worker whose device is a clock: its scheduler, executors and processes run unchanged.

`prepare(folder)` once in the process that starts vLLM offline, which must fork its others; for a server it is a plugin,
and the variable SIMULATED names the folder. The worker is `WORKER`; vLLM's own option tells whether it schedules ahead.
In: `FOLDER/knobs`, which may be turned while the engine runs. Out: the files of `rig.logs`.
"""

import functools
import os
import struct
from pathlib import Path
from time import monotonic_ns
from types import SimpleNamespace
from typing import Any, NamedTuple, Self

from vllm.platforms.cpu import CpuPlatform
from vllm.v1.outputs import EMPTY_MODEL_RUNNER_OUTPUT, AsyncModelRunnerOutput, ModelRunnerOutput
from vllm.v1.worker.cpu_worker import CPUWorker

from rig import logs
from rig.device import Device
from rig.knobs import Knob, Knobs, wait_until
from rig.slow_places import slow_down
from taxbreak_vllm.iterations.spans import Int64
from taxbreak_vllm.serving.device_idle import DeviceIdle
from taxbreak_vllm.serving.engine import watch
from taxbreak_vllm.serving.engine.ring import Ring
from taxbreak_vllm.serving.worker import install
from taxbreak_vllm.serving.worker_times import NUMBER

WORKER = "rig.simulated.Worker"


class _Rig(NamedTuple):
    knobs: Knobs
    folder: Path


_rig: list[_Rig] = []  # of this process and its forks


def register() -> None:
    """Be a general plugin."""
    if not _rig:
        prepare(Path(os.environ["SIMULATED"]))


def prepare(folder: Path) -> Knobs:
    """Set this process up for one engine."""
    knobs = Knobs(folder / "knobs")
    _rig[:] = [_Rig(knobs, folder)]
    _schedule_as_told()
    slow_down(knobs)
    watch.Ring = functools.partial(RowsRing, folder / logs.ROWS)
    return knobs


def _schedule_as_told() -> None:
    """Have vLLM's platform for the CPU, which turns asynchronous scheduling off, leave it as it is."""
    check = CpuPlatform.check_and_update_config

    def check_and_update_config(config: Any) -> None:
        is_async = config.scheduler_config.async_scheduling
        check(config)
        config.scheduler_config.async_scheduling = is_async

    CpuPlatform.check_and_update_config = staticmethod(check_and_update_config)


class RowsRing(Ring):
    """The ring of an engine's loop; who takes rows from it puts them into a file too."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def take(self) -> Int64:
        rows = super().take()
        with self._path.open("ab") as file:
            file.write(rows.tobytes())
        return rows


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
        self.device = SimpleNamespace(type="simulated")  # beside the host, as a GPU is
        self._knobs, folder = _rig[0]
        self._truth = (folder / logs.TRUTH).open("ab", buffering=0)
        self._left: dict[str, int] = {}  # tokens of each prompt that are still to be computed

    def work_ns(self, scheduled: Any) -> int:
        """Return what the device takes for a step."""
        return self._knobs[Knob.DEVICE]

    def execute_model(self, scheduled: Any) -> ModelRunnerOutput | None:
        for request in scheduled.finished_req_ids:
            self._left.pop(request, None)
        if not scheduled.total_num_scheduled_tokens:
            return EMPTY_MODEL_RUNNER_OUTPUT
        self._work_ns = self.work_ns(scheduled)
        self._step = getattr(scheduled, NUMBER, 0), *self._call(0.9, Knob.WORKER)
        for request in scheduled.scheduled_new_reqs:
            self._left[request.req_id] = len(request.prompt_token_ids) - request.num_computed_tokens
        for request, num_tokens in scheduled.num_scheduled_tokens.items():
            self._left[request] -= num_tokens
        self._requests = list(scheduled.num_scheduled_tokens)
        return None

    def sample_tokens(self, grammar: Any) -> ModelRunnerOutput | AsyncModelRunnerOutput:
        truth = logs.Truth(*self._step, *self._call(0.1), self._clock.done_ns)
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
        self._clock.launch(int(self._work_ns * share))
        return begun_ns, max(0, begun_ns - done_ns)
