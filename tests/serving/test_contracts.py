"""What the hooks take for granted of vLLM, held against its source: the installed one's or another's, CONTRACT_SOURCE.

Its classes are run where they can be and read where they cannot, so that nothing here stands for them.
"""

import ast
import dataclasses
import enum
import gc
import inspect
import re
import sys
import threading
import weakref
from abc import ABC, abstractmethod
from concurrent.futures import Future
from contextlib import contextmanager, nullcontext
from copy import copy
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest

from taxbreak_vllm.model.step import GraphMode, Phase
from taxbreak_vllm.serving.graph_mode import GraphModeNote
from taxbreak_vllm.serving.other_profilers import is_profiler_running
from taxbreak_vllm.serving.sampling.kinds import StepKinds
from taxbreak_vllm.serving.steps import GraphModes, classify, is_real
from taxbreak_vllm.serving.tokens import SampledTokens
from taxbreak_vllm.serving.worker import WorkerExtension, is_led, is_passed_by, may_record
from taxbreak_vllm.serving.worker_times import NUMBER, TIMES, answer, when_fetched
from taxbreak_vllm.spool.spool import Spool

OUTPUTS = "v1/outputs.py"
SECOND_RUNNER_OUTPUT = "v1/worker/gpu/async_utils.py"
FIRST_RUNNER = "v1/worker/gpu_model_runner.py"
SECOND_RUNNER = "v1/worker/gpu/model_runner.py"
WORKER_BASE = "v1/worker/worker_base.py"
GPU_WORKER = "v1/worker/gpu_worker.py"
ENGINE = "v1/engine/core.py"


# -- what the scheduler sends --


@pytest.fixture(scope="module")
def send(schedule):
    """Build a SchedulerOutput of the source's own classes."""
    return schedule


def test_every_phase_is_told_from_what_the_scheduler_sends(send):
    steps = {
        Phase.DECODE: send({"a": 1, "b": 1}, cached=[("a", 3), ("b", 9)]),
        Phase.IDLE: send({}),
        Phase.PREFILL: send({"a": 5}, new=[("a", 5, 0)]),
        Phase.MIXED: send({"a": 1, "b": 5}, cached=[("a", 3)], resumed=["b"], new=[("b", 5, 0)]),
        Phase.VERIFY: send({"a": 4}, cached=[("a", 3)], drafts={"a": 3}),
        Phase.ENCODE: send({"a": 5}, new=[("a", 5, 0)], encoder={"a": [0]}),
    }
    kinds = StepKinds(GraphModes(decode=GraphMode.NONE, mixed=GraphMode.NONE, max_tokens=0))

    assert {phase: classify(step).phase for phase, step in steps.items()} == {phase: phase for phase in steps}
    assert {phase: kinds.of_step(step).phase for phase, step in steps.items()} == {phase: phase for phase in steps}


def test_every_mode_that_vllm_dispatches_to_is_known(vllm_source):
    modes = vllm_source.load("config/compilation.py", "CUDAGraphMode", enum=enum).CUDAGraphMode

    dispatched = {mode.decode_mode() for mode in modes} | {mode.mixed_mode() for mode in modes}

    assert {GraphMode(mode.name) for mode in dispatched} == {GraphMode.NONE, GraphMode.PIECEWISE, GraphMode.FULL}


def test_warm_up_is_told_from_requests_by_the_name_that_vllm_gives_it(vllm_source, send):
    warm_ups = re.findall(r'f?"(_warmup_[^"]*)"', vllm_source.text("v1/worker/gpu/warmup.py"))

    assert warm_ups
    assert not any(is_real(send({name: 16}, new=[(name, 16, 0)])) for name in warm_ups)
    assert is_real(send({"cmpl-1": 16}, new=[("cmpl-1", 16, 0)]))


# -- what the runners return --


