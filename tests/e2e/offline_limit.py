"""An offline vLLM of one model and type, asked for recordings with shapes; writes what its worker said as JSON."""

import json
import sys
import time
from pathlib import Path

from vllm import LLM, SamplingParams

from taxbreak_vllm.model.step import Phase
from taxbreak_vllm.model.worker import CaptureRequest
from taxbreak_vllm.settings import load_settings
from taxbreak_vllm.spool.spool import Spool

NUM_CAPTURES = 3  # of each phase


def is_done(request: CaptureRequest, status: dict) -> bool:
    return (status["capture_id"], status["capture_recorded"]) == (request.capture_id, request.steps)


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
    for phase in Phase.PREFILL, Phase.DECODE:
        request = CaptureRequest(capture_id=f"wanted-{phase.value}", steps=NUM_CAPTURES, phase=phase)
        spool.put_request(status()["server"]["server_id"], request)
        deadline = time.monotonic() + 120
        while not is_done(request, status()) and time.monotonic() < deadline:
            prompts = [{"prompt_token_ids": list(range(6, 6 + length))} for length in (8, 40, 97)]
            llm.generate(prompts, SamplingParams(max_tokens=3, ignore_eos=True), use_tqdm=False)
    (folder / "said.json").write_text(json.dumps(status()))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), **dict(each.split("=", 1) for each in sys.argv[4:]))
