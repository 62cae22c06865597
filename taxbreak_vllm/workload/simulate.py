"""An engine in virtual time: requests in, what came of each out.

Two clocks, the host's and the device's. The engine's thread chooses a step, hands it to the device, and takes in the
oldest output: at once where it works step by step, else once as many are under way as its queue holds, so that what
scheduling ahead hides comes of itself. Its requests and outputs pass an API server's queue.
"""

from array import array
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from taxbreak_vllm.model.errors import WorkloadError
from taxbreak_vllm.traffic.batch import work_of
from taxbreak_vllm.workload.cost import Noise, StepCost
from taxbreak_vllm.workload.frontend import FrontendQueue
from taxbreak_vllm.workload.requests import Request

if TYPE_CHECKING:
    from taxbreak_vllm.workload.scheduler import VllmScheduler

GraphModeOf = Callable[[bool, int], str]  # of a step with prompts or without, and so many tokens
COLUMNS = ("at", "first", "last", "sent", "tokens")

_SEEN_MARGIN = 1.1
_MAX_EMPTY = 1000  # steps of nothing in a row


@dataclass(slots=True)
class Spent:
    """What requests' time went to, summed over them; ns. The rest they waited for a seat or the step under way."""

    frontend_ns: float = 0.0
    kv_ns: float = 0.0
    host_ns: float = 0.0
    device_ns: float = 0.0


@dataclass(slots=True)
class Served:
    """A simulated run: what came of each request, and what the server was busy with; ns.

    `rows` are five numbers of each request in the order in which they were done, `COLUMNS`.
    """

    rows: "array[float]" = field(default_factory=lambda: array("d"))
    begin_ns: float = 0.0
    end_ns: float = 0.0
    host_ns: float = 0.0
    device_ns: float = 0.0
    frontend_ns: float = 0.0
    num_steps: int = 0
    num_preemptions: int = 0
    kv_peak_ratio: float = 0.0
    spent: Spent = field(default_factory=Spent)
    num_beyond: list[int] = field(default_factory=lambda: [0, 0, 0, 0])  # steps of more of a kind of work than was seen

    @property
    def table(self) -> npt.NDArray[np.float64]:
        """The requests (requests, `COLUMNS`): when each came, had its first and last token and was answered, tokens."""
        return np.array(self.rows).reshape(-1, len(COLUMNS))


@dataclass(slots=True)
class _Open:
    """A request that has not been answered."""

    request: Request
    frontend: FrontendQueue
    first_ns: float = 0.0
    num_done: int = 0