class _Event:
    """Stands for a CUDA event: what the device does until then is done when somebody waits for it."""

    def __init__(self, **options):
        self.work = lambda: None
        self.num_waits = 0

    def record(self, stream=None):
        pass

    def synchronize(self):
        self.num_waits += 1
        self.work()


class _Stream:
    def wait_stream(self, stream):
        pass


@pytest.fixture(scope="module")
def device():
    """Stands for torch where a runner's output uses its CUDA part; tensors are torch's own."""
    pytest.importorskip("torch")
    cuda = SimpleNamespace(
        Event=_Event, set_stream=lambda stream: None, current_stream=_Stream, stream=lambda stream: nullcontext()
    )
    return SimpleNamespace(cuda=cuda)


@pytest.fixture(scope="module")
def outputs(vllm_source):
    given = {"ABC": ABC, "abstractmethod": abstractmethod, "dataclass": dataclass, "field": field, "copy": copy}
    return vllm_source.load(OUTPUTS, "ModelRunnerOutput", "AsyncModelRunnerOutput", **given)


def _build(make, **values):
    """Call with what this version takes; what it takes besides must have a default."""
    wanted = inspect.signature(make).parameters
    return make(**{name: value for name, value in values.items() if name in wanted})


class _Nothing:
    """Every part that an output may have besides its tokens, and has not."""

    def __getattr__(self, name):
        return None


@pytest.fixture
def second_runner_output(vllm_source, outputs, device):
    """Build the output of the second model runner; `sampled` is what the device writes into it at the end."""
    import torch

    loaded = vllm_source.load(
        SECOND_RUNNER_OUTPUT,
        "AsyncOutput",
        "async_copy_to_np",
        "stream",
        torch=device,
        contextlib=SimpleNamespace(contextmanager=contextmanager),
        AsyncModelRunnerOutput=outputs.AsyncModelRunnerOutput,
    )

    def build(sampled):
        width = max(map(len, sampled))
        from_sampler = _Nothing()
        from_sampler.sampled_token_ids = torch.full((len(sampled), width), -7)
        ids = [chr(ord("a") + row) for row in range(len(sampled))]
        output = _build(
            loaded.AsyncOutput,
            model_runner_output=outputs.ModelRunnerOutput(
                req_ids=ids, req_id_to_index={name: row for row, name in enumerate(ids)}, sampled_token_ids=None
            ),
            sampler_output=from_sampler,
            num_sampled_tokens=torch.full((len(sampled),), -7),
            main_stream=_Stream(),
            copy_stream=_Stream(),
            check_ep_fault=False,
            pending_aux_output=None,
            routed_experts=None,
        )

        def arrive():
            output.num_sampled_tokens_np[:] = [len(row) for row in sampled]
            for row, tokens in enumerate(sampled):
                output.sampled_token_ids[row, : len(tokens)] = tokens

        output.copy_event.work = arrive
        return output

    return build


@pytest.fixture
def first_runner_output(vllm_source, outputs, device):
    """Build the asynchronous output of the first model runner, of one token a request."""
    import torch

    loaded = vllm_source.load(
        FIRST_RUNNER,
        "AsyncGPUModelRunnerOutput",
        torch=device,
        AsyncModelRunnerOutput=outputs.AsyncModelRunnerOutput,
    )

    def build(sampled):
        ids = [chr(ord("a") + row) for row in range(len(sampled))]
        return _build(
            loaded.AsyncGPUModelRunnerOutput,
            model_runner_output=outputs.ModelRunnerOutput(
                req_ids=ids, req_id_to_index={name: row for row, name in enumerate(ids)}
            ),
            sampled_token_ids=torch.tensor(sampled),
            logprobs_tensors=None,
            invalid_req_indices=[1],  # its prompt goes on: what was sampled for it is thrown away
            async_output_copy_stream=_Stream(),
            vocab_size=100,
        )

    return build


