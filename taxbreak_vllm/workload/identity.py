"""Whether vLLM's scheduler, told what a server's was told, batches as it did: an engine's traffic in, the answer out.

Told the same requests, drops and outputs in the same order, it must choose the same steps: the same requests in the
same order, each with as many tokens. Where the oldest of a recording is gone, it begins where the engine had nothing to
do, and steps count once as many tokens were computed as the prefix cache holds: what was cached before is gone then.
"""

from collections.abc import Sequence

from taxbreak_vllm.model.errors import WorkloadError
from taxbreak_vllm.model.workload import Difference, Identity
from taxbreak_vllm.traffic.batch import Batch, batch_of, numbers_of_names
from taxbreak_vllm.traffic.rows import Aborted, Added, Ended, Lost, Reset, Row, Scheduled, Updated
from taxbreak_vllm.workload.recording import Recorded
from taxbreak_vllm.workload.requests import Planned
from taxbreak_vllm.workload.scheduler import VllmScheduler, check_can_simulate

_STOPS = {"stop", "repetition"}


def check_identity(recorded: Recorded) -> Identity:
    """Schedule a recording again; raises WorkloadError where it is not one that can be."""
    check_can_simulate(recorded.setup)
    begin, num_warming_tokens = _beginning(recorded)
    rows = recorded.rows[begin:]
    return _replay(recorded, rows, num_warming_tokens)


def plans(rows: Sequence[Row]) -> dict[int, Planned]:
    """Return how each request goes, from its beginning and its end."""
    prompts = {row.number: row.hashes for row in rows if isinstance(row, Added)}
    ends = {row.number: row for row in rows if isinstance(row, Ended)}
    found = {}
    for number, hashes in prompts.items():
        end = ends.get(number)
        found[number] = (
            Planned(hashes)
            if end is None
            else Planned([*hashes, *end.hashes], num_outputs=end.num_output_tokens, stops=end.reason in _STOPS)
        )
    return found


def add(scheduler: VllmScheduler, row: Added, plan: Planned) -> None:
    """Hand a recorded request to a scheduler; raises WorkloadError for one that asks for more than is simulated."""
    if row.refused:
        raise WorkloadError(f"request {row.number}: not simulated: {', '.join(row.refused)}")
    scheduler.add(
        row.number,
        plan,
        num_prompt_tokens=row.num_prompt_tokens,
        max_tokens=row.max_tokens,
        arrived_ns=row.arrived_ns,
        priority=row.priority,
        lora=row.lora,
        reads_cache=row.reads_cache,
    )


def _replay(recorded: Recorded, rows: Sequence[Row], num_warming_tokens: int) -> Identity:
    scheduler = VllmScheduler(recorded.setup)
    planned, known = plans(rows), {row.number for row in rows if isinstance(row, Added)}
    in_flight, num_steps, num_same, num_warming, num_tokens = {}, 0, 0, 0, 0
    num_prompts = num_hits = 0
    first: Difference | None = None
    stopped: str | None = None
    for row in rows:
        match row:
            case Scheduled():
                in_flight[row.number] = scheduled = scheduler.schedule(is_throttled=row.is_throttled)
                here, there = batch_of(scheduled, numbers_of_names), _batch(row)
                is_warm = num_tokens >= num_warming_tokens
                num_tokens += there.prompt_tokens + there.num_decodes
                if not is_warm:
                    num_warming += 1
                elif there.num_prefills + there.num_decodes:
                    num_steps += 1
                    num_same += here == there
                if is_warm and here != there and first is None:
                    first = Difference(step=row.number, recorded=there._asdict(), simulated=here._asdict())
            case Updated() if row.number in in_flight:
                scheduler.update(in_flight.pop(row.number))
            case Added():
                num_prompts += 1
                add(scheduler, row, planned[row.number])
            case Ended():
                num_hits += row.num_hit_tokens
            case Aborted():
                scheduler.abort([number for number in row.numbers if number in known])
            case Reset(what="reset_prefix_cache"):
                scheduler.reset_prefix_cache()
            case Reset():
                stopped = f"the engine was told to {row.what}, which is not simulated"
            case Lost():
                stopped = f"{row.num} events of the engine were lost"
        if stopped or first:
            break
    return Identity(
        engine=recorded.setup.source,
        vllm=recorded.setup.vllm,
        is_whole=recorded.is_whole,
        has_hashes=recorded.setup.has_hashes,
        num_steps=num_steps,
        num_same=num_same,
        num_warming=num_warming,
        num_requests=num_prompts,
        num_hit_tokens=num_hits,
        num_preemptions=scheduler.num_preempted,
        first_difference=first,
        ended_early=stopped,
    )


def _batch(row: Scheduled) -> Batch:
    return Batch(row.prompt_tokens, row.num_prefills, row.num_decodes, row.context, row.digest)


def _beginning(recorded: Recorded) -> tuple[int, int]:
    """Return where to begin, and how many tokens are to be computed before steps count."""
    if recorded.is_whole:
        return 0, 0
    open_requests: set[int] = set()
    for place, row in enumerate(recorded.rows):
        match row:
            case Added():
                open_requests.add(row.number)
            case Ended():
                open_requests.discard(row.number)
            case Scheduled(num_prefills=0, num_decodes=0) if not open_requests:
                setup = recorded.setup
                is_caching = bool(setup.config["cache_config"].get("enable_prefix_caching"))
                return place + 1, setup.num_blocks * setup.block_size if is_caching else 0
    raise WorkloadError(
        f"{recorded.setup.source}: the oldest of its traffic is gone, and in what is left the engine always had work; "
        "raise TAXBREAK_TRAFFIC_MAX_BYTES"
    )
