"""vLLM's own scheduler and KV-cache manager without a model: what an engine's traffic tells in, its batches out.

Imports vLLM, and so belongs in a process of its own. A request's tokens are not known and all alike: what tells blocks
of the prefix cache apart are the ids of their hashes, and a request ends when it did. Read in
vllm/v1/core/sched/scheduler.py, vllm/v1/request.py and vllm/v1/engine/core.py of 0.26 to 0.33.
"""

import copy
import inspect
import json
import tempfile
from collections.abc import Callable, Iterable, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import torch
import vllm
import vllm.v1.kv_cache_interface as kv_interface
from vllm.config import LoRAConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.lora.request import LoRARequest
from vllm.sampling_params import SamplingParams
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus
from vllm.v1.structured_output import StructuredOutputManager

from taxbreak_vllm.model.errors import WorkloadError
from taxbreak_vllm.traffic.rows import KvGroup, Scalar, Setup
from taxbreak_vllm.workload.repeats import Again, Repeats
from taxbreak_vllm.workload.requests import Planned

_STOP = 8
_NOTHING: list[int] = []  # what requests sample in a step; vLLM changes none of them
_TOKENS, _LAST_TOKENS = [7], [_STOP]
_SCHEDULERS = {cls.__name__: cls for cls in (Scheduler, AsyncScheduler)}
# A model that nobody runs: a scheduler asks its configuration for lengths and kinds alone.
_MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 32,
    "hidden_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 64,
    "torch_dtype": "float32",
}


class _Request(Request):  # type: ignore[misc] # vLLM is not typed
    """A request that knows how it goes, and counts when it stops."""

    def __init__(self, plan: Planned, **members: Any) -> None:  # noqa: ANN401 - vLLM's
        self.plan = plan
        self.stops_at = plan.num_outputs - 1 if plan.stops else None
        super().__init__(**members)


class VllmScheduler:
    """One engine's scheduler; raises WorkloadError where the engine is not one that can be simulated."""

    def __init__(self, setup: Setup, *, changes: dict[str, Scalar] | None = None) -> None:
        """Build it as the engine's was; `changes` are other values of fields of its `scheduler_config`."""
        check_can_simulate(setup)
        self._hash_block_size = setup.hash_block_size
        self._scheduler = _build(setup, changes or {})
        self._pool = self._scheduler.kv_cache_manager.block_pool
        self._least_free: int = self._pool.get_num_free_blocks()
        self.is_short_of_blocks = False
        blocks = self._scheduler.kv_cache_manager
        blocks.allocate_slots = self._noticing(blocks.allocate_slots)
        self._is_caching = bool(setup.config["cache_config"].get("enable_prefix_caching"))
        self._num_unknown = self._num_under_way = 0
        self._repeats = Repeats(self._scheduler, *_TOKENS)
        self.num_preempted = 0

    @property
    def has_requests(self) -> bool:
        """Whether there is anything to schedule, or to tell a worker."""
        return bool(self._scheduler.has_requests())

    @property
    def kv_peak_ratio(self) -> float:
        """The share of blocks that requests held at most."""
        return 1 - self._least_free / max(1, int(self._pool.num_gpu_blocks) - 1)  # one is vLLM's, for what is nowhere

    @property
    def counts(self) -> tuple[int, int]:
        """How many requests run, and how many wait to."""
        return len(self._scheduler.running), len(self._scheduler.waiting)

    def add(
        self,
        number: int,
        plan: Planned,
        *,
        num_prompt_tokens: int,
        max_tokens: int,
        arrived_ns: int = 0,
        priority: int = 0,
        lora: int = 0,
        reads_cache: bool = True,
    ) -> None:
        """Hand it a request."""
        self._repeats.end()
        self._scheduler.add_request(
            _Request(
                plan,
                request_id=str(number),
                prompt_token_ids=bytearray(num_prompt_tokens),  # a list's length and copies, in an eighth of its bytes
                sampling_params=_sampling(max_tokens, reads_cache),
                pooling_params=None,
                arrival_time=arrived_ns / 1e9,
                lora_request=LoRARequest(name=f"{lora}", lora_int_id=lora, lora_path="none") if lora else None,
                priority=priority,
                block_hasher=self._hash if self._is_caching else None,
            )
        )

    def abort(self, numbers: Iterable[int]) -> None:
        """Drop requests."""
        self._repeats.end()
        self._scheduler.finish_requests(list(map(str, numbers)), RequestStatus.FINISHED_ABORTED)

    def reset_prefix_cache(self) -> None:
        """Forget what is cached."""
        self._repeats.end()
        self._scheduler.reset_prefix_cache()

    def schedule(self, *, is_throttled: bool = False) -> Any:  # noqa: ANN401 - a SchedulerOutput
        """Choose a step."""
        self.is_short_of_blocks = False
        again = None if is_throttled else self._repeats.schedule()
        if again is not None:
            self._took(again)
            return again
        scheduled = self._scheduler.schedule(True) if is_throttled else self._scheduler.schedule()
        requests = self._scheduler.requests
        # A step ahead of the one whose output is taken in changes what a request is at.
        scheduled.taxbreak_samples = samples = [
            None if (request := requests[req_id]).is_prefill_chunk else request
            for req_id in scheduled.num_scheduled_tokens
        ]
        self._repeats.begin(scheduled, samples, self._num_under_way)
        self.num_preempted += len(getattr(scheduled, "preempted_req_ids", None) or ())
        self._took(scheduled)
        return scheduled

    def update(self, scheduled: Any) -> list[tuple[int, bool]]:  # noqa: ANN401 - a SchedulerOutput
        """Take in the output of a step; return the requests that have a token of it, and whether they are done."""
        self._num_under_way -= scheduled.total_num_scheduled_tokens > 0
        told = self._repeats.update(scheduled) if isinstance(scheduled, Again) else None
        if told is not None:
            return told
        ids = [*scheduled.num_scheduled_tokens]
        output = ModelRunnerOutput(
            req_ids=ids,
            req_id_to_index=dict(zip(ids, range(len(ids)), strict=True)),
            sampled_token_ids=[
                _NOTHING
                if request is None
                else _TOKENS
                if request.stops_at is None or request.num_output_tokens < request.stops_at
                else _LAST_TOKENS
                for request in scheduled.taxbreak_samples
            ],
        )
        return [
            (int(each.request_id), each.finish_reason is not None)
            for outputs in self._scheduler.update_from_output(scheduled, output).values()
            for each in outputs.outputs
            if each.new_token_ids
        ]

    def _noticing(self, allocate: Callable[..., Any]) -> Callable[..., Any]:
        def noticed(*args: Any, **members: Any) -> Any:  # noqa: ANN401 - vLLM's own
            blocks = allocate(*args, **members)
            if blocks is None:
                self.is_short_of_blocks = True
            return blocks

        return noticed

    def _took(self, scheduled: Any) -> None:  # noqa: ANN401 - a SchedulerOutput, or what stands for one
        self._num_under_way += scheduled.total_num_scheduled_tokens > 0
        self._least_free = min(self._least_free, self._pool.get_num_free_blocks())

    def _hash(self, request: _Request) -> Sequence[bytes]:
        begin, end = len(request.block_hashes), request.num_tokens // self._hash_block_size
        if begin == end:
            return ()
        found = [each.to_bytes(8, "little") for each in request.plan.hashes[begin:end]]
        unknown = range(self._num_unknown, self._num_unknown + end - begin - len(found))
        self._num_unknown = unknown.stop
        return [*found, *(each.to_bytes(9, "little") for each in unknown)]


