import gc
import math
import socket
import sys
import threading
import time
import weakref
from types import SimpleNamespace

import pytest

from taxbreak_vllm.iterations.rows import UNKNOWN
from taxbreak_vllm.serving import device_idle
from taxbreak_vllm.serving.device_idle import DeviceIdle
from taxbreak_vllm.serving.worker import (
    WorkerExtension,
    describe,
    install,
    is_passed_by,
    may_record,
    server_id,
    works_ahead,
)
from taxbreak_vllm.serving.worker_times import NUMBER, TIMES
from taxbreak_vllm.spool.spool import Spool


class VllmError(Exception):
    pass


class PlainWorker:
    """Stands for a vLLM worker: notes its calls, returns what it is told to return, raises what it is told to raise."""

    rank = 0

    def __init__(self, **config):
        self.calls = []
        self.outputs = {}
        self.profiler = None
        self.device = SimpleNamespace(type="cpu")
        self.vllm_config = SimpleNamespace(
            instance_id="170",
            parallel_config=SimpleNamespace(
                pipeline_parallel_size=1,
                world_size=4,
                data_parallel_size=1,
                data_parallel_rank=0,
                data_parallel_index=0,
            ),
            model_config=SimpleNamespace(served_model_name="tiny", model="/models/tiny", dtype="torch.float32"),
            compilation_config=None,
        )

    def execute_model(self, scheduler_output):
        return self._call("execute_model", scheduler_output)

    def sample_tokens(self, grammar_output):
        return self._call("sample_tokens", grammar_output)

    def execute_dummy_batch(self):
        return self._call("execute_dummy_batch")

    def compile_or_warm_up_model(self):
        return self._call("compile_or_warm_up_model")

    def _call(self, name, *args):
        self.calls.append((name, *args))
        output = self.outputs.get(name)
        if isinstance(output, BaseException):
            raise output
        return output() if callable(output) else output


class FakeWatch:
    """Notes what the hooks tell it."""

    server_id = "server"
    phase_index = 1
    is_recording = True
    is_paused = False

    def __init__(self):
        self.told = []

    def arm(self):
        self.told.append("arm")

    def begin(self, worker, scheduled):
        self.told.append("idle" if scheduled is None else "begin")

    def pause(self):
        self.told.append("pause")
        self.is_paused = True

    def resume(self):
        self.told.append("resume")
        self.is_paused = False

    def end(self, output, *, has_sampled):
        self.told.append(("end", output, has_sampled))

    def abandon(self, reason=None):
        self.told.append("abandon" if reason is None else ("abandon", reason))

    def state(self):
        raise RuntimeError("no state")


@pytest.fixture
def watch():
    return FakeWatch()


@pytest.fixture
def worker(watch):
    worker = PlainWorker()
    install(worker, open_watch=lambda worker: watch)
    return worker


class BrokenEvent:
    """An event of a device that is gone."""

    def record(self):
        raise RuntimeError("CUDA error: device-side assert triggered")


def test_a_device_whose_events_fail_costs_a_step_its_idle_time_and_nothing_else(watch):
    worker = PlainWorker()
    install(
        worker, open_watch=lambda _: watch, open_device_idle=lambda _: DeviceIdle(BrokenEvent, steps_between=lambda: 0)
    )
    output = SimpleNamespace(req_ids=["a"])
    worker.outputs["sample_tokens"] = output

    scheduled = SimpleNamespace(num_scheduled_tokens={"a": 1}, **{NUMBER: 7})
    assert worker.execute_model(scheduled) is None
    assert worker.sample_tokens(None) is output

    server_id, number, *stamps, phase_index, idle_ns, sample_idle_ns = getattr(output, TIMES)
    assert (server_id, number, phase_index) == ("server", 7, watch.phase_index)
    assert stamps == sorted(stamps)
    assert (idle_ns, sample_idle_ns) == (UNKNOWN, UNKNOWN)


def _extend(worker_class):
    """Make vLLM's worker class of a test, extended as vLLM does it (worker_base.py, init_worker)."""

    class Base:
        pass

    extended = type(worker_class.__name__, (worker_class, Base), {})
    assert not [name for name in dir(WorkerExtension) if not name.startswith("__") and hasattr(extended, name)]
    extended.__bases__ = (*extended.__bases__, WorkerExtension)
    return extended