def _record(watch, step, output):
    """Have every second of some steps recorded; the last one gives this output."""
    for its_output in (None, output):
        watch.begin(None, step)
        watch.end(its_output, has_sampled=its_output is not None)
    watch.abandon()  # no step follows: a sample that has ended is kept


def _recorded(watch, tmp_path):
    watch.outbox.turn(wait_s=0)
    (capture,) = Spool(tmp_path / "spool", max_bytes=1, max_captures=1).captures()
    return capture.read_info()


def _fetch_alone(output, vllm_source, outputs):
    """Ray's workers and a uniprocess executor that blocks ask for it where it is returned."""
    return output.get_output()


def _fetch_as_one_process_does(output, vllm_source, outputs):
    loaded = vllm_source.load("v1/executor/uniproc_executor.py", "AsyncOutputFuture", Future=Future)
    return loaded.AsyncOutputFuture(output, True).result()


def _fetch_as_a_worker_process_does(output, vllm_source, outputs):
    sent = []
    status = SimpleNamespace(SUCCESS="success", FAILURE="failure", FAILURE_WITH_KV_OUTPUT="with kv")
    enqueue = vllm_source.load_method(
        "v1/executor/multiproc_executor.py",
        "WorkerProc",
        "enqueue_output",
        AsyncModelRunnerOutput=outputs.AsyncModelRunnerOutput,
        ExceptionWithKVConnectorOutput=ZeroDivisionError,
        WorkerProc=SimpleNamespace(ResponseStatus=status),
        logger=None,
    )
    worker = SimpleNamespace(worker_response_mq=SimpleNamespace(enqueue=sent.append))
    thread = threading.Thread(target=enqueue, args=(worker, output))
    thread.start()
    thread.join()
    ((is_success, fetched),) = sent
    assert is_success == "success"
    return fetched


FETCHES = [_fetch_alone, _fetch_as_one_process_does, _fetch_as_a_worker_process_does]


@pytest.mark.parametrize("fetch", FETCHES)
def test_the_second_runners_output_is_recorded_and_counted_however_it_is_fetched(
    open_watch, send, second_runner_output, vllm_source, outputs, fetch, tmp_path
):
    watch = open_watch(sample_every=2)
    verify = send({"a": 4, "b": 4}, cached=[("a", 3), ("b", 3)], drafts={"a": 3, "b": 3})
    output = second_runner_output([[5, 6, 7], [8]])
    assert isinstance(output.sampled_token_ids, np.ndarray)

    _record(watch, verify, output)
    assert output.copy_event.num_waits == 0
    fetched = fetch(output, vllm_source, outputs)
    info = _recorded(watch, tmp_path)

    assert fetched.sampled_token_ids == [[5, 6, 7], [8]]
    assert output.copy_event.num_waits == 1
    assert (info.async_output, info.batch.output_tokens, info.batch.accepted_tokens) == (True, 4, 2)
    assert watch.state().dropped == {}


@pytest.mark.parametrize("fetch", FETCHES)
def test_and_so_is_the_first_runners(open_watch, send, first_runner_output, vllm_source, outputs, fetch, tmp_path):
    watch = open_watch(sample_every=2)
    step = send({"a": 1, "b": 7}, cached=[("a", 3), ("b", 0)])
    output = first_runner_output([[5], [6]])

    _record(watch, step, output)
    fetched = fetch(output, vllm_source, outputs)
    info = _recorded(watch, tmp_path)

    assert fetched.sampled_token_ids == [[5], []]
    assert (info.async_output, info.batch.output_tokens, info.batch.accepted_tokens) == (True, 1, 0)
    assert watch.state().dropped == {}


def test_and_so_is_an_output_that_holds_its_tokens(open_watch, send, outputs, tmp_path):
    watch = open_watch(sample_every=2)
    output = outputs.ModelRunnerOutput(
        req_ids=["b", "a"], req_id_to_index={"b": 0, "a": 1}, sampled_token_ids=[[], [5]]
    )

    _record(watch, send({"a": 1, "b": 7}, cached=[("a", 3), ("b", 0)]), output)
    info = _recorded(watch, tmp_path)

    assert (info.async_output, info.batch.output_tokens, info.batch.accepted_tokens) == (False, 1, 0)


