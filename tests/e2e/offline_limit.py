"""An offline vLLM of one model and type, asked for recordings with shapes; writes what its worker said as JSON."""

import json
import sys
import time
from pathlib import Path

from vllm import LLM, SamplingParams

from taxbreak_vllm.model.worker import CaptureRequest
from taxbreak_vllm.settings import load_settings
from taxbreak_vllm.spool.spool import Spool

NUM_CAPTURES = 6


def main(model: str, dtype: str, folder: Path, **more: str) -> None:
    llm = LLM(
        model=model,
        load_format="dummy",
        dtype=dtype,
        enforce_eager=True,
        max_model_len=256,
        max_num_seqs=8,
        kv_cache_memory_bytes=33554432,
        worker_extension_cls="taxbreak_vllm.WorkerExtension",
        **more,
    )

    def status() -> dict:
        (status,) = llm.collective_rpc("taxbreak_status")
        return status

    settings = load_settings()
    spool = Spool(settings.spool, max_bytes=settings.spool_max_bytes, max_captures=settings.spool_max_captures)
    request = CaptureRequest(capture_id="wanted", steps=NUM_CAPTURES)
    spool.put_request(status()["server"]["server_id"], request)
    deadline = time.monotonic() + 60
    while status()["capture_recorded"] < NUM_CAPTURES and time.monotonic() < deadline:
        prompts = [{"prompt_token_ids": list(range(6, 6 + length))} for length in (8, 40, 97)]
        llm.generate(prompts, SamplingParams(max_tokens=3, ignore_eos=True), use_tqdm=False)
    (folder / "said.json").write_text(json.dumps(status()))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), **dict(each.split("=", 1) for each in sys.argv[4:]))