def test_vllms_way_of_extending_a_worker_hooks_the_object_and_not_the_class():
    extended = _extend(PlainWorker)

    worker = extended(vllm_config=None, local_rank=0)

    assert {"execute_model", "sample_tokens", "taxbreak_status"} <= vars(worker).keys()
    assert worker.calls == []
    assert vars(PlainWorker)["execute_model"] is PlainWorker.execute_model


def test_a_class_of_workers_may_be_lent_the_constructor():
    class Base(PlainWorker):
        pass

    Base.__new__ = WorkerExtension.__new__

    assert "taxbreak_status" in vars(type("Worker", (Base,), {})(vllm_config=None))


def test_a_worker_is_hooked_once(worker, watch, decode):
    install(worker, open_watch=lambda worker: FakeWatch())

    worker.execute_model(decode)

    assert watch.told == ["arm", "begin", "pause"]


def test_an_object_that_is_no_worker_is_left_alone(caplog):
    thing = SimpleNamespace(execute_model=print)

    install(thing)

    assert vars(thing) == {"execute_model": print}
    assert "cannot be watched" in caplog.text


def test_hooks_sleep_until_the_first_real_request(worker, watch, decode, schedule):
    warm_up = schedule({"_warmup_0_": 16}, new=[("_warmup_0_", 16, 0)])
    worker.outputs["compile_or_warm_up_model"] = lambda: worker.execute_model(decode)

    worker.compile_or_warm_up_model()
    worker.execute_model(warm_up)
    worker.sample_tokens(None)
    worker.execute_model(schedule({}))
    worker.execute_dummy_batch()
    assert watch.told == []

    worker.execute_model(decode)
    assert watch.told == ["arm", "begin", "pause"]
    assert [name for name, *_ in worker.calls] == [
        "compile_or_warm_up_model",
        "execute_model",
        "execute_model",
        "sample_tokens",
        "execute_model",
        "execute_dummy_batch",
        "execute_model",
    ]


def test_a_step_is_framed_from_the_first_call_to_the_return_of_the_second(worker, watch, decode):
    worker.outputs["sample_tokens"] = "tokens"

    assert worker.execute_model(decode) is None
    assert worker.sample_tokens("grammar") == "tokens"

    assert watch.told == ["arm", "begin", "pause", "resume", ("end", "tokens", True)]
    assert worker.calls == [("execute_model", decode), ("sample_tokens", "grammar")]


def test_a_step_that_returns_its_output_directly_ends_there(worker, watch, decode):
    worker.outputs["execute_model"] = "pooled"

    assert worker.execute_model(scheduler_output=decode) == "pooled"

    assert watch.told == ["arm", "begin", ("end", "pooled", False)]


def test_a_dummy_batch_is_a_step_without_a_schedule(worker, watch, decode):
    worker.execute_model(decode)

    worker.execute_dummy_batch()

    assert watch.told[-2:] == ["idle", ("end", None, False)]


@pytest.mark.parametrize("name", ["execute_model", "sample_tokens", "execute_dummy_batch"])
@pytest.mark.parametrize("error", [VllmError("of vLLM"), KeyboardInterrupt()])
def test_an_exception_of_vllm_passes_unchanged_and_ends_the_step(worker, watch, decode, name, error):
    worker.execute_model(decode)
    worker.outputs[name] = error
    num_calls = len(worker.calls)

    with pytest.raises(type(error)) as caught:
        getattr(worker, name)(*([] if name == "execute_dummy_batch" else [decode]))

    assert caught.value is error
    assert watch.told[-1] == "abandon"
    assert len(worker.calls) == num_calls + 1


def test_vllms_profiler_starts_and_stops_only_after_ours_has_ended(watch, decode):
    class ProfilingWorker(PlainWorker):
        def profile(self, is_start=True, **kwargs):
            watch.told.append(("profile", is_start, kwargs))
            return "done"

    worker = ProfilingWorker()
    install(worker, open_watch=lambda worker: watch)
    assert worker.profile(False) == "done"
    worker.execute_model(decode)

    assert worker.profile(is_start=True, profile_prefix="p") == "done"

    assert watch.told == [
        ("profile", False, {}),
        "arm",
        "begin",
        "pause",
        ("abandon", "vllm_profiler"),
        ("profile", True, {"profile_prefix": "p"}),
    ]


