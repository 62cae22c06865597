"""An offline vLLM whose steps are of every phase that the CPU build can run; writes step counts per part as JSON."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

from vllm import LLM, SamplingParams

MAX_TOKENS = 32  # of a step
NUM_DRAFTS = 3


def main(model: str, folder: Path) -> None:
    llm = LLM(
        model=model,
        load_format="dummy",
        dtype="float32",
        enforce_eager=True,
        max_model_len=512,
        max_num_seqs=4,
        max_num_batched_tokens=MAX_TOKENS,
        kv_cache_memory_bytes=33554432,
        num_gpu_blocks_override=6,
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

    def count() -> dict[str, int]:
        (status,) = llm.collective_rpc("taxbreak_status")
        steps = {kind["phase"]: kind["num_steps"] for kind in status["steps"]}
        own = {metric.name: metric.value for metric in llm.get_metrics() if hasattr(metric, "value")}
        names = ("spec_decode_num_drafts", "spec_decode_num_accepted_tokens", "num_preemptions")
        return steps | {name: own[f"vllm:{name}"] for name in names}

    def generate(*lengths: int, seed: int, max_tokens: int) -> None:
        # no two tokens of a prompt alike, so that nothing is drafted before there is output
        prompts = [
            {"prompt_token_ids": [(seed * 131 + i * 7 + n * 57) % 500 + 6 for n in range(length)]}
            for i, length in enumerate(lengths)
        ]
        llm.generate(prompts, SamplingParams(max_tokens=max_tokens, ignore_eos=True, temperature=0.0), use_tqdm=False)

    def part(run: Callable[[], None]) -> dict[str, int]:
        before = count()
        run()
        return {name: value - before.get(name, 0) for name, value in count().items()}

    said = {
        "chunked": part(lambda: generate(100, seed=1, max_tokens=1)),
        "mixed": part(lambda: generate(4, 100, seed=2, max_tokens=6)),
        "drafted": part(lambda: generate(8, seed=3, max_tokens=60)),
        "cold": part(lambda: generate(block_size + 1, seed=4, max_tokens=1)),
        "prefix_hit": part(lambda: generate(block_size + 1, seed=4, max_tokens=1)),
        "preempted": part(lambda: generate(*[block_size - 8] * 4, seed=5, max_tokens=40)),
        "block_size": block_size,
    }
    (folder / "said.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