def test_vllm_asks_an_output_for_its_tokens_in_no_other_way(vllm_source):
    methods = vllm_source.methods(OUTPUTS, "AsyncModelRunnerOutput").values()

    assert [m.name for m in methods if "ModelRunnerOutput" in ast.unparse(m.returns)] == ["get_output"]


# -- where a step's graph mode stands --


@pytest.mark.parametrize("mode", ["NONE", "PIECEWISE", "FULL", "FULL_DECODE_ONLY", "FULL_AND_PIECEWISE"])
def test_graph_modes_are_read_from_the_resolved_configuration(vllm_source, mode):
    loaded = vllm_source.load("config/compilation.py", "CUDAGraphMode", enum=enum)
    config = SimpleNamespace(cudagraph_mode=loaded.CUDAGraphMode[mode], max_cudagraph_capture_size=64)
    decode, _, mixed = mode.lower().partition("_and_")
    mixed = mixed or ("none" if mode == "FULL_DECODE_ONLY" else decode)

    modes = GraphModes.from_config(config)

    assert modes.of(Phase.DECODE, 8) == decode.removesuffix("_decode_only")
    assert modes.of(Phase.PREFILL, 8) == mixed


@pytest.mark.parametrize("runner", [FIRST_RUNNER, SECOND_RUNNER])
def test_a_runner_that_can_note_the_graph_mode_does_so_where_it_is_read(vllm_source, runner):
    """The second one cannot before 0.31; then its steps have the mode that the configuration leads to."""
    can_note = "observability_config.cudagraph_metrics" in vllm_source.text(runner)

    assert can_note or runner == SECOND_RUNNER
    assert can_note is ("cudagraph_stats" in vllm_source.fields(runner, "ExecuteModelState"))
    assert "execute_model_state" in vllm_source.attributes(runner, "GPUModelRunner")
    assert "observability_config = vllm_config.observability_config" in vllm_source.text(runner)


def test_the_note_names_the_runtime_mode(vllm_source):
    note = vllm_source.load("compilation/cuda_graph.py", "CUDAGraphStat", dataclasses=dataclasses).CUDAGraphStat
    observability = SimpleNamespace(cudagraph_metrics=False)
    runner = SimpleNamespace(execute_model_state=None)
    worker = SimpleNamespace(model_runner=runner, vllm_config=SimpleNamespace(observability_config=observability))

    asked = GraphModeNote(worker)
    assert observability.cudagraph_metrics
    stats = note(num_unpadded_tokens=3, num_padded_tokens=4, num_paddings=1, runtime_mode="PIECEWISE")
    runner.execute_model_state = SimpleNamespace(cudagraph_stats=stats)
    asked.read()

    assert asked.mode == "piecewise"
    assert not observability.cudagraph_metrics
    assert "cudagraph_metrics" in vllm_source.fields("config/observability.py", "ObservabilityConfig")


# -- what a worker is --


def test_a_worker_has_the_calls_that_are_hooked_and_the_labels_that_are_read(vllm_source):
    hooked = {"execute_model", "sample_tokens", "execute_dummy_batch", "compile_or_warm_up_model", "profile"}

    assert hooked <= vllm_source.methods(GPU_WORKER, "Worker").keys()
    assert {"rank", "vllm_config", "device"} <= vllm_source.attributes(WORKER_BASE, "WorkerBase")
    assert {"profiler", "model_runner"} <= vllm_source.attributes(GPU_WORKER, "Worker")
    for path, kind in [("v1/worker/cpu_worker.py", "CPUWorker"), ("v1/worker/xpu_worker.py", "XPUWorker")]:
        assert vllm_source.bases(path, kind) == ["Worker"]


