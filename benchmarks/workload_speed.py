"""How fast an engine is served in virtual time, beside vLLM's scheduler alone, and what a million requests take.

    python benchmarks/workload_speed.py [--trace FILE …] [--requests 100000] [--rounds 5] [--json FILE]

Speed: 8 requests at a time, rounds of ours and of bare `schedule()` and `update_from_output()` calls with outputs made
beforehand, in turn, processor time. Length: requests of published traces (Azure's,
https://github.com/Azure/AzurePublicDataset), again and again until there are so many, on an engine of 256 sequences
that schedules ahead; without a trace, made-up ones of such lengths. Each tenth of them takes as long, and
memory stays, where neither grows with what was served before.
"""

import argparse
import gc
import json
import random
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import numpy as np
import vllm
from machine import describe_machine
from vllm.sampling_params import SamplingParams
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request as VllmRequest

from taxbreak_vllm.model.workload import Fit, FrontendFit, Stalls
from taxbreak_vllm.traffic.rows import KvGroup, Setup
from taxbreak_vllm.workload.cost import Noise, StepCost
from taxbreak_vllm.workload.figures import figures, latencies, simulated_rows
from taxbreak_vllm.workload.frontend import FrontendQueue
from taxbreak_vllm.workload.loads import read_load
from taxbreak_vllm.workload.requests import Request, Requests
from taxbreak_vllm.workload.scheduler import VllmScheduler
from taxbreak_vllm.workload.simulate import serve

BLOCK = 16
NUM_SEQS, NUM_PROMPT, NUM_OUTPUTS = 8, 64, 256
NUM_AT_A_TIME = 400  # requests of a round
MAX_RATIO = 0.5
PARTS = 10
FRONTEND = FrontendFit(num_requests=1, request_ns=1_000_000, output_ns=20_000, send_ns=30_000, end_ns=200_000)
# What steps take (ns): a step, and for each prompt token, request in its prompt, request that generates, and Σ context.
BETA_NS = [[300e3, 50, 20e3, 5e3, 0], [8e6, 25e3, 0, 30e3, 5], [200e3, 0, 0, 8e3, 0]]


