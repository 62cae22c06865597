"""Steps that are repeated beside steps that vLLM's scheduler chooses each time: `offline_repeats.py OUT`.

Made-up traffic goes to two schedulers, one of which repeats nothing. What each chooses and gives out is compared
step by step.
"""

import json
import random
import sys
from collections import deque
from pathlib import Path

import vllm

from taxbreak_vllm.traffic.batch import batch_of, numbers_of_names
from taxbreak_vllm.traffic.rows import KvGroup, Setup
from taxbreak_vllm.workload.repeats import Again
from taxbreak_vllm.workload.requests import Planned
from taxbreak_vllm.workload.scheduler import VllmScheduler

NUM = 250
SETTINGS = {
    "one by one": {},
    "ahead": {"scheduler": "AsyncScheduler"},
    "large blocks": {"block": 128},
    "no prefix cache": {"caching": False},
    "no prefix cache, ahead": {"caching": False, "scheduler": "AsyncScheduler"},
    "few blocks": {"num_blocks": 36},
    "few blocks, ahead": {"num_blocks": 36, "scheduler": "AsyncScheduler"},
    "few seats": {"seqs": 3},
    "few seats, ahead": {"seqs": 3, "scheduler": "AsyncScheduler"},
    "short chunks": {"budget": 32},
    "priorities": {"policy": "priority", "num_blocks": 36},
    "short model": {"max_len": 230, "scheduler": "AsyncScheduler"},
}


def setup(
    scheduler="Scheduler", block=16, num_blocks=400, seqs=8, budget=256, caching=True, policy="fcfs", max_len=512
):
    """Make up an engine."""
    fields = {"block_size": block, "num_kv_heads": 2, "head_size": 32, "dtype": "float32"}
    return Setup(
        server_id="made-up",
        source="engine-0",
        vllm=vllm.__version__,
        scheduler=scheduler,
        num_blocks=num_blocks,
        block_size=block,
        hash_block_size=block,
        has_hashes=True,
        config={
            "scheduler_config": {
                "max_num_seqs": seqs,
                "max_num_batched_tokens": budget,
                "async_scheduling": scheduler == "AsyncScheduler",
                "policy": policy,
            },
            "cache_config": {"block_size": block, "enable_prefix_caching": caching},
            "model_config": {"max_model_len": max_len},
        },
        kv_groups=(KvGroup(spec="FullAttentionSpec", num_layers=4, fields=fields),),
    )


def compare(made_up, seed):
    """Return steps, those that were repeated, and the first that differs."""
    both = [VllmScheduler(made_up), VllmScheduler(made_up)]
    both[1]._repeats.end()
    both[1]._repeats._can_repeat = False
    depth = 2 if made_up.scheduler == "AsyncScheduler" else 1
    draw, under_way, open_numbers = random.Random(seed), deque(), set()
    told = {"steps": 0, "repeated": 0, "preempted": 0, "first difference": None}
    number = 0
    while number < NUM or both[0].has_requests or under_way:
        if number < NUM and (not both[0].has_requests or draw.random() < 0.07):
            for _ in range(draw.randrange(1, 5)):
                prompt = draw.randrange(1, 120)
                outputs = draw.randrange(1, 90)
                begin = draw.choice((0, 1 + number)) * 10**6
                hashes = [begin + place for place in range((prompt + outputs) // made_up.block_size)]
                members = {
                    "num_prompt_tokens": prompt,
                    "max_tokens": outputs + draw.randrange(3),
                    "priority": draw.randrange(3),
                    "arrived_ns": number,
                    "reads_cache": draw.random() < 0.9,
                }
                plan = Planned(hashes, num_outputs=outputs, stops=draw.random() < 0.4)
                for scheduler in both:
                    scheduler.add(number, plan, **members)
                open_numbers.add(number)
                number += 1
        if open_numbers and draw.random() < 0.01:
            dropped = draw.choice(sorted(open_numbers))
            open_numbers.discard(dropped)
            for scheduler in both:
                scheduler.abort([dropped])
        if len(under_way) < depth and both[0].has_requests:
            chosen = [scheduler.schedule() for scheduler in both]
            batches = [batch_of(each, numbers_of_names) for each in chosen]
            told["steps"] += 1
            told["repeated"] += isinstance(chosen[0], Again)
            if batches[0] != batches[1]:
                return told | {"first difference": [batches, told["steps"]]}
            under_way.append(chosen)
            if len(under_way) < depth and draw.random() < 0.95:
                continue
        given = [scheduler.update(each) for scheduler, each in zip(both, under_way.popleft(), strict=True)]
        if given[0] != given[1] or both[0].kv_peak_ratio != both[1].kv_peak_ratio:
            return told | {"first difference": [given, told["steps"]]}
        open_numbers -= {each for each, is_done in given[0] if is_done}
    return told | {"preempted": both[0].num_preempted, "open": len(open_numbers)}


def main(out):
    found = {name: compare(setup(**members), seed) for seed, (name, members) in enumerate(SETTINGS.items())}
    Path(out).write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main(sys.argv[1])
