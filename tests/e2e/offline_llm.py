"""An offline vLLM with the extension, as a user's script has it; writes what its worker said along the way as JSON."""

import json
import sys
import time
from pathlib import Path

from vllm import LLM, SamplingParams

from taxbreak_vllm.model.step import Phase
from taxbreak_vllm.model.worker import CaptureRequest
from taxbreak_vllm.settings import load_settings
from taxbreak_vllm.spool.spool import Spool


def main(model: str, folder: Path) -> None:
    llm = LLM(
        model=model,
        load_format="dummy",
        dtype="float32",
        enforce_eager=True,
        max_model_len=256,
        max_num_seqs=8,
        kv_cache_memory_bytes=33554432,
        worker_extension_cls="taxbreak_vllm.WorkerExtension",
        profiler_config={"profiler": "torch", "torch_profiler_dir": str(folder / "theirs")},
    )

    def generate() -> None:
        prompts = [f"prompt number {number}" for number in range(4)]
        llm.generate(prompts, SamplingParams(max_tokens=8, ignore_eos=True), use_tqdm=False)

    def status() -> dict:
        (status,) = llm.collective_rpc("taxbreak_status")
        return status

    said = {"asleep": status()}
    for _ in range(10):
        generate()
    said["sampled"] = status()

    settings = load_settings()
    spool = Spool(settings.spool, max_bytes=settings.spool_max_bytes, max_captures=settings.spool_max_captures)
    request = CaptureRequest(capture_id="wanted", steps=3, phase=Phase.DECODE, stacks=True)
    spool.put_request(said["asleep"]["server"]["server_id"], request)
    deadline = time.monotonic() + 30
    while status()["capture_recorded"] < 3 and time.monotonic() < deadline:
        generate()
    said["asked"] = status()

    llm.start_profile()
    deadline = time.monotonic() + 30
    generate()
    while "vllm_profiler" not in status()["dropped"] and time.monotonic() < deadline:
        generate()  # while the last recording is still being stored, its successor is dropped for that
    llm.stop_profile()
    said["beside_theirs"] = status()
    generate()
    (folder / "said.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