def test_a_worker_class_leaves_its_building_to_object_and_takes_the_extension_before(vllm_source):
    init = ast.unparse(vllm_source.methods(WORKER_BASE, "WorkerWrapperBase")["init_worker"])
    names = {name for name in dir(WorkerExtension) if not name.startswith("__")}

    assert "__new__" not in vllm_source.methods(WORKER_BASE, "WorkerBase")
    assert "__new__" not in vllm_source.methods(GPU_WORKER, "Worker")
    assert 0 < init.index("worker_class.__bases__ = worker_class.__bases__ + ") < init.index("worker_class(**kwargs)")
    assert not names & (
        vllm_source.methods(WORKER_BASE, "WorkerBase").keys() | vllm_source.methods(GPU_WORKER, "Worker").keys()
    )


def test_the_configuration_has_what_is_read_of_it(vllm_source):
    read = {
        ("config/vllm.py", "VllmConfig"): {
            "instance_id",
            "parallel_config",
            "model_config",
            "compilation_config",
            "observability_config",
        },
        ("config/parallel.py", "ParallelConfig"): {
            "data_parallel_index",
            "data_parallel_rank",
            "data_parallel_size",
            "distributed_executor_backend",
            "pipeline_parallel_size",
            "world_size",
        },
        ("config/model.py", "ModelConfig"): {"served_model_name", "model", "dtype"},
        ("config/compilation.py", "CompilationConfig"): {"cudagraph_mode", "max_cudagraph_capture_size"},
    }

    assert {place: names - vllm_source.fields(*place) for place, names in read.items()} == {
        place: set() for place in read
    }


@pytest.mark.parametrize("sizes", [(1, 1, 1), (4, 1, 1), (2, 3, 1), (2, 2, 2)])
def test_the_rank_that_records_is_the_one_whose_outputs_are_fetched(vllm_source, sizes):
    tensor, stages, prefill = sizes
    parallel = SimpleNamespace(
        tensor_parallel_size=tensor,
        pipeline_parallel_size=stages,
        prefill_context_parallel_size=prefill,
        world_size=tensor * stages * prefill,
    )
    find = vllm_source.load_method("v1/executor/multiproc_executor.py", "MultiprocExecutor", "_get_output_rank")
    config = SimpleNamespace(parallel_config=parallel)

    ranks = range(parallel.world_size)
    recording = [rank for rank in ranks if may_record(SimpleNamespace(rank=rank, vllm_config=config), all_ranks=False)]

    assert recording == [find(SimpleNamespace(world_size=parallel.world_size, parallel_config=parallel))]


# -- engines and executors --


def test_engines_in_lockstep_have_siblings_and_a_dense_models_are_told_that_they_are_alone(vllm_source):
    start = vllm_source.methods(ENGINE, "EngineCoreProc")["run_engine_core"]
    (choice,) = (
        node
        for node in ast.walk(start)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "data_parallel and vllm_config.model_config.is_moe"
    )
    lockstep, alone = ("\n".join(map(ast.unparse, body)) for body in (choice.body, choice.orelse))
    parallel = SimpleNamespace(data_parallel_size=4, data_parallel_rank=3, nnodes_within_dp=1, node_rank_within_dp=0)
    worker = SimpleNamespace(vllm_config=SimpleNamespace(parallel_config=parallel))
    assert is_led(worker)

    if "reconfigure_for_independent_dp_rank()" in alone:
        vllm_source.load_method("config/parallel.py", "ParallelConfig", "reconfigure_for_independent_dp_rank")(parallel)
    else:
        settings = [line for line in alone.splitlines() if line.startswith("parallel_config.")]
        exec("\n".join(settings), {"parallel_config": parallel})

    assert "DPEngineCoreProc(" in lockstep
    assert "data_parallel_rank = dp_rank" in lockstep
    assert "data_parallel_size" not in lockstep
    assert not is_led(worker)
    loop = ast.unparse(vllm_source.methods(ENGINE, "DPEngineCoreProc")["run_busy_loop"])
    assert "self.execute_dummy_batch()" in loop
    assert "_has_global_unfinished_reqs" in loop