def test_a_warm_up_that_fails_fails_as_before(worker, watch, decode):
    worker.outputs["compile_or_warm_up_model"] = VllmError()

    with pytest.raises(VllmError):
        worker.compile_or_warm_up_model()

    worker.execute_model(decode)
    assert watch.told[0] == "arm"


def test_a_watch_that_cannot_be_opened_leaves_the_worker_as_it_was(decode):
    worker, num_tries = PlainWorker(), []
    install(worker, open_watch=lambda worker: num_tries.append(1))
    worker.outputs["sample_tokens"] = "tokens"

    worker.compile_or_warm_up_model()
    for _ in range(3):
        worker.execute_model(decode)
        assert worker.sample_tokens(None) == "tokens"

    assert len(num_tries) == 1
    assert worker.taxbreak_status() == {}


def test_a_scheduler_output_that_cannot_be_read_is_said_once_and_served(worker, watch, caplog):
    for _ in range(3):
        worker.execute_model(object())

    assert len(worker.calls) == 3
    assert len(caplog.records) == 1
    assert watch.told == []


def test_a_status_that_fails_is_empty(worker, decode):
    worker.execute_model(decode)

    assert worker.taxbreak_status() == {}


@pytest.fixture
def settings(monkeypatch, tmp_path):
    monkeypatch.setenv("TAXBREAK_SPOOL", str(tmp_path / "spool"))
    monkeypatch.setenv("TAXBREAK_SAMPLE_EVERY", "2")
    monkeypatch.setenv("TAXBREAK_OVERHEAD_BUDGET_RATIO", "1")
    return monkeypatch


def _serve(worker, step, *, num_steps):
    for _ in range(num_steps):
        worker.execute_model(step)
        worker.sample_tokens(None)


def _serve_until_sampled(worker, step, *, num_samples):
    """Return how many steps it took; the pauses leave the storing thread some time."""
    num_steps, deadline = 0, time.monotonic() + 20
    while worker.taxbreak_status()["num_samples"] < num_samples and time.monotonic() < deadline:
        _serve(worker, step, num_steps=1)
        num_steps += 1
        time.sleep(0.05)
    return num_steps


@pytest.mark.parametrize(("value", "num_asked"), [("true", 1), ("false", 0)])
def test_a_setting_leaves_the_device_alone(settings, decode, monkeypatch, value, num_asked):
    asked = []
    monkeypatch.setattr(device_idle, "open_device_idle", asked.append)
    settings.setenv("TAXBREAK_DEVICE_EVENTS", value)
    worker = _extend(PlainWorker)()

    worker.compile_or_warm_up_model()
    _serve(worker, decode, num_steps=2)

    assert asked == [worker] * num_asked


def test_a_wrong_setting_is_one_warning_and_the_worker_works(settings, decode, caplog, tmp_path):
    settings.setenv("TAXBREAK_SAMPLE_EVERY", "often")
    worker = _extend(PlainWorker)()

    worker.compile_or_warm_up_model()
    _serve(worker, decode, num_steps=4)

    (record,) = caplog.records
    assert "TAXBREAK_SAMPLE_EVERY='often'" in record.getMessage()
    assert len(worker.calls) == 9
    assert not (tmp_path / "spool").exists()


def test_an_executor_that_calls_the_model_past_its_worker_is_one_warning(settings, decode, caplog):
    """Ray's first executor, which vLLM has replaced: nothing would ever be timed, and nobody would know why."""
    worker = _extend(PlainWorker)()
    worker.vllm_config.parallel_config.distributed_executor_backend = "ray"
    settings.setitem(sys.modules, "vllm.envs", SimpleNamespace(VLLM_USE_RAY_V2_EXECUTOR_BACKEND=False))

    worker.compile_or_warm_up_model()

    (record,) = caplog.records
    assert "Ray's first executor" in record.getMessage()
    assert worker.taxbreak_status() == {}


class RayDistributedExecutor:
    """Ray's first executor has this name in vLLM."""


