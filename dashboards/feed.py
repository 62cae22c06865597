"""What the dashboards are checked with: a sidecar, a real vLLM with a tiny model, and recorded GPU steps.

A recorded step of a GPU is put into the spool as its worker would have: with its StepInfo, and a state of the worker
beside it, and of an engine and an API server as they might be. One damaged capture is put there too, so that something
is lost.
"""

import gzip
import shutil
import time
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from taxbreak_vllm import analyze
from taxbreak_vllm.demo.load import send
from taxbreak_vllm.demo.models import write_tiny_llama
from taxbreak_vllm.demo.processes import Processes
from taxbreak_vllm.demo.servers import start_sidecar, start_vllm
from taxbreak_vllm.model.engine import Between, EnginePart, EngineState, IdleFrom, IterationSums
from taxbreak_vllm.model.frontend import DELIVERY, SPAN_BUCKETS_NS, FrontendState, SpanHistogram, Stage
from taxbreak_vllm.model.shape import AttentionShape, ExpertShape, MatrixShape, ModelShape, StepWork
from taxbreak_vllm.model.step import STEP_BUCKETS_NS, Batch, GraphMode, Phase, Server, StepHistogram, StepInfo
from taxbreak_vllm.model.worker import WorkerState
from taxbreak_vllm.spool.spool import Spool

TRACES = Path(__file__).parents[2] / "shared" / "traces"
SAMPLE_EVERY = 8
OVERHEAD_RATIO = 0.002


@dataclass(frozen=True, slots=True)
class Recorded:
    """A step that was recorded on a GPU, and what its worker knew of it."""

    file: str
    model_name: str
    device_name: str
    phase: Phase
    graph_mode: str
    batch: Batch
    model: ModelShape | None = None
    work: StepWork | None = None


_EXPERT = 3 * 2048 * 768
_QWEN3_30B_A3B = ModelShape(
    dtype="bf16",
    product_dtype="bf16",
    linear=MatrixShape(weights=48 * 18_874_368, bytes=96 * 18_874_368),
    lm_head=MatrixShape(weights=2048 * 151_936, bytes=4096 * 151_936),
    attention=(
        AttentionShape(layers=48, heads=32, kv_heads=4, head_size=128, head_size_v=128, kv_bytes_per_token=2048),
    ),
    experts=(ExpertShape(layers=48, experts=128, local_experts=128, top_k=8, weights=_EXPERT, bytes=2 * _EXPERT),),
)
RECORDED = (
    Recorded(
        "b200_vllm_eager_infer.json.gz",
        "recorded-b200",
        "NVIDIA B200",
        Phase.PREFILL,
        "none",
        Batch(requests=1, prompt_tokens=888, output_tokens=1),
    ),
    Recorded(
        "b300_sglang_qwen3-30b-a3b_decode_cudagraph.json.gz",
        "recorded-b300",
        "NVIDIA B300",
        Phase.DECODE,
        GraphMode.FULL,
        Batch(requests=16, prompt_tokens=0, output_tokens=16),
        model=_QWEN3_30B_A3B,
        work=StepWork(queries=16, keys=16_000, pairs=16_000, logits_rows=16, padded_tokens=16),
    ),
    Recorded(
        "amd_vllm_prefilldecode_piecewise.json.gz",
        "recorded-mi300",
        "AMD Instinct MI300X",
        Phase.MIXED,
        GraphMode.PIECEWISE,
        Batch(requests=38, prompt_tokens=8155, output_tokens=38),
    ),
)


