"""Two offline vLLMs with the extension, one after another in one process; their captures go to the spool."""

import sys

from vllm import LLM, SamplingParams
from vllm.distributed.parallel_state import cleanup_dist_env_and_memory


def main(models: list[str]) -> None:
    for model in models:
        llm = LLM(
            model=model,
            load_format="dummy",
            dtype="float32",
            enforce_eager=True,
            max_model_len=256,
            max_num_seqs=8,
            kv_cache_memory_bytes=33554432,
            worker_extension_cls="taxbreak_vllm.WorkerExtension",
        )
        for turn in range(8):  # batches of 1 to 4, prompts of several lengths, greedy and sampled
            prompts = [f"prompt number {n} " * (1 + (turn + n) % 4) for n in range(1 + turn % 4)]
            sampling = SamplingParams(max_tokens=16, ignore_eos=True, temperature=0 if turn % 2 else 0.8)
            llm.generate(prompts, sampling, use_tqdm=False)
        llm.llm_engine.engine_core.shutdown()
        del llm
        cleanup_dist_env_and_memory()


if __name__ == "__main__":
    main(sys.argv[1:])