class _Derived(RayDistributedExecutor):
    pass


class _Other:
    pass


NO_CHOICE = SimpleNamespace()  # as in 0.33
V1, V2 = (SimpleNamespace(VLLM_USE_RAY_V2_EXECUTOR_BACKEND=is_v2) for is_v2 in (False, True))


@pytest.mark.parametrize(
    ("backend", "envs", "is_passed"),
    [
        ("ray", V1, True),
        ("ray", V2, False),
        ("ray", NO_CHOICE, False),
        ("mp", V1, False),
        ("uni", V1, False),
        (None, V1, False),
        (_Derived, V2, True),
        (_Other, V1, False),
        ("vllm.v1.executor.ray_executor.RayDistributedExecutor", V2, True),
        ("their.executors.Executor", V1, False),
    ],
)
def test_only_rays_first_executor_passes_its_worker_by(monkeypatch, backend, envs, is_passed):
    monkeypatch.setitem(sys.modules, "vllm.envs", envs)
    config = SimpleNamespace(parallel_config=SimpleNamespace(distributed_executor_backend=backend))

    assert is_passed_by(config) is is_passed


def test_rays_present_executor_calls_the_worker(settings, decode):
    worker = _extend(PlainWorker)()
    worker.vllm_config.parallel_config.distributed_executor_backend = "ray"
    settings.setitem(sys.modules, "vllm.envs", NO_CHOICE)

    worker.compile_or_warm_up_model()
    _serve(worker, decode, num_steps=1)

    assert worker.taxbreak_status()["enabled"]


@pytest.mark.parametrize(
    ("size", "rank", "index", "records", "off_reason"),
    [
        (2, 0, 0, True, None),
        (2, 1, 1, False, "lockstep"),
        (1, 0, 1, True, None),  # a dense model's second engine is told that it is alone
    ],
)
def test_of_engines_in_lockstep_the_first_records_and_engines_that_are_alone_all_do(
    settings, decode, size, rank, index, records, off_reason
):
    worker = _extend(PlainWorker)()
    parallel = worker.vllm_config.parallel_config
    parallel.data_parallel_size, parallel.data_parallel_rank, parallel.data_parallel_index = size, rank, index

    worker.compile_or_warm_up_model()
    _serve(worker, decode, num_steps=1)
    status = worker.taxbreak_status()

    assert (status["records"], status["off_reason"], status["server"]["engine"]) == (records, off_reason, str(index))


@pytest.mark.parametrize("kind", ["cuda", "xpu"])
def test_a_device_is_named_as_torch_names_it(monkeypatch, kind):
    torch = pytest.importorskip("torch")
    worker = PlainWorker()
    worker.device = SimpleNamespace(type=kind)
    monkeypatch.setattr(getattr(torch, kind), "get_device_name", lambda device: f"the {device.type}")

    server = describe(worker)

    assert (server.device_type, server.device_name) == (kind, f"the {kind}")


def test_the_real_thing_records_and_tells_its_status_and_ends_with_its_worker(settings, decode, tmp_path):
    pytest.importorskip("torch")
    others = set(threading.enumerate())
    worker = _extend(PlainWorker)()
    worker.outputs["sample_tokens"] = lambda: SimpleNamespace(sampled_token_ids=[[1], [2]])

    worker.compile_or_warm_up_model()
    num_steps = _serve_until_sampled(worker, decode, num_samples=2)
    status = worker.taxbreak_status()
    is_gone = weakref.ref(worker)
    del worker
    gc.collect()

    assert is_gone() is None
    assert [thread.name for thread in threading.enumerate() if thread not in others] == []
    captures = Spool(tmp_path / "spool", max_bytes=2**20, max_captures=9).captures()
    assert len({capture.read_info().step_index for capture in captures}) == 2
    assert status["server"]["model_name"] == "tiny"
    assert [(kind["phase"], kind["num_steps"]) for kind in status["steps"]] == [("decode", num_steps - 2)]


def test_one_rank_of_a_tensor_parallel_group_records(settings, decode, tmp_path):
    worker = _extend(PlainWorker)()
    worker.rank = 1

    worker.compile_or_warm_up_model()
    _serve(worker, decode, num_steps=4)
    status = worker.taxbreak_status()
    del worker
    gc.collect()

    assert Spool(tmp_path / "spool", max_bytes=2**20, max_captures=9).captures() == []
    assert [kind["num_steps"] for kind in status["steps"]] == [3]  # one in two, from the third on