def test_rays_executor_calls_the_worker_unless_it_is_the_first_and_a_variable_chose_that(vllm_source, monkeypatch):
    has_first = vllm_source.has("v1/executor/ray_executor.py")
    has_choice = "VLLM_USE_RAY_V2_EXECUTOR_BACKEND" in vllm_source.text("envs.py")
    config = SimpleNamespace(parallel_config=SimpleNamespace(distributed_executor_backend="ray"))

    def is_passed(**envs):
        monkeypatch.setitem(sys.modules, "vllm.envs", SimpleNamespace(**envs))
        return is_passed_by(config)

    assert has_first is has_choice
    if has_choice:
        assert "RayDistributedExecutor" in vllm_source.definitions("v1/executor/ray_executor.py")
        assert "self.worker.model_runner.execute_model(" in vllm_source.text("v1/executor/ray_utils.py")
        assert "envs.VLLM_USE_RAY_V2_EXECUTOR_BACKEND" in vllm_source.text("v1/executor/abstract.py")
        assert is_passed(VLLM_USE_RAY_V2_EXECUTOR_BACKEND=False)
        assert not is_passed(VLLM_USE_RAY_V2_EXECUTOR_BACKEND=True)
    else:
        assert "model_runner.execute_model(" not in vllm_source.text("v1/executor/ray_utils.py")
        assert not is_passed()
    assert vllm_source.bases("v1/executor/ray_executor_v2.py", "RayWorkerProc") == ["WorkerProc"]
    assert vllm_source.bases("v1/executor/ray_executor_v2.py", "RayExecutorV2") == ["MultiprocExecutor"]


# -- vLLM's own profiler --


def test_vllms_profiler_is_seen_from_its_start_or_the_wait_for_it_to_its_stop(vllm_source):
    pytest.importorskip("torch")
    loaded = vllm_source.load(
        "profiler/wrapper.py",
        "WorkerProfiler",
        ABC=ABC,
        abstractmethod=abstractmethod,
        threading=threading,
        nullcontext=nullcontext,
        validate_profile_iteration_bounds=lambda *bounds: None,
        logger=SimpleNamespace(info_once=lambda *said: None),
    )

    class Profiler(loaded.WorkerProfiler):
        def _start(self):
            pass

        def _stop(self):
            pass

    for delay in (0, 5):
        profiler = Profiler(SimpleNamespace(delay_iterations=delay, max_iterations=0))
        seen = []
        for act in (lambda: None, profiler.start, profiler.stop):
            act()
            seen.append(is_profiler_running(SimpleNamespace(profiler=profiler)))

        assert seen == [False, True, False]


def test_the_engine_defers_a_step_whose_grammar_needs_tokens_and_says_so_in_its_schedule(vllm_source):
    assert "pending_structured_output_tokens" in vllm_source.fields("v1/core/sched/output.py", "SchedulerOutput")
    assert "scheduler_output.pending_structured_output_tokens" in vllm_source.text("v1/engine/core.py")


def test_asynchronous_scheduling_is_named_by_the_configuration(vllm_source):
    assert "async_scheduling" in vllm_source.fields("config/scheduler.py", "SchedulerConfig")
    assert "scheduler_config.async_scheduling" in vllm_source.text("config/vllm.py")


# -- the engine's loop --

MULTIPROC = "v1/executor/multiproc_executor.py"


