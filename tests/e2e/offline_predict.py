"""A made-up server whose every instant is known, predicted from its recording: `offline_predict.py OUT`.

Its scheduler is vLLM's; its steps cost what `_took` says, which is not linear. It is run under each change, and what it
took then is written beside what was predicted; so is what is refused of recordings with a fault in them.
"""

import heapq
import json
import random
import sys
from dataclasses import asdict
from pathlib import Path

import msgspec
import numpy as np
import vllm

from taxbreak_vllm.iterations.rows import NUM_COLUMNS
from taxbreak_vllm.iterations.rows import Column as Turn
from taxbreak_vllm.serving.engine.setup import INSTANTS
from taxbreak_vllm.serving.frontend.kept import INSTANTS as API_INSTANTS
from taxbreak_vllm.stages.rows import Column
from taxbreak_vllm.traffic.batch import batch_of, numbers_of_names
from taxbreak_vllm.traffic.log import Log
from taxbreak_vllm.traffic.rows import Added, Ended, KvGroup, Scheduled, Setup, Stamped, Updated, stamped
from taxbreak_vllm.workload.figures import figures, latencies, measured_rows
from taxbreak_vllm.workload.frontend import request_rows
from taxbreak_vllm.workload.predict import answer, check
from taxbreak_vllm.workload.recording import Recorded
from taxbreak_vllm.workload.requests import Planned, faster
from taxbreak_vllm.workload.scheduler import VllmScheduler
from taxbreak_vllm.workload.task import Change

MS = 10**6
BEGIN_NS = 10**12
NUM = 400
BLOCK = 16
SETUP = Setup(
    server_id="made-up",
    source="engine-0",
    vllm=vllm.__version__,
    columns=tuple(column.name.lower() for column in Turn),
    instants=INSTANTS,
    scheduler="Scheduler",
    num_blocks=300,
    block_size=BLOCK,
    hash_block_size=BLOCK,
    has_hashes=True,
    config={
        "scheduler_config": {"max_num_seqs": 8, "max_num_batched_tokens": 256, "async_scheduling": False},
        "cache_config": {"block_size": BLOCK, "enable_prefix_caching": True},
        "model_config": {"max_model_len": 512},
    },
    kv_groups=(
        KvGroup(
            spec="FullAttentionSpec",
            num_layers=4,
            fields={"block_size": BLOCK, "num_kv_heads": 2, "head_size": 32, "dtype": "float32"},
        ),
    ),
)
API = Setup(
    server_id="made-up",
    source="api-0",
    columns=tuple(column.name.lower() for column in Column),
    instants=API_INSTANTS,
)


