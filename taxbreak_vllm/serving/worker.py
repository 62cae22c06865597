"""Hooks on a vLLM worker: each step is timed, a few are recorded, and nothing of ours reaches vLLM as an error.

`--worker-extension-cls taxbreak_vllm.WorkerExtension` makes vLLM append the class to the worker's bases before it is
built (vllm/v1/worker/worker_base.py, init_worker). Building it then runs our `__new__`, which puts hooks on the new
object alone: no code of vLLM is changed. The hooks sleep until warm-up is over and the first real request comes.
"""

import os
import re
import socket
import sys
import weakref
from collections.abc import Callable
from typing import Any, Self

import msgspec

from taxbreak_vllm.machine.processor import processor_name
from taxbreak_vllm.model.errors import SettingsError
from taxbreak_vllm.model.step import Server
from taxbreak_vllm.serving import build, device_idle, device_properties, model_shape
from taxbreak_vllm.serving.device_idle import DeviceIdle
from taxbreak_vllm.serving.drops import logger
from taxbreak_vllm.serving.sampling.policy import LOCKSTEP
from taxbreak_vllm.serving.server_settings import settings_of
from taxbreak_vllm.serving.steps import GraphModes, ScheduledStep, is_real
from taxbreak_vllm.serving.torch_profile import device_type
from taxbreak_vllm.serving.watch import Watch
from taxbreak_vllm.serving.worker_times import StepTimes
from taxbreak_vllm.settings import load_settings


class WorkerExtension:
    """Name it as vLLM's worker extension: its workers then time every step and record some."""

    def __new__(cls, *args: object, **kwargs: object) -> Self:
        worker = object.__new__(cls)  # not super(): `plugin` lends this to classes that don't descend from here
        install(worker)
        return worker


def open_watch(worker: Any) -> Watch | None:  # noqa: ANN401 - a vLLM worker
    """Read the settings and start a watch over a worker that has its device and model; None where that fails."""
    try:
        if is_passed_by(worker.vllm_config):
            raise SettingsError(
                "VLLM_USE_RAY_V2_EXECUTOR_BACKEND=0: Ray's first executor calls the model past its worker"
            )
        settings = load_settings()
        off_reason = LOCKSTEP if is_led(worker) else None
        records = off_reason is None and may_record(worker, all_ranks=settings.record_all_ranks)
        watch = Watch(
            describe(worker),
            settings,
            graph_modes=GraphModes.from_config(worker.vllm_config.compilation_config),
            records=records,
            off_reason=off_reason,
            works_ahead=works_ahead(worker),
            server_settings=settings_of(worker.vllm_config),
            model=model_shape.shape_of(worker),
            device=device_properties.properties_of(getattr(worker, "device", None), _device_name(worker)),
        )
        watch.start(worker)
    except SettingsError as error:
        logger.warning("taxbreak: %s; steps are neither timed nor recorded", error)
        return None
    except Exception as error:
        logger.warning("taxbreak: steps are neither timed nor recorded: %r", error, exc_info=error)
        return None
    weakref.finalize(worker, watch.close)
    logger.info(
        "taxbreak: timing every step, recording %s, spool %s",
        f"one in {settings.sample_every} of each kind" if settings.enabled and records else "none",
        settings.spool,
    )
    return watch


def open_device_idle(worker: Any) -> DeviceIdle | None:  # noqa: ANN401 - a vLLM worker that has its device
    """Prepare the events of a worker's device; None where it has none, or the settings leave it alone."""
    return device_idle.open_device_idle(worker) if load_settings().device_events else None


def install(
    worker: Any,  # noqa: ANN401 - a vLLM worker, not yet initialized
    *,
    open_watch: Callable[[Any], Watch | None] = open_watch,
    open_device_idle: Callable[[Any], DeviceIdle | None] = open_device_idle,
) -> None:
    """Put sleeping hooks on a worker, once; a worker that they don't fit is left alone."""
    try:
        if "taxbreak_status" not in vars(worker):
            _Hooks(worker, open_watch, open_device_idle).attach()
    except Exception as error:
        logger.warning("taxbreak: this worker cannot be watched: %r", error)


def is_passed_by(vllm_config: Any) -> bool:  # noqa: ANN401 - a VllmConfig
    """Tell whether steps go past the worker: only Ray's first executor calls the runner itself.

    A variable chooses between the two (0.26 to 0.32, by default the second); a vLLM without it has the second alone. An
    executor may be named by its class as well (v1/executor/abstract.py, get_class).
    """
    backend = getattr(vllm_config.parallel_config, "distributed_executor_backend", None)
    if backend == "ray":
        return not getattr(sys.modules.get("vllm.envs"), "VLLM_USE_RAY_V2_EXECUTOR_BACKEND", True)
    names = (
        [kind.__name__ for kind in backend.__mro__] if isinstance(backend, type) else [str(backend).rpartition(".")[2]]
    )
    return "RayDistributedExecutor" in names