@pytest.mark.parametrize("cls", ["EngineCoreProc", "DPEngineCoreProc"])
def test_an_engines_loop_takes_in_requests_and_steps_by_calls_looked_up_on_the_engine(vllm_source, cls):
    loop = ast.unparse(vllm_source.methods(ENGINE, cls)["run_busy_loop"])

    assert "self._process_input_queue()" in loop
    assert "self._process_engine_step()" in loop
    assert "self.step_fn()" in ast.unparse(vllm_source.methods(ENGINE, "EngineCoreProc")["_process_engine_step"])
    assert "self.input_queue.get(" in ast.unparse(vllm_source.methods(ENGINE, "EngineCoreProc")["_process_input_queue"])


@pytest.mark.parametrize("step", ["step", "step_with_batch_queue"])
def test_a_step_asks_scheduler_and_executor_by_the_calls_that_are_hooked(vllm_source, step):
    text = ast.unparse(vllm_source.methods(ENGINE, "EngineCore")[step])

    for call in ("schedule", "get_grammar_bitmask", "update_from_output"):
        assert f"self.scheduler.{call}(" in text
    for call in ("execute_model", "sample_tokens"):
        assert f"self.model_executor.{call}(" in text


def test_a_multiprocess_executor_sends_a_calls_name_first_and_fetches_from_one_queue_a_rank(vllm_source):
    text = vllm_source.text(MULTIPROC)

    assert "self.rpc_broadcast_mq.enqueue((send_method, args, kwargs, output_rank))" in text
    assert "response_mqs[output_rank]" in text
    assert "mq.dequeue(" in text
    assert "self.output_rank" in text


_STAMPS, _IDLE = ("server", 7, 1, 2, 3, 4, 1), (5, 6)
_TIMES = (*_STAMPS, *_IDLE)


def answer_at_once(output):
    answer(output, _STAMPS, lambda: _IDLE)


def test_what_travels_with_a_step_survives_the_way_between_the_processes(send, outputs):
    scheduled = send({"a": 1}, cached=[("a", 3)])
    output = outputs.ModelRunnerOutput(req_ids=["a"], req_id_to_index={"a": 0}, sampled_token_ids=[[5]])

    setattr(scheduled, NUMBER, 7)
    answer_at_once(output)

    assert getattr(copy(scheduled), NUMBER) == 7
    assert getattr(copy(output), TIMES) == _TIMES


@pytest.mark.parametrize("is_recorded", [False, True])
@pytest.mark.parametrize("is_waited_for", [False, True])
def test_an_output_still_on_its_way_brings_the_times_along_and_is_held_by_nothing_of_ours(
    first_runner_output, is_recorded, is_waited_for
):
    """Whoever else stands before its call: the count of a recorded step's tokens, an engine that times its wait."""
    output, waits = first_runner_output([[5], [6]]), []
    answer_at_once(output)
    if is_recorded:
        SampledTokens().follow(output)
    if is_waited_for:
        when_fetched(output, lambda fetch: waits.append(1) or fetch())

    assert getattr(output.get_output(), TIMES) == _TIMES
    assert len(waits) == is_waited_for
    gone = weakref.ref(output)
    gc.disable()
    try:
        del output
        assert gone() is None
    finally:
        gc.enable()


def test_an_output_asked_for_and_let_go_at_once_is_fetched_all_the_same(first_runner_output):
    def ready():
        output = first_runner_output([[5], [6]])
        answer_at_once(output)
        return output

    assert getattr(ready().get_output(), TIMES) == _TIMES


def test_an_output_on_which_nothing_can_be_put_comes_as_it_is():
    class Closed:
        __slots__ = ("req_ids",)

        def __init__(self):
            self.req_ids = ["a"]

    class Output:
        def get_output(self):
            return closed

    closed, output = Closed(), Output()
    answer_at_once(output)

    assert output.get_output() is closed


def test_the_output_that_all_empty_steps_share_carries_nothing(outputs):
    empty = outputs.ModelRunnerOutput(req_ids=[], req_id_to_index={}, sampled_token_ids=[])
    answer_at_once(empty)

    assert not hasattr(empty, TIMES)