def serve(
    requests: Iterable[Request],
    scheduler: "VllmScheduler",
    cost: StepCost,
    noise: Noise | None,
    frontends: Sequence[FrontendQueue],
    *,
    graph_mode_of: GraphModeOf,
    depth: int = 1,
    host: float = 1.0,
    host_added_ns: float = 0.0,
    device: Sequence[float] = (1.0, 1.0),
) -> Served:
    """Serve requests, ordered by arrival.

    `host` is what the host's parts take times, `device` what the device's do in steps without prompts and with.

    `host_added_ns` is what the engine's loop takes longer for each step, or shorter, down to nothing.
    """
    result = Served()
    arriving = enumerate(requests)
    place, following = next(arriving, (0, None))
    coming: list[tuple[float, int]] = []  # that an API server has sent: when they reach the engine, and which
    open_requests: dict[int, _Open] = {}
    under_way: deque[tuple[float, Any, float, float]] = deque()
    seen = [most * _SEEN_MARGIN for most in cost.seen[1].tolist()]
    now = device_free = since = 0.0
    spent = result.spent
    num_empty = 0
    if following is not None:
        result.begin_ns = following.at_ns

    def arrive() -> None:
        """Let those that came by now go in."""
        nonlocal place, following
        while following is not None and following.at_ns <= now:
            frontend = frontends[place % len(frontends)]
            reaches_ns = frontend.take_request(following.at_ns)
            spent.frontend_ns += reaches_ns - following.at_ns
            open_requests[following.number] = _Open(following, frontend)
            heappush(coming, (reaches_ns, following.number))
            place, following = next(arriving, (0, None))

    while True:
        arrive()
        while coming and coming[0][0] <= now:
            _add(scheduler, open_requests[heappop(coming)[1]].request)
        has_requests = scheduler.has_requests
        if not has_requests and not under_way:
            if coming:
                now = since = max(now, coming[0][0])
            elif following is not None:
                now = since = max(now, following.at_ns)
            else:
                break
            continue
        if has_requests and len(under_way) < depth:
            scheduled = scheduler.schedule()
            work = work_of(scheduled)
            if work.num_prefills + work.num_decodes:
                is_prefill = work.num_prefills > 0
                mode = graph_mode_of(is_prefill, scheduled.total_num_scheduled_tokens)
                parts = cost.parts_ns(mode, *work)
                if noise:
                    stalled = noise.stall_ns(sum(parts))
                    drawn = zip(parts, noise.factors(is_prefill), stalled, strict=True)
                    parts = [part * factor + more for part, factor, more in drawn]
                before, after = parts[0] * host + host_added_ns, parts[2] * host
                on_device = parts[1] * device[is_prefill]
                if before < 0:
                    before, after = 0.0, max(0.0, after + before)
                now += before
                device_free = max(now, device_free) + on_device
                result.host_ns += before + after
                result.device_ns += on_device
                result.num_steps += 1
                for kind, num in enumerate(work):
                    if num > seen[kind]:
                        result.num_beyond[kind] += 1
                under_way.append((device_free, scheduled, after, on_device))
                num_empty = 0
            else:
                under_way.append((max(now, device_free), scheduled, 0.0, 0.0))
                num_empty += 1
                if num_empty > _MAX_EMPTY:
                    raise WorkloadError("a request waits for ever: the KV cache has no room for it")
            if len(under_way) < depth and scheduler.has_requests:
                continue
        done, scheduled, after, on_device = under_way.popleft()
        now = max(now, done) + after
        num_running, num_waiting = scheduler.counts
        on_device = min(on_device, now - since)
        spent.device_ns += num_running * on_device
        spent.host_ns += num_running * (now - since - on_device)
        if scheduler.is_short_of_blocks:
            spent.kv_ns += num_waiting * (now - since)
        since = now
        outputs = scheduler.update(scheduled)
        arrive()  # what came before the outputs goes in before them
        given = [(open_requests.pop(num) if is_done else open_requests[num], is_done) for num, is_done in outputs]
        for frontend in frontends:
            message = given if len(frontends) == 1 else [each for each in given if each[0].frontend is frontend]
            told = frontend.take_outputs(now, [is_done for _, is_done in message])
            for (request, is_done), (put_ns, sent_ns) in zip(message, told, strict=True):
                request.first_ns = request.first_ns or put_ns
                request.num_done += 1
                if is_done:
                    at_ns = request.request.at_ns
                    result.rows.extend((at_ns, request.first_ns, put_ns, sent_ns, request.num_done))
                    result.end_ns = max(result.end_ns, sent_ns)
                    spent.frontend_ns += sent_ns - now
    result.frontend_ns = sum(frontend.busy_ns for frontend in frontends) / max(1, len(frontends))
    result.num_preemptions = scheduler.num_preempted
    result.kv_peak_ratio = scheduler.kv_peak_ratio
    return result


def _add(scheduler: "VllmScheduler", request: Request) -> None:
    scheduler.add(
        request.number,
        request.plan,
        num_prompt_tokens=request.num_prompt_tokens,
        max_tokens=request.max_tokens,
        arrived_ns=int(request.at_ns),
        priority=request.priority,
        lora=request.lora,
        reads_cache=request.reads_cache,
    )
