"""vLLM servers with dummy weights for `gpu_serving.py`, and a load that notes when each token came.

Only the standard library and vLLM's own packages: a GPU host may have nothing else.
"""

import http.client
import json
import os
import random
import socket
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from taxbreak_vllm.demo import models
from taxbreak_vllm.demo.processes import Process, Processes

_START_S = 300.0
_ONE_PROCESS = "vllm.v1.executor.uniproc_executor.UniProcExecutor"  # as in `demo.servers`, which a GPU host may lack
# of a rehearsal: threads that do not spin for one another, and recordings that take longer than the steps they are of
_SMALL = {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "TAXBREAK_OVERHEAD_BUDGET_RATIO": "1"}
_COMMON: dict[str, object] = {
    "max_position_embeddings": 8192, "rms_norm_eps": 1e-6, "rope_theta": 500000.0, "hidden_act": "silu",
    "attention_bias": False, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1,
}  # fmt: skip
CONFIGS: dict[str, dict[str, object]] = {
    # the shape of Llama-3.2-1B
    "llama": {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192,
        "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64,
        "vocab_size": 128256,
    } | _COMMON,
    # the shape of Qwen3-30B-A3B, a quarter of its layers
    "moe": {
        "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "hidden_size": 2048,
        "intermediate_size": 6144, "num_hidden_layers": 12, "num_attention_heads": 32, "num_key_value_heads": 4,
        "head_dim": 128, "vocab_size": 151936, "num_experts": 128, "num_experts_per_tok": 8,
        "moe_intermediate_size": 768, "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [],
    } | _COMMON,
}  # fmt: skip


def write_model(kind: str, folder: Path, *, is_tiny: bool) -> Path:
    """Write a model folder without weights."""
    if is_tiny:
        return {"llama": models.write_tiny_llama, "moe": models.write_tiny_moe}[kind](folder)
    return models._write_model(folder, CONFIGS[kind])


@dataclass(frozen=True, slots=True)
class Load:
    """Requests of random tokens: how many at a time, and how long."""

    name: str
    requests: int
    clients: int
    prompt: int
    output: int

    def tiny(self) -> "Load":
        """The same kind of load in a size for a rehearsal."""
        return Load(self.name, min(self.requests, 8), min(self.clients, 4), min(self.prompt, 64), min(self.output, 16))


@dataclass(slots=True)
class Heard:
    """What the clients of a load saw: arrival of every message of every request that was served, ns."""

    began_ns: int
    ended_ns: int = 0
    began_unix_ns: int = 0
    ended_unix_ns: int = 0
    arrivals_ns: list[list[int]] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def figures(self, load: Load) -> dict[str, Any]:
        """Throughput in tokens/s, the time a token took each request, and the gaps between what its client received.

        Under load a message may hold several tokens, so they are counted by what was asked for.
        """
        tokens = load.output * len(self.arrivals_ns)
        found: dict[str, Any] = {
            "tokens": tokens,
            "tokens_per_s": tokens / ((self.ended_ns - self.began_ns) / 1e9),
            "failed": len(self.failed),
        }
        gaps = sorted(b - a for arrivals in self.arrivals_ns for a, b in pairwise(arrivals))
        if gaps and load.output > 1:
            found |= {
                "tpot_ns": median((arrivals[-1] - arrivals[0]) / (load.output - 1) for arrivals in self.arrivals_ns),
                "itl_ns": median(gaps), "itl_p99_ns": gaps[int(len(gaps) * 0.99)], "itl_max_ns": gaps[-1],
                "messages": sum(map(len, self.arrivals_ns)),
            }  # fmt: skip
        return found


@dataclass(frozen=True, slots=True)
class Server:
    """One vLLM that is, or will be, listening; `spool` is where its captures are."""

    process: Process
    port: int
    spool: Path

    def is_healthy(self) -> bool:
        """Whether it answers now."""
        try:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except OSError:
            return False

    def wait(self) -> "Server":
        """Return once it answers; raises ProcessError with its last words where it will not."""
        self.process.wait_until(self.is_healthy, "healthy", timeout_s=_START_S)
        return self

    def send(self, load: Load, *, seed: int = 0) -> Heard:
        """Send a load and wait for its end."""
        chosen = random.Random(seed)
        prompts = [[chosen.randrange(10, 250) for _ in range(load.prompt)] for _ in range(load.requests)]
        heard = Heard(time.perf_counter_ns(), began_unix_ns=time.time_ns())
        with ThreadPoolExecutor(load.clients) as pool:
            for arrivals, error in pool.map(lambda prompt: self._ask(prompt, load.output), prompts):
                if error:
                    heard.failed.append(error)
                else:
                    heard.arrivals_ns.append(arrivals)
        heard.ended_ns, heard.ended_unix_ns = time.perf_counter_ns(), time.time_ns()
        return heard

    def _ask(self, prompt: Sequence[int], output: int) -> tuple[list[int], str]:
        body = {
            "model": "dummy", "prompt": list(prompt), "max_tokens": output, "temperature": 0.0, "stream": True,
            "ignore_eos": True,
        }  # fmt: skip
        arrivals: list[int] = []
        try:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
            connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
            response = connection.getresponse()
            if response.status != 200:
                return arrivals, f"{response.status} {response.read(200)!r}"
            for line in response:
                if line.startswith(b"data: {"):
                    arrivals.append(time.perf_counter_ns())
        except OSError as error:
            return arrivals, repr(error)
        return arrivals, ""


def start(
    processes: Processes,
    name: str,
    model: Path,
    *,
    flags: Sequence[str] = (),
    env: dict[str, str] | None = None,
    is_plugged: bool = True,
    is_gpu: bool = True,
) -> Server:
    """Start a server beside others on the same device: a fixed piece of memory each."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    spool = processes.folder / f"{name}.spool"
    size = (
        ("--max-model-len", "4096", "--gpu-memory-utilization", "0.2", "--kv-cache-memory-bytes", str(8 * 2**30))
        if is_gpu
        else (
            *("--max-model-len", "512", "--max-num-seqs", "8", "--kv-cache-memory-bytes", str(32 * 2**20)),
            *("--dtype", "float32"),
            *("--distributed-executor-backend", _ONE_PROCESS),
        )
    )
    command = [
        *(sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(model), "--served-model-name", "dummy"),
        *("--load-format", "dummy", "--host", "127.0.0.1", "--port", str(port), "--seed", "0", *size, *flags),
        *(("--worker-extension-cls", "taxbreak_vllm.WorkerExtension") if is_plugged else ()),
    ]
    kept = {key: value for key, value in os.environ.items() if not key.startswith("TAXBREAK_")}
    own = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "PYTHONUNBUFFERED": "1", "TAXBREAK_SPOOL": str(spool)}
    own |= {} if is_gpu else _SMALL
    return Server(processes.start(name, command, env=kept | own | (env or {})), port, spool)