def is_led(worker: Any) -> bool:  # noqa: ANN401 - a vLLM worker
    """Tell a worker whose engine runs in lockstep with another one, which draws and records for all.

    Engines of a mixture of experts exchange tokens in every step, so what one records all wait for: each with a budget
    of its own would cost the server their sum. A dense model's engines are told that they are alone
    (v1/engine/core.py, run_engine_core), so a size above one means lockstep; a server that runs in several, each with
    engines of its own, records in the one that has the first.
    """
    parallel = worker.vllm_config.parallel_config
    return bool(parallel.data_parallel_size > 1 and parallel.data_parallel_rank > 0)


def may_record(worker: Any, *, all_ranks: bool) -> bool:  # noqa: ANN401 - a vLLM worker
    """Tell a rank that records from one that only times its steps.

    Ranks of one stage do the same: recording one of them slows the step down enough, and it is the one whose outputs
    vLLM fetches (v1/executor/multiproc_executor.py, _get_output_rank). Of a pipeline only the last stage may: the
    others leave the step before what they sent has arrived (`isend_tensor_dict`), and when that ends torch writes into
    the record, freed by then (2.13: `c10d::Work` ends its `RecordFunction` with the sending).
    """
    parallel = worker.vllm_config.parallel_config
    num_stages = parallel.pipeline_parallel_size
    stage, place = divmod(worker.rank, parallel.world_size // num_stages)
    return bool(stage == num_stages - 1 and (all_ranks or place == 0))


def works_ahead(worker: Any) -> bool:  # noqa: ANN401 - a vLLM worker
    """Tell whether a step may begin while the device is still at work on the one before (asynchronous scheduling)."""
    scheduler = getattr(worker.vllm_config, "scheduler_config", None)
    return bool(getattr(scheduler, "async_scheduling", False)) and device_type(worker) != "cpu"


def server_id(vllm_config: Any) -> str:  # noqa: ANN401 - a VllmConfig
    """Name a server alike in its API process and in its workers: the machine, then vLLM's instance id.

    Under Ray each data-parallel engine adds a suffix of its own to the instance id; it is taken off.
    """
    instance_id = re.sub(r"_dp\d+$", "", str(vllm_config.instance_id))
    return re.sub(r"[^A-Za-z0-9.-]", "-", f"vllm-{socket.gethostname()[:40]}-{instance_id[:40]}")


def engine_of(vllm_config: Any) -> int:  # noqa: ANN401 - a VllmConfig
    """Return the number of an engine among its data-parallel siblings."""
    parallel = vllm_config.parallel_config
    return int(getattr(parallel, "data_parallel_index", parallel.data_parallel_rank))


def model_name(vllm_config: Any) -> str:  # noqa: ANN401 - a VllmConfig
    """Return the name that a server gives its model, the first of several."""
    model = vllm_config.model_config
    name = model.served_model_name or model.model
    return name if isinstance(name, str) else str(name[0])


def describe(worker: Any) -> Server:  # noqa: ANN401 - a vLLM worker
    """Read the labels of a worker that has its device and model."""
    config = worker.vllm_config
    engine = engine_of(config)
    return Server(
        server_id=server_id(config),
        engine=str(engine),
        rank=engine * config.parallel_config.world_size + worker.rank,
        model_name=model_name(config),
        dtype=str(config.model_config.dtype).removeprefix("torch."),
        device_type=device_type(worker),
        device_name=_device_name(worker),
        torch=build.version("torch"),
        vllm=build.version("vllm"),
        cuda=build.runtime_version(),
        settings_hash=build.settings_hash(config),
        device_uuid=build.device_uuid(getattr(worker, "device", None)),
        host=build.host_name(),
        pid=os.getpid(),
    )


class _Hooks:
    """Stands before the calls of a worker that frame its life and its steps, or start vLLM's own profiler.

    Each calls the original exactly once and returns its result, or lets its exception pass, unchanged.
    """

    def __init__(
        self,
        worker: Any,  # noqa: ANN401 - a vLLM worker
        open_watch: Callable[[Any], Watch | None],
        open_device_idle: Callable[[Any], DeviceIdle | None],
    ) -> None:
        self._worker = worker
        self._open_watch = open_watch
        self._open_device_idle = open_device_idle
        self._execute_model = worker.execute_model
        self._sample_tokens = worker.sample_tokens
        self._execute_dummy_batch = worker.execute_dummy_batch
        self._compile_or_warm_up_model = worker.compile_or_warm_up_model
        self._profile = getattr(worker, "profile", None)
        self._is_asleep = False
        self._is_open = False
        self._opened: Watch | None = None
        self._armed: Watch | None = None
        self._times = StepTimes(None)

    def attach(self) -> None:
        """Replace the calls on this one worker, and add the status for `collective_rpc`."""
        self._worker.execute_model = self.execute_model
        self._worker.sample_tokens = self.sample_tokens
        self._worker.execute_dummy_batch = self.execute_dummy_batch
        self._worker.compile_or_warm_up_model = self.compile_or_warm_up_model
        if self._profile is not None:
            self._worker.profile = self.profile
        self._worker.taxbreak_status = self.taxbreak_status

    def taxbreak_status(self) -> dict[str, Any]:
        """Return the worker's published state as plain values; empty where it isn't watched."""
        try:
            return {} if self._opened is None else msgspec.to_builtins(self._opened.state(), str_keys=True)
        except Exception as error:
            logger.warning("taxbreak: no status: %r", error)
            return {}

    def compile_or_warm_up_model(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        self._armed = None
        self._is_asleep = True
        try:
            result = self._compile_or_warm_up_model(*args, **kwargs)
        finally:
            self._is_asleep = False
        self._open()
        return result

    def profile(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """Give up a step being recorded, so that ours has ended when vLLM's profiler starts or stops."""
        if self._armed is not None and self._armed.is_recording:
            self._armed.abandon("vllm_profiler")
        assert self._profile is not None
        return self._profile(*args, **kwargs)

    def execute_model(self, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        watch = self._armed or self._arm(scheduler_output)
        if watch is None:
            return self._execute_model(scheduler_output, *args, **kwargs)
        watch.begin(self._worker, scheduler_output)
        self._times.begin_execute(scheduler_output, watch.phase_index)
        try:
            # as vLLM calls it: unpacking nothing would take as long as a clock read
            if args or kwargs:
                output = self._execute_model(scheduler_output, *args, **kwargs)
            else:
                output = self._execute_model(scheduler_output)
        except BaseException:
            watch.abandon()
            raise
        self._times.end_execute(output, watch.server_id)
        if output is None:
            # a step may wait here for the tokens of the one before, which its grammar needs (v1/engine/core.py)
            if watch.is_recording or getattr(scheduler_output, "pending_structured_output_tokens", False):
                watch.pause()
        else:
            watch.end(output, has_sampled=False)
        return output

    def sample_tokens(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        watch = self._armed
        if watch is None:
            return self._sample_tokens(*args, **kwargs)
        if watch.is_paused:
            watch.resume()
        self._times.begin_sample()
        try:
            if len(args) == 1 and not kwargs:
                output = self._sample_tokens(args[0])
            else:
                output = self._sample_tokens(*args, **kwargs)
        except BaseException:
            watch.abandon()
            raise
        self._times.end_sample(output, watch.server_id)
        watch.end(output, has_sampled=True)
        return output

    def execute_dummy_batch(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        watch = self._armed
        if watch is None:
            return self._execute_dummy_batch(*args, **kwargs)
        watch.begin(self._worker, None)
        try:
            output = self._execute_dummy_batch(*args, **kwargs)
        except BaseException:
            watch.abandon()
            raise
        self._times.end_other()
        watch.end(output, has_sampled=False)
        return output

    def _arm(self, scheduled: ScheduledStep) -> Watch | None:
        try:
            if self._is_asleep or not is_real(scheduled):
                return None
            self._open()
            if self._opened is not None:
                self._times = StepTimes(self._open_device_idle(self._worker))
                self._opened.arm()
                self._armed = self._opened
        except Exception as error:
            logger.warning("taxbreak: this worker cannot be watched: %r", error)
            self._is_asleep = True
        return self._armed

    def _open(self) -> None:
        """Open the watch, once; where vLLM does not call for a warm-up, the first real step does."""
        if not self._is_open:
            self._is_open = True
            self._opened = self._open_watch(self._worker)


def _device_name(worker: Any) -> str:  # noqa: ANN401 - a vLLM worker
    if device_type(worker) in ("cuda", "xpu"):
        import torch

        return str(getattr(torch, device_type(worker)).get_device_name(worker.device))
    return processor_name()