class Feed:
    """Starts sidecar and vLLM; each `send` gives both of them, and the spool, something new."""

    def __init__(self, processes: Processes) -> None:
        root = processes.folder / "spool"
        self._spool = Spool(root, max_bytes=2**30, max_captures=512)
        self._recorded = tuple(step for step in RECORDED if (TRACES / step.file).is_file())
        self._num_plain = 0
        self._seeds = count(1)
        self._started_ns = time.time_ns()
        env = {"TAXBREAK_SPOOL": str(root), "TAXBREAK_SAMPLE_EVERY": str(SAMPLE_EVERY)}
        env["TAXBREAK_OVERHEAD_BUDGET_RATIO"] = "1"  # what is checked here is the queries, within a minute
        self.vllm = start_vllm(processes, write_tiny_llama(processes.folder / "tiny-llama"), env=env)
        self.sidecar = start_sidecar(processes, root).wait()
        self.models = ("tiny-llama", *(step.model_name for step in self._recorded))
        self._put_damaged()

    def send(self) -> None:
        """Send one round of requests to vLLM and put every recorded step into the spool once more."""
        seed = next(self._seeds)
        self._num_plain += 100
        for step in self._recorded:
            self._put(step, seed)
        send(self.vllm.url, "tiny-llama", seed=seed)

    def _put(self, step: Recorded, number: int) -> None:
        trace = TRACES / step.file
        window_ns = analyze(trace).total.window_ns
        server = Server(
            server_id=step.model_name, model_name=step.model_name, device_type="cuda", device_name=step.device_name
        )
        info = StepInfo(
            step_id=f"{step.model_name}-{self._started_ns}-{number}",
            step_index=number,
            server=server,
            phase=step.phase,
            batch=step.batch,
            graph_mode=step.graph_mode,
            started_unix_ns=time.time_ns(),
            window_ns=window_ns,
            plain_window_ns=window_ns * 2 // 3,
            num_plain=self._num_plain,
            work=step.work,
        )
        self._spool.put(info, lambda path: shutil.copy(trace, path))
        self._spool.put_state(self._state(info, step.model))
        self._spool.put_engine_state(self._engine(info))
        self._spool.put_frontend_state(self._frontend(info))

    def _engine(self, info: StepInfo) -> EngineState:
        num, step_ns = info.num_plain, info.num_plain * (info.plain_window_ns or 0)
        exposed_ns = {part: step_ns // 100 for part in EnginePart}
        between_ns = {cause: step_ns // 50 for cause in Between}
        whole_ns = step_ns + sum(exposed_ns.values()) + sum(between_ns.values())
        sums = {"worker_ns": step_ns, "exposed_ns": exposed_ns, "between_ns": between_ns}
        return EngineState(
            **self._names(info),
            engine="0",
            num_iterations=num,
            iterations_ns=whole_ns,
            busy_ns=exposed_ns,
            phases={info.phase: IterationSums(num=num, total_ns=whole_ns, **sums)},
            idle_from=IdleFrom.WORKER_CALLS,
            runqueue_wait_ratio=0.02,
            **sums,
        )

    def _frontend(self, info: StepInfo) -> FrontendState:
        def spans(each_ns: int) -> SpanHistogram:
            bucket = sum(bound_ns < each_ns for bound_ns in SPAN_BUCKETS_NS)
            counts = tuple(info.num_plain * (i == bucket) for i in range(len(SPAN_BUCKETS_NS) + 1))
            return SpanHistogram(num=info.num_plain, sum_ns=info.num_plain * each_ns, bucket_counts=counts)

        return FrontendState(
            **self._names(info),
            num_requests=info.num_plain,
            stages={stage: spans(5_000_000) for stage in Stage},
            tokens={stage: spans(100_000) for stage in DELIVERY},
            ttft=spans(55_000_000),
            total=spans(60_000_000),
            loop_lag=spans(200_000),
            runqueue_wait_ratio=0.05,
        )

    def _names(self, info: StepInfo) -> dict[str, str | int]:
        server = info.server
        return {
            "server_id": server.server_id,
            "model_name": server.model_name,
            "started_unix_ns": self._started_ns,
            "updated_unix_ns": time.time_ns(),
        }

    def _state(self, info: StepInfo, model: ModelShape | None) -> WorkerState:
        plain_ns = info.plain_window_ns or 0
        bucket = sum(bound_ns < plain_ns for bound_ns in STEP_BUCKETS_NS)
        histogram = StepHistogram(
            phase=info.phase,
            graph_mode=info.graph_mode,
            num_steps=info.num_plain,
            sum_ns=info.num_plain * plain_ns,
            bucket_counts=tuple(info.num_plain * (i == bucket) for i in range(len(STEP_BUCKETS_NS) + 1)),
        )
        serving_ns = time.time_ns() - self._started_ns
        return WorkerState(
            server=info.server,
            started_unix_ns=self._started_ns,
            updated_unix_ns=time.time_ns(),
            enabled=True,
            steps=(histogram,),
            num_samples=info.step_index,
            overhead_ns=int(serving_ns * OVERHEAD_RATIO),
            serving_ns=serving_ns,
            model=model,
        )

    def _put_damaged(self) -> None:
        server = Server(server_id="damaged", model_name="tiny-llama", device_type="cpu")
        info = StepInfo(
            step_id=f"damaged-{self._started_ns}",
            step_index=1,
            server=server,
            phase=Phase.DECODE,
            batch=Batch(),
            graph_mode=GraphMode.NONE,
            started_unix_ns=self._started_ns,
            window_ns=1,
        )
        self._spool.put(info, lambda path: path.write_bytes(gzip.compress(b"{")))