def test_ranks_are_numbered_through_all_engines():
    worker = PlainWorker()
    worker.rank = 3
    worker.vllm_config.parallel_config.data_parallel_index = 2
    worker.vllm_config.model_config.served_model_name = ["first", "second"]

    server = describe(worker)

    assert (server.engine, server.rank) == ("2", 2 * 4 + 3)
    assert (server.model_name, server.dtype, server.device_type) == ("first", "float32", "cpu")


@pytest.mark.parametrize(
    ("sizes", "all_ranks", "recording"),
    [
        ((1, 1, 1), False, [0]),
        ((4, 1, 1), False, [0]),
        ((4, 1, 1), True, [0, 1, 2, 3]),
        ((2, 3, 1), False, [4]),  # of the last stage
        ((2, 3, 1), True, [4, 5]),
        ((2, 2, 2), False, [4]),  # prompts split between two tensor-parallel groups
    ],
)
def test_one_rank_of_the_last_stage_records_or_all_of_them(sizes, all_ranks, recording):
    worker = PlainWorker()
    parallel = worker.vllm_config.parallel_config
    _, parallel.pipeline_parallel_size, _ = sizes
    parallel.world_size = math.prod(sizes)

    def may(rank):
        worker.rank = rank
        return may_record(worker, all_ranks=all_ranks)

    assert [rank for rank in range(parallel.world_size) if may(rank)] == recording


@pytest.mark.parametrize("instance_id", ["170", "170_dp3"])
def test_a_server_has_one_id_in_all_its_engines_and_it_can_name_a_folder(instance_id, monkeypatch, tmp_path):
    monkeypatch.setattr(socket, "gethostname", lambda: "_node_1." + "x" * 90)

    name = server_id(SimpleNamespace(instance_id=instance_id))

    assert name == f"vllm--node-1.{'x' * 32}-170"
    assert Spool(tmp_path, max_bytes=1, max_captures=1).read_request(name) is None


def test_what_stands_for_vllms_worker_here_has_nothing_that_vllms_has_not(vllm_source):
    base, gpu = ("v1/worker/worker_base.py", "WorkerBase"), ("v1/worker/gpu_worker.py", "Worker")
    worker = PlainWorker()
    config = worker.vllm_config

    assert {name for name in vars(PlainWorker) if not name.startswith("_")} - {"rank"} <= vllm_source.methods(
        *gpu
    ).keys()
    assert vars(worker).keys() - {"calls", "outputs"} | {"rank"} <= (
        vllm_source.attributes(*base) | vllm_source.attributes(*gpu)
    )
    assert vars(config).keys() <= vllm_source.fields("config/vllm.py", "VllmConfig")
    assert vars(config.parallel_config).keys() <= vllm_source.fields("config/parallel.py", "ParallelConfig")
    assert vars(config.model_config).keys() <= vllm_source.fields("config/model.py", "ModelConfig")


def test_a_step_that_waits_for_its_grammar_pauses_though_it_is_not_recorded(worker, watch, schedule):
    watch.is_recording = False
    plain, deferred = (schedule({"a": 1}, cached=[("a", 3)]) for _ in range(2))
    deferred.pending_structured_output_tokens = True

    for step in (plain, deferred):
        worker.execute_model(step)
        worker.sample_tokens("grammar")

    told = [what if isinstance(what, str) else what[0] for what in watch.told]
    assert told == ["arm", "begin", "end", "begin", "pause", "resume", "end"]


@pytest.mark.parametrize(
    ("is_async", "device", "ahead"), [(True, "cuda", True), (False, "cuda", False), (True, "cpu", False)]
)
def test_a_server_works_ahead_where_it_schedules_asynchronously_for_a_device_of_its_own(is_async, device, ahead):
    worker = SimpleNamespace(
        device=SimpleNamespace(type=device),
        vllm_config=SimpleNamespace(scheduler_config=SimpleNamespace(async_scheduling=is_async)),
    )

    assert works_ahead(worker) is ahead