def requests(rate, seed):
    """Make up requests: arrival, number, prompt tokens, tokens answered; a third begin alike."""
    draw, at = random.Random(seed), BEGIN_NS
    for number in range(NUM):
        at += int(draw.expovariate(rate) * 1e9)
        prompt, is_common = draw.randrange(20, 200), draw.random() < 1 / 3
        hashes = [(1 if is_common and place < 4 else 2 + number) * 1000 + place for place in range(prompt // BLOCK)]
        yield at, number, prompt, draw.randrange(4, 40), hashes


def run(rate, seed, *, seqs=8, slow=1.0, stalls=0.0, is_closed=False):
    """Serve them; return the recording of the engine and of its API server."""
    scheduler, draw = VllmScheduler(SETUP, changes={"max_num_seqs": seqs}), random.Random(seed + 1)
    coming = list(requests(rate, seed))
    if is_closed:
        coming = [(BEGIN_NS, *each[1:]) for each in coming]
    lengths = {number: (prompt, outputs) for _, number, prompt, outputs, _ in coming}
    heapq.heapify(coming)
    waiting = coming[8:] if is_closed else []
    coming = coming[:8] if is_closed else coming
    rows, turns, stamps, now, number = [], [], {}, BEGIN_NS, 0
    while coming or scheduler.has_requests:
        turn = np.zeros(NUM_COLUMNS, dtype=np.int64)
        turn[Turn.INPUT0] = now
        if not scheduler.has_requests:
            now = max(now, coming[0][0])
            turn[[Turn.IDLE0, Turn.IDLE1]] = turn[Turn.INPUT0], now
        while coming and coming[0][0] <= now:
            at, each, prompt, outputs, hashes = heapq.heappop(coming)
            rows.append(Added(each, now, at, prompt, outputs, 0, 0, True, [], hashes))
            stamps[each] = {"at": at, "queued": now, "prompt": prompt}
            scheduler.add(each, Planned(hashes), num_prompt_tokens=prompt, max_tokens=outputs)
        number += 1
        scheduled = scheduler.schedule()
        batch = batch_of(scheduled, numbers_of_names)
        rows += [_end(int(each), lengths) for each in sorted(scheduled.finished_req_ids, key=int)]
        rows.append(Scheduled(number, *batch[:4], 0, "none", False, batch.digest))
        before, device, after = _took(batch, draw, slow, stalls)
        turn[[Turn.SCHEDULED, Turn.UPDATED]] = number
        turn[Turn.EXECUTE0] = now + before
        turn[[Turn.WORKER_EXECUTE0, Turn.WORKER_EXECUTE1]] = now + before, now + before + device
        turn[[Turn.WORKER_SAMPLE0, Turn.WORKER_SAMPLE1]] = now + before + device
        now += before + device + after
        turn[Turn.END] = now
        turns.append(turn)
        rows.append(Updated(number))
        for each, is_done in scheduler.update(scheduled):
            stamps[each].setdefault("first", now)
            stamps[each]["last"] = now
            if is_done and waiting:
                heapq.heappush(coming, (now, *waiting.pop()[1:]))
    table = np.zeros((len(stamps), len(Column)), dtype=np.int64)
    for place, (each, at) in enumerate(stamps.items()):
        table[place, [Column.ARRIVED, Column.SENT]] = at["at"]
        table[place, [Column.QUEUED, Column.NUM_PROMPT_TOKENS]] = at["queued"], at["prompt"]
        table[place, [Column.FIRST_TOKEN, Column.FIRST_TAKEN, Column.FIRST_PUT]] = at["first"]
        table[place, [Column.LAST_TOKEN, Column.LAST_TAKEN, Column.LAST_PUT, Column.END]] = at["last"]
        table[place, [Column.IS_STREAMED, Column.NUM_OUTPUT_TOKENS]] = 1, lengths[each][1]
    engine = Recorded(SETUP, [*rows, *stamped(np.array(turns), INSTANTS)])
    return engine, [Recorded(API, stamped(table, API_INSTANTS))]


def _end(number, lengths):
    prompt, outputs = lengths[number]
    more = (prompt + outputs) // BLOCK - prompt // BLOCK
    return Ended(number, "length", outputs, 0, 0, [10**9 + number * 100 + place for place in range(more)])


def _took(batch, draw, slow, stalls):
    """A step's parts in ns: the device's are not linear in the work, all of them vary, some stall."""
    device = 1.5 * MS + 9_000 * batch.prompt_tokens**1.05 + 350_000 * batch.num_decodes**0.85 + 6 * batch.context
    stalled = 60 * MS if draw.random() < stalls else 0
    return (
        int(100_000 * draw.lognormvariate(0, 0.05)),
        int(device * slow * draw.lognormvariate(0, 0.05)) + stalled,
        int((80_000 + 20_000 * batch.num_decodes) * draw.lognormvariate(0, 0.05)),
    )


def main(out):
    rate = 25.0
    engine, apis = run(rate, 1)
    asked = {
        "1.5 times the rate": (Change(), 1.5, {}),
        "half the rate": (Change(), 0.5, {}),
        "max_num_seqs 4": (Change(settings={"max_num_seqs": 4}), 1.0, {"seqs": 4}),
        "a faster device": (Change(device=0.7), 1.0, {"slow": 0.7}),
    }
    write(Path(out).parent / "made-up", engine, apis)
    checked, found = check(engine, apis), {}
    for name, (change, factor, members) in asked.items():
        said = answer(checked, change, faster(checked.requests, factor), load=f"{factor:g}")
        truth = run(rate * factor, 1, **members)
        measured = figures(latencies(measured_rows(request_rows(truth[1]))))
        told = said.predicted and figures(said.predicted)
        found[name] = {"measured": measured, "predicted": told, "band": said.band, "reason": said.reason}
    found["cut"] = {"checks": [asdict(each) for each in check(cut(engine), apis).checks]}
    early = [Recorded(API, apis[0].rows[: NUM // 3])]
    found["only early requests"] = {"reason": check(engine, early).reason}
    changed = [replace_added(row) if isinstance(row, Added) and row.number == 300 else row for row in engine.rows]
    refused = {
        "another prompt": (Recorded(SETUP, changed), apis),
        "stalls": run(rate, 1, stalls=0.02),
        "closed": run(rate, 1, is_closed=True),
    }
    for name, (recorded, api) in refused.items():
        try:
            refusal = check(recorded, api)
            found[name] = {"reason": refusal.reason, "checks": [asdict(each) for each in refusal.checks]}
        except Exception as error:
            found[name] = {"reason": str(error)}
    Path(out).write_text(json.dumps(found, indent=1))


def write(spool, engine, apis):
    """Keep a recording as the plugin does."""
    folder = spool / "server" / "traffic"
    folder.mkdir(parents=True)
    for recorded in (engine, *apis):
        Log(folder, recorded.setup, max_bytes=2**28).append(recorded.rows)


def cut(engine):
    """Leave out the last tenth of what an engine kept of its steps: its API servers may be quicker to write."""
    turns = [row for row in engine.rows if isinstance(row, Stamped)]
    rows = [row for row in engine.rows if not isinstance(row, Stamped)]
    return Recorded(engine.setup, rows[: len(rows) * 9 // 10] + turns)


def replace_added(row):
    return msgspec.structs.replace(row, num_prompt_tokens=row.num_prompt_tokens + 7)


if __name__ == "__main__":
    main(sys.argv[1])
