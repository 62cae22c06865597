"""An offline vLLM over the simulated device: generates once for each setting of its knobs, and says when it did.

    offline_simulated.py MODEL FOLDER async|sync mp|uni SETTINGS

SETTINGS is JSON, a list of knobs in ns; `FOLDER/periods` becomes the list of when each began and ended.
"""

import json
import sys
import time
from pathlib import Path

from rig.logs import num_steps
from rig.simulated import WORKER, prepare
from vllm import LLM, SamplingParams

from taxbreak_vllm.settings import load_settings
from taxbreak_vllm.spool.spool import Spool

_UNIPROC = "vllm.v1.executor.uniproc_executor.UniProcExecutor"
_NUM_REQUESTS, _NUM_TOKENS = 4, 150


def main(model: str, folder: Path, scheduling: str, executor: str, settings: list[dict[str, int]]) -> None:
    knobs = prepare(folder)
    llm = LLM(
        model=model,
        load_format="dummy",
        dtype="float32",
        enforce_eager=True,
        max_model_len=512,
        max_num_seqs=8,
        kv_cache_memory_bytes=33554432,
        worker_cls=WORKER,
        async_scheduling=scheduling == "async",
        distributed_executor_backend=_UNIPROC if executor == "uni" else executor,
    )

    def generate() -> tuple[int, int]:
        begun_ns = time.monotonic_ns()
        prompts = [f"prompt number {number}" for number in range(_NUM_REQUESTS)]
        llm.generate(prompts, SamplingParams(max_tokens=_NUM_TOKENS, ignore_eos=True), use_tqdm=False)
        return begun_ns, time.monotonic_ns()

    generate()
    periods = []
    for setting in settings:
        knobs.turn(**setting)
        periods.append(generate())
    (folder / "periods").write_text(json.dumps(periods))
    _until_counted(folder)


def _until_counted(folder: Path) -> None:
    """Wait until the engine has published all iterations: one less than there were steps."""
    settings = load_settings()
    spool = Spool(settings.spool, max_bytes=settings.spool_max_bytes, max_captures=settings.spool_max_captures)
    wanted = num_steps(folder) - 1
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and all(state.num_iterations < wanted for state in spool.engine_states()):
        time.sleep(0.1)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3], sys.argv[4], json.loads(sys.argv[5]))
