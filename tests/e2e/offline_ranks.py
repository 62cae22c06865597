"""An offline vLLM of two ranks, recording where they may; writes what they recorded and timed as JSON."""

import json
import sys
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory

from vllm import LLM, SamplingParams

from taxbreak_vllm.settings import load_settings
from taxbreak_vllm.spool.spool import Spool

NUM_CAPTURES = {"tensor": 3, "pipeline": 30}
RECORDING = {"tensor": (0, 1), "pipeline": (1,)}
# vLLM's CPU backend readies the later ranks of a pipeline in its warm-up, which an uncompiled model goes without
EAGER = {
    "tensor": {"enforce_eager": True},
    "pipeline": {"compilation_config": {"mode": 2, "backend": "eager", "custom_ops": ["none"]}},
}


def lend_cpus_as_gpus() -> None:
    """Let this process take what Ray calls a GPU for a CPU: vLLM's CPU build names no resource of Ray's at all."""
    from vllm.platforms import current_platform

    current_platform.ray_device_key = "GPU"


@contextmanager
def ray_of_two_cpus():
    """A Ray of this machine alone, whose actors understand its GPUs as above."""
    import ray

    lend_cpus_as_gpus()
    with TemporaryDirectory(prefix="ray-") as folder:  # near the root: Ray's sockets have long names
        hook = {"worker_process_setup_hook": lend_cpus_as_gpus}
        ray.init(
            "local",
            num_gpus=2,
            num_cpus=0,
            include_dashboard=False,
            runtime_env=hook,
            _node_ip_address="127.0.0.1",
            _temp_dir=folder,
        )
        yield
        ray.shutdown()


def main(model: str, folder: Path, parallel: str, backend: str) -> None:
    with ray_of_two_cpus() if backend == "ray" else nullcontext():
        record(model, folder, parallel, backend)


def record(model: str, folder: Path, parallel: str, backend: str) -> None:
    llm = LLM(
        model=model,
        load_format="dummy",
        dtype="float32",
        **EAGER[parallel],
        max_model_len=256,
        max_num_seqs=8,
        kv_cache_memory_bytes=33554432,
        **{f"{parallel}_parallel_size": 2},
        distributed_executor_backend=backend,
        worker_extension_cls="taxbreak_vllm.WorkerExtension",
    )
    settings = load_settings()
    spool = Spool(settings.spool, max_bytes=settings.spool_max_bytes, max_captures=settings.spool_max_captures)
    deadline, steps_by_rank = time.monotonic() + 300, {}
    while time.monotonic() < deadline:
        prompts = [f"prompt number {number}" for number in range(4)]
        llm.generate(prompts, SamplingParams(max_tokens=8, ignore_eos=True), use_tqdm=False)
        steps_by_rank = {0: {}, 1: {}}
        for info in (capture.read_info() for capture in spool.captures()):
            steps_by_rank[info.server.rank][info.step_index] = (info.phase, info.window_ns)
        if min(len(steps_by_rank[rank]) for rank in RECORDING[parallel]) >= NUM_CAPTURES[parallel]:
            break
    said = {"recorded": steps_by_rank, "status": llm.collective_rpc("taxbreak_status")}
    (folder / "said.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