@lru_cache(4096)
def _sampling(max_tokens: int, reads_cache: bool) -> SamplingParams:
    sampling = SamplingParams(max_tokens=max_tokens, stop_token_ids=[_STOP], ignore_eos=True, detokenize=False)
    if not reads_cache:
        sampling.skip_reading_prefix_cache = True
    return sampling


def check_can_simulate(setup: Setup) -> None:
    """Raise WorkloadError for an engine of another vLLM, or one whose scheduler does more than is simulated."""
    if setup.vllm != vllm.__version__:
        raise WorkloadError(
            f"{setup.source}: recorded with vLLM {setup.vllm}, and vLLM {vllm.__version__} is installed here; its "
            "scheduler may choose otherwise"
        )
    if setup.scheduler not in _SCHEDULERS:
        raise WorkloadError(f"{setup.source}: its scheduler is {setup.scheduler}, which is none of vLLM's own")
    if setup.refused:
        raise WorkloadError(f"{setup.source}: not simulated: {', '.join(setup.refused)}")


def _build(setup: Setup, changes: dict[str, Scalar]) -> Scheduler:
    config = _configured(setup)
    for name, value in changes.items():
        if name not in setup.config["scheduler_config"]:
            raise WorkloadError(f"{name}: no setting of vLLM {setup.vllm}'s scheduler")
        setattr(config.scheduler_config, name, value)
    groups = [
        kv_interface.KVCacheGroupSpec([f"{place}.{layer}" for layer in range(group.num_layers)], _spec(group))
        for place, group in enumerate(setup.kv_groups)
    ]
    kv = kv_interface.KVCacheConfig(num_blocks=setup.num_blocks, kv_cache_tensors=[], kv_cache_groups=groups)
    cls = _SCHEDULERS[setup.scheduler]
    sizes = {"block_size": setup.block_size, "hash_block_size": setup.hash_block_size}
    known = inspect.signature(Scheduler.__init__).parameters
    sizes = {name: size for name, size in sizes.items() if name in known}
    return cls(config, kv, StructuredOutputManager(config), log_stats=False, **sizes)


@cache
def _config(length: int) -> Any:  # noqa: ANN401 - a VllmConfig
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(_MODEL | {"max_position_embeddings": length}))
        arguments = EngineArgs(
            model=folder, skip_tokenizer_init=True, dtype="float32", max_model_len=length, enforce_eager=True
        )
        return arguments.create_engine_config()


def _configured(setup: Setup) -> Any:  # noqa: ANN401 - a VllmConfig
    config = copy.copy(_config(int(setup.config["model_config"]["max_model_len"] or 0)))
    for name in ("scheduler_config", "cache_config"):
        setattr(config, name, copy.copy(getattr(config, name)))
        for field, value in setup.config[name].items():
            setattr(getattr(config, name), field, value)
    config.cache_config.num_gpu_blocks = setup.num_blocks
    lora = setup.config.get("lora_config")
    if lora:
        config.lora_config = LoRAConfig(max_loras=int(lora["max_loras"] or 1))
    return config


def _spec(group: KvGroup) -> Any:  # noqa: ANN401 - a KVCacheSpec
    cls = getattr(kv_interface, group.spec, None)
    if cls is None:
        raise WorkloadError(f"{group.spec}: a KV cache that vLLM {vllm.__version__} does not have")
    fields: dict[str, Any] = dict(group.fields)
    if "dtype" in fields:
        fields["dtype"] = getattr(torch, str(fields["dtype"]), torch.uint8)
    known = inspect.signature(cls).parameters
    return cls(**{name: value for name, value in fields.items() if name in known})