def main() -> int:
    """Measure, print, and write what was asked for; 1 where we take more than half of what its scheduler alone does."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--trace", type=Path, nargs="+", default=[])
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    gc.disable()  # as in the process that simulates
    speed = _speed(options.rounds)
    length = _length(options.trace, options.requests) if options.requests else None
    if options.json:
        found = {"machine": describe_machine("vllm"), "speed": speed, "length": length}
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    return int(speed["ratio"] > MAX_RATIO)


def _speed(num_rounds: int) -> dict[str, object]:
    _ours(50), _bare(50)
    rounds = [{"ours": _ours(NUM_AT_A_TIME), "bare": _bare(NUM_AT_A_TIME)} for _ in range(num_rounds)]
    ours, bare = (median(each[name] for each in rounds) for name in ("ours", "bare"))
    ratio = median(each["bare"] / each["ours"] for each in rounds)
    print(
        f"{NUM_SEQS} requests at a time: {ours:,.0f} steps a second of CPU, vLLM's scheduler alone {bare:,.0f}: "
        f"we take {ratio:.2f} times as long",
        flush=True,
    )
    return {"steps_per_s": ours, "bare_steps_per_s": bare, "ratio": ratio, "rounds": rounds}


def _ours(num: int) -> float:
    requests = Requests.of(Request(n, 0.0, NUM_PROMPT, NUM_OUTPUTS, NUM_OUTPUTS) for n in range(num))
    scheduler, cost = VllmScheduler(_setup(NUM_SEQS, 2048, 4096, "Scheduler")), _cost()
    begin_ns = time.process_time_ns()
    run = serve(
        requests, scheduler, cost, Noise(cost, 1), [FrontendQueue(FRONTEND)], graph_mode_of=lambda is_prefill, size: ""
    )
    return run.num_steps / (time.process_time_ns() - begin_ns) * 1e9


def _bare(num: int) -> float:
    scheduler = VllmScheduler(_setup(NUM_SEQS, 2048, 4096, "Scheduler"))._scheduler
    del scheduler.kv_cache_manager.allocate_slots  # ours, about vLLM's
    sampling, num_hashed = SamplingParams(max_tokens=NUM_OUTPUTS, ignore_eos=True, detokenize=False), 0

    def hashes(request: VllmRequest) -> list[bytes]:
        nonlocal num_hashed
        new = request.num_tokens // BLOCK - len(request.block_hashes)
        num_hashed += new
        return [n.to_bytes(8, "little") for n in range(num_hashed - new, num_hashed)]

    begin_ns = time.process_time_ns()
    for number in range(num):
        scheduler.add_request(
            VllmRequest(str(number), [7] * NUM_PROMPT, sampling, None, arrival_time=0.0, block_hasher=hashes)
        )
    ids, output, num_steps = None, None, 0
    while scheduler.has_requests():
        scheduled = scheduler.schedule()
        if ids != list(scheduled.num_scheduled_tokens):
            ids = list(scheduled.num_scheduled_tokens)
            places = {req_id: place for place, req_id in enumerate(ids)}
            output = ModelRunnerOutput(req_ids=ids, req_id_to_index=places, sampled_token_ids=[[7]] * len(ids))
        scheduler.update_from_output(scheduled, output)
        num_steps += bool(ids)
    return num_steps / (time.process_time_ns() - begin_ns) * 1e9


def _length(traces: list[Path], num: int) -> dict[str, object]:
    once = _traced(traces) if traces else _made_up()
    parts: list[dict[str, float]] = []

    def watched() -> Iterator[Request]:
        at = time.process_time()
        for place, request in enumerate(_repeated(once, num)):
            if place % (num // PARTS) == 0 and place:
                parts.append({"cpu_s": time.process_time() - at, "resident_mb": _resident_mb()})
                at = time.process_time()
            yield request
        parts.append({"cpu_s": time.process_time() - at, "resident_mb": _resident_mb()})

    scheduler, cost = VllmScheduler(_setup(256, 8192, 16_384, "AsyncScheduler")), _cost()
    before_mb, begin_s = _resident_mb(), time.process_time()
    run = serve(
        watched(),
        scheduler,
        cost,
        Noise(cost, 1),
        [FrontendQueue(FRONTEND)],
        graph_mode_of=lambda is_prefill, size: "",
        depth=2,
    )
    cpu_s = time.process_time() - begin_s
    found = latencies(simulated_rows([run]))
    tokens = int(run.table[:, -1].sum())
    result = {
        "trace": [path.name for path in traces] or "made up",
        "num_requests": found.num_requests,
        "num_steps": run.num_steps,
        "num_tokens": tokens,
        "requests_per_step": tokens / run.num_steps,
        "cpu_s": cpu_s,
        "cpu_s_of_a_million": cpu_s / found.num_requests * 1e6,
        "resident_mb_before": before_mb,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "parts": parts,
        "figures": figures(found),
    }
    print(
        f"{found.num_requests:,} requests, {run.num_steps:,} steps of {tokens / run.num_steps:.1f} tokens: "
        f"{cpu_s:,.0f} s of CPU, {result['cpu_s_of_a_million'] / 60:,.0f} minutes a million; tenths of "
        f"{min(p['cpu_s'] for p in parts):,.1f} to {max(p['cpu_s'] for p in parts):,.1f} s; "
        f"{before_mb:,.0f} MB before, {parts[0]['resident_mb']:,.0f} after a tenth, "
        f"{parts[-1]['resident_mb']:,.0f} at the end",
        flush=True,
    )
    return result


def _traced(traces: list[Path]) -> list[tuple[float, int, int]]:
    """Read traces, all of which begin at once: arrival in ns, prompt tokens, tokens answered."""
    loads = [read_load(path, hash_block_size=BLOCK, max_model_len=16_384) for path in traces]
    return sorted((r.at_ns, r.num_prompt_tokens, r.num_outputs) for load in loads for r in load)


def _made_up() -> list[tuple[float, int, int]]:
    """Make up two services of the lengths that Azure's have: code (a third of the requests) and conversation."""
    draw, at, found = random.Random(1), 0.0, []
    for _ in range(28_000):
        at += draw.expovariate(7.8) * 1e9
        prompt, outputs = (2048, 28) if draw.random() < 1 / 3 else (1155, 211)
        found.append((at, *(1 + int(draw.gammavariate(1, mean)) % 7000 for mean in (prompt, outputs))))
    return found


def _repeated(once: list[tuple[float, int, int]], num: int) -> Iterator[Request]:
    lasts = once[-1][0] + 1e9
    for number in range(num):
        turn, place = divmod(number, len(once))
        at_ns, prompt, outputs = once[place]
        yield Request(number, at_ns + turn * lasts, prompt, outputs, outputs)


def _cost() -> StepCost:
    none = Stalls(num=0, time_ratio=0.0, median_ns=0, max_ns=0)
    fit = Fit(num_steps=0, terms=(), seen={}, median_error_ratio=0.0, stalls=none)
    draw = random.Random(1)
    noise = [tuple(draw.lognormvariate(0, 0.05) for _ in range(3)) for _ in range(1000)]
    most = np.full((2, 4), 10**9, dtype=np.int64)
    return StepCost({"": BETA_NS}, most, {False: noise, True: noise}, [(1e9, (0.0, 5e6, 0.0))], fit)


def _setup(num_seqs: int, num_tokens: int, max_len: int, scheduler: str) -> Setup:
    is_ahead = scheduler.startswith("Async")
    fields = {"block_size": BLOCK, "num_kv_heads": 2, "head_size": 32, "dtype": "float32"}
    return Setup(
        server_id="made-up",
        source="engine-0",
        vllm=vllm.__version__,
        scheduler=scheduler,
        num_blocks=32_768,
        block_size=BLOCK,
        hash_block_size=BLOCK,
        has_hashes=True,
        config={
            "scheduler_config": {
                "max_num_seqs": num_seqs,
                "max_num_batched_tokens": num_tokens,
                "async_scheduling": is_ahead,
            },
            "cache_config": {"block_size": BLOCK, "enable_prefix_caching": True},
            "model_config": {"max_model_len": max_len},
        },
        kv_groups=(KvGroup(spec="FullAttentionSpec", num_layers=4, fields=fields),),
    )


def _resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize() / 2**20


if __name__ == "__main__":
    sys.exit(main())
