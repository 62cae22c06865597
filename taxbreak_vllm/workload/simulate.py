"""An engine in virtual time: requests in, what came of each out.

Two clocks, the host's and the device's. The engine's thread chooses a step, hands it to the device, and takes in the
oldest output: at once where it works step by step, else once as many are under way as its queue holds, so that what
scheduling ahead hides comes of itself. Its requests and outputs pass an API server's queue.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any

from taxbreak_vllm.model.errors import WorkloadError
from taxbreak_vllm.traffic.batch import batch_of, numbers_of_names
from taxbreak_vllm.workload.cost import Noise, StepCost
from taxbreak_vllm.workload.frontend import FrontendQueue
from taxbreak_vllm.workload.requests import Planned, Request

if TYPE_CHECKING:
    from taxbreak_vllm.workload.scheduler import VllmScheduler

GraphModeOf = Callable[[bool, int], str]  # of a step with prompts or without, and so many tokens

_SEEN_MARGIN = 1.1
_MAX_EMPTY = 1000  # steps of nothing in a row


@dataclass(slots=True)
class Served:
    """A simulated run: requests with what came of them, and what the server was busy with; ns."""

    requests: list[Request]
    begin_ns: float = 0.0
    end_ns: float = 0.0
    host_ns: float = 0.0
    device_ns: float = 0.0
    frontend_ns: float = 0.0
    num_steps: int = 0
    num_preemptions: int = 0
    kv_peak_ratio: float = 0.0
    num_beyond: list[int] = field(default_factory=lambda: [0, 0, 0, 0])  # steps of more of a kind of work than was seen


def serve(
    requests: Sequence[Request],
    scheduler: "VllmScheduler",
    cost: StepCost,
    noise: Noise | None,
    frontends: Sequence[FrontendQueue],
    *,
    graph_mode_of: GraphModeOf,
    depth: int = 1,
    host: float = 1.0,
    device: float = 1.0,
) -> Served:
    """Serve requests, ordered by arrival; `host` and `device` are what their parts take times."""
    by_number = {request.number: request for request in requests}
    frontend_of = {request.number: frontends[place % len(frontends)] for place, request in enumerate(requests)}
    waiting = deque(requests)
    coming: list[tuple[float, int]] = []  # that an API server has sent: when they reach the engine, and which
    result = Served(list(requests), begin_ns=requests[0].at_ns if requests else 0.0)
    under_way: deque[tuple[float, Any, float]] = deque()
    seen = [most * _SEEN_MARGIN for most in cost.seen[1].tolist()]
    now = device_free = 0.0
    num_empty = 0
    while waiting or coming or scheduler.has_requests or under_way:
        while waiting and waiting[0].at_ns <= now:
            request = waiting.popleft()
            heappush(coming, (frontend_of[request.number].take_request(request.at_ns), request.number))
        while coming and coming[0][0] <= now:
            _add(scheduler, by_number[heappop(coming)[1]])
        if not scheduler.has_requests and not under_way:
            now = max(now, coming[0][0] if coming else waiting[0].at_ns)
            continue
        if scheduler.has_requests and len(under_way) < depth:
            scheduled = scheduler.schedule()
            work = batch_of(scheduled, numbers_of_names)
            if work.num_prefills + work.num_decodes:
                is_prefill = work.num_prefills > 0
                mode = graph_mode_of(is_prefill, scheduled.total_num_scheduled_tokens)
                before, on_device, after = cost.parts_ns(mode, *work[:4])
                factor = noise.factor(is_prefill) if noise else 1.0
                before, after = before * factor * host, after * factor * host
                on_device *= factor * device
                stalled = noise.stall_ns(before + on_device + after) if noise else 0.0
                now += before
                device_free = max(now, device_free) + on_device + stalled
                result.host_ns += before + after
                result.device_ns += on_device
                result.num_steps += 1
                for place, (most, num) in enumerate(zip(seen, work, strict=False)):
                    result.num_beyond[place] += num > most
                result.kv_peak_ratio = max(result.kv_peak_ratio, scheduler.kv_usage)
                under_way.append((device_free, scheduled, after))
                num_empty = 0
            else:
                under_way.append((max(now, device_free), scheduled, 0.0))
                num_empty += 1
                if num_empty > _MAX_EMPTY:
                    raise WorkloadError("a request waits for ever: the KV cache has no room for it")
            if len(under_way) < depth and scheduler.has_requests:
                continue
        done, scheduled, after = under_way.popleft()
        now = max(now, done)
        outputs = scheduler.update(scheduled)
        now += after
        for number, is_done in outputs:
            request = by_number[number]
            put_ns, sent_ns = frontend_of[number].take_output(now, is_last=is_done)
            request.first_ns = request.first_ns or put_ns
            request.last_ns, request.sent_ns = put_ns, sent_ns
            request.num_done += 1
    result.end_ns = max((request.sent_ns for request in requests), default=0.0)
    result.frontend_ns = sum(frontend.busy_ns for frontend in frontends) / max(1, len(frontends))
    result.num_preemptions = scheduler.num_preempted
    return result


def _add(scheduler: "VllmScheduler", request: Request) -> None:
    scheduler.add(
        request.number,
        Planned(request.hashes, num_outputs=request.num_outputs, stops=request.stops),
        num_prompt_tokens=request.num_prompt_tokens,
        max_tokens=request.max_tokens,
        arrived_ns=int(request.at_ns),
        priority=request.priority,
        lora=request.lora,
        reads_cache=request.reads_cache,
    )
