"""An offline vLLM whose steps are of every phase that the CPU build can run; writes step counts per part as JSON.

It starts with recording switched off, so that every step is counted as a plain one, and switches it on at last.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

from vllm import LLM, SamplingParams

from taxbreak_vllm.model.worker import Control
from taxbreak_vllm.settings import load_settings
from taxbreak_vllm.spool.spool import Spool

CHUNK = 32
NUM_DRAFTS = 3
NUM_CAPTURES = 12


def main(model: str, folder: Path) -> None:
    llm = LLM(
        model=model,
        load_format="dummy",
        dtype="float32",
        enforce_eager=True,
        max_model_len=512,
        max_num_seqs=4,
        max_num_batched_tokens=CHUNK,
        kv_cache_memory_bytes=33554432,
        num_gpu_blocks_override=5,  # fewer than four requests come to need
        enable_prefix_caching=True,
        speculative_config={
            "method": "ngram",
            "num_speculative_tokens": NUM_DRAFTS,
            "prompt_lookup_max": 3,
            "prompt_lookup_min": 1,
        },
        worker_extension_cls="taxbreak_vllm.WorkerExtension",
        disable_log_stats=False,
    )
    block_size = llm.llm_engine.vllm_config.cache_config.block_size

    def status() -> dict:
        (status,) = llm.collective_rpc("taxbreak_status")
        return status

    def count() -> dict[str, int]:
        steps = {kind["phase"]: kind["num_steps"] for kind in status()["steps"]}
        theirs = {metric.name: metric.value for metric in llm.get_metrics() if hasattr(metric, "value")}
        return steps | {name: theirs[f"vllm:{name}"] for name in ("spec_decode_num_drafts", "num_preemptions")}

    def generate(*lengths: int, seed: int, max_tokens: int) -> None:
        # no two neighbours of a prompt come again, so that nothing is drafted before there is output
        prompts = [
            {"prompt_token_ids": [(seed * 131 + index * 57 + position * 7) % 500 + 6 for position in range(length)]}
            for index, length in enumerate(lengths)
        ]
        llm.generate(prompts, SamplingParams(max_tokens=max_tokens, ignore_eos=True, temperature=0.0), use_tqdm=False)

    def part(run: Callable[[], None]) -> dict[str, int]:
        before = count()
        run()
        return {name: new for name, value in count().items() if (new := value - before.get(name, 0))}

    generate(4, seed=0, max_tokens=1)
    said = {
        "block_size": block_size,
        "chunked": part(lambda: generate(100, seed=1, max_tokens=1)),
        "mixed": part(lambda: generate(4, 100, seed=2, max_tokens=6)),
        "drafted": part(lambda: generate(8, seed=3, max_tokens=60)),
        "cold": part(lambda: generate(block_size + 1, seed=4, max_tokens=1)),
        "prefix_hit": part(lambda: generate(block_size + 1, seed=4, max_tokens=1)),
        "preempted": part(lambda: generate(*[block_size - 8] * 4, seed=5, max_tokens=110)),
        "off": status(),
    }

    settings = load_settings()
    spool = Spool(settings.spool, max_bytes=settings.spool_max_bytes, max_captures=settings.spool_max_captures)
    spool.put_control(said["off"]["server"]["server_id"], Control(control_id="on", enabled=True))
    deadline, seed = time.monotonic() + 300, 6
    while len(spool.captures()) < NUM_CAPTURES and time.monotonic() < deadline:
        generate(100, 8, seed=seed, max_tokens=30)
        seed += 1
    said["on"] = status()
    (folder / "said.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
