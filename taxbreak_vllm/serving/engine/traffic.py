"""What an engine's scheduler is told and what it chooses, in that order: its objects noted in, lines out later.

On the engine's thread an event is an object put into a queue, 0.15 microseconds; all that is to be known of it
is read afterwards on a thread of ours, from objects that vLLM no longer changes. No text, token or request id is kept:
a request is the number in which it came, a block of the prefix cache a hash of its hash, under a key that is nowhere
stored. Read in vllm/v1/core/sched/{scheduler,output}.py and vllm/v1/request.py of 0.26 to 0.33.
"""

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from time import monotonic_ns
from typing import Any

from taxbreak_vllm.model.step import Phase
from taxbreak_vllm.serving.drops import logger
from taxbreak_vllm.serving.steps import GraphModes
from taxbreak_vllm.serving.worker_times import NUMBER
from taxbreak_vllm.traffic.batch import batch_of
from taxbreak_vllm.traffic.rows import Aborted, Added, Ended, Lost, Reset, Row, Scheduled, Updated

_MAX_EVENTS = 65_536
ADD, ABORT, RESET, STEP, UPDATE = range(5)
_RESETS = ("reset_prefix_cache", "set_pause_state")
_WORK_NS, _REST_S = 200_000, 0.0002  # a thread that works in Python holds up the engine's by as long as that

Event = tuple[int, Any, int]  # of a kind: what it is about, and when it was or whether it was throttled


class Traffic:
    """Notes the events of one scheduler; a fault of ours ends that, and nothing else."""

    def __init__(self, scheduler: Any, *, now: Callable[[], int] = monotonic_ns) -> None:  # noqa: ANN401 - a Scheduler
        self._scheduler = scheduler
        self._now = now
        self._events: deque[Event] = deque()
        self._put = self._events.append
        self.num_lost = 0
        self.fault: str | None = None

    def attach(self) -> None:
        """Put hooks on the scheduler; raises AttributeError, before any is put, where it is not as it was read."""
        scheduler = self._scheduler
        hooks = {
            "add_request": self._adding(scheduler.add_request),
            "finish_requests": self._finishing(scheduler.finish_requests),
        }
        resets = {name: getattr(scheduler, name) for name in _RESETS if hasattr(scheduler, name)}
        hooks |= {name: self._resetting(name, call) for name, call in resets.items()}
        for name, hook in hooks.items():
            setattr(scheduler, name, hook)

    def note(self, kind: int, what: object, detail: int | None = None) -> None:
        """Note an event; `detail` is by its kind, the time where none is given."""
        try:
            if self.fault is not None:
                return
            if len(self._events) < _MAX_EVENTS:
                self._put((kind, what, self._now() if detail is None else detail))
            else:
                self.num_lost += 1
        except Exception as error:
            self.stop(repr(error))
            logger.warning("taxbreak: an engine's traffic is no longer kept: %r", error)

    def take(self) -> Iterator[Event]:
        """Yield what was noted so far, oldest first; for one other thread."""
        events = self._events
        for _ in range(len(events)):
            try:
                yield events.popleft()
            except IndexError:  # stopped meanwhile
                return

    def stop(self, why: str) -> None:
        """Note nothing more, and let go of what was noted."""
        self.fault = why
        self._events.clear()

    def _adding(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def add_request(request: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as vLLM calls it
            self.note(ADD, request)
            return call(request, *args, **kwargs)

        return add_request

    def _finishing(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def finish_requests(request_ids: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as vLLM calls it
            self._note_abort(request_ids)
            return call(request_ids, *args, **kwargs)

        return finish_requests

    def _note_abort(self, request_ids: Any) -> None:  # noqa: ANN401 - as vLLM calls it
        if request_ids is None or isinstance(request_ids, str):
            self.note(ABORT, request_ids and (request_ids,))
        elif isinstance(request_ids, (list, tuple, set, frozenset)):
            self.note(ABORT, tuple(request_ids))
        else:  # may be read once, and not by us
            self.note(RESET, "finish_requests")

    def _resetting(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def reset(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as vLLM calls it
            self.note(RESET, name)
            return call(*args, **kwargs)

        return reset


class Lines:
    """Makes lines of events; on one thread, which gives way to the engine's every fifth of a millisecond."""

    def __init__(
        self, traffic: Traffic, *, hash_block_size: int, keeps_hashes: bool, graph_modes: GraphModes | None = None
    ) -> None:
        self._traffic = traffic
        self._hash_block_size = hash_block_size
        self._keeps_hashes = keeps_hashes
        self._graph_modes = graph_modes
        self._key = os.urandom(16)
        self._number_by_id: dict[str, int] = {}
        self._request_by_id: dict[str, tuple[Any, int]] = {}  # that have not ended, and what was found in the cache
        self._lora_by_name: dict[str, int] = {}
        self._num_added = self._num_lost = 0
        self._rested_ns = 0

    def take(self) -> list[Row]:
        """Return what happened since the last time."""
        lines: list[Row] = []
        self._rested_ns = time.monotonic_ns()
        for event in self._traffic.take():
            lines.extend(self._lines(*event))
            self._rest()
        if self._traffic.num_lost != self._num_lost:
            lines.append(Lost(self._traffic.num_lost - self._num_lost))
            self._num_lost = self._traffic.num_lost
            self._let_go()
        return lines

    def _let_go(self) -> None:
        """Keep no request whose end may be among what was lost."""
        for req_id, (request, _) in list(self._request_by_id.items()):
            if request.get_finished_reason() is not None:
                del self._request_by_id[req_id], self._number_by_id[req_id]

    def _rest(self) -> None:
        if time.monotonic_ns() - self._rested_ns >= _WORK_NS:
            time.sleep(_REST_S)
            self._rested_ns = time.monotonic_ns()

    def _lines(self, kind: int, what: Any, detail: int) -> Iterator[Row]:  # noqa: ANN401 - as noted
        if kind == ADD:
            yield self._add(detail, what)
        elif kind == ABORT:
            numbers = self._number_by_id
            yield Aborted(detail, [*numbers.values()] if what is None else [numbers[i] for i in what if i in numbers])
        elif kind == RESET:
            yield Reset(detail, what)
        elif kind == STEP:
            yield from self._step(what, bool(detail))
        else:
            yield Updated(getattr(what, NUMBER, 0))

    def _add(self, at_ns: int, request: Any) -> Added:  # noqa: ANN401 - a Request
        number, self._num_added = self._num_added, self._num_added + 1
        self._number_by_id[request.request_id] = number
        self._request_by_id[request.request_id] = request, 0
        lora = request.lora_request
        num_prompt_tokens = request.num_prompt_tokens
        return Added(
            number=number,
            at_ns=at_ns,
            arrived_ns=int(request.arrival_time * 1e9) + time.monotonic_ns() - time.time_ns(),
            num_prompt_tokens=num_prompt_tokens,
            max_tokens=request.max_tokens,
            priority=request.priority,
            lora=0 if lora is None else self._lora_by_name.setdefault(lora.lora_name, len(self._lora_by_name) + 1),
            reads_cache=not getattr(request, "skip_reading_prefix_cache", False),
            refused=refused_of(request),
            hashes=self._hashes(request.block_hashes[: num_prompt_tokens // self._hash_block_size]),
        )

    def _step(self, scheduled: Any, is_throttled: bool) -> Iterator[Row]:  # noqa: ANN401 - a SchedulerOutput
        for req_id in scheduled.finished_req_ids:
            if req_id in self._request_by_id:
                yield self._end(req_id)
        for new in scheduled.scheduled_new_reqs:
            if new.req_id in self._request_by_id:
                self._request_by_id[new.req_id] = self._request_by_id[new.req_id][0], new.num_computed_tokens
        batch = batch_of(scheduled, self._numbers)
        phase = Phase.MIXED if batch.num_prefills else Phase.DECODE
        modes = self._graph_modes
        yield Scheduled(
            number=getattr(scheduled, NUMBER, 0),
            prompt_tokens=batch.prompt_tokens,
            num_prefills=batch.num_prefills,
            num_decodes=batch.num_decodes,
            context=batch.context,
            num_preempted=len(getattr(scheduled, "preempted_req_ids", None) or ()),
            graph_mode=str(modes.of(phase, scheduled.total_num_scheduled_tokens)) if modes else "",
            is_throttled=is_throttled,
            digest=batch.digest,
        )

    def _numbers(self, ids: Sequence[str]) -> list[int]:
        try:
            return list(map(self._number_by_id.__getitem__, ids))
        except KeyError:
            return [self._number_by_id.get(req_id, -1) for req_id in ids]

    def _end(self, req_id: str) -> Ended:
        request, num_hit_tokens = self._request_by_id.pop(req_id)
        reason = request.get_finished_reason()  # an integer, of which the first is false
        return Ended(
            number=self._number_by_id.pop(req_id),
            reason="" if reason is None else str(reason),
            num_output_tokens=request.num_output_tokens,
            num_hit_tokens=num_hit_tokens,
            num_preemptions=getattr(request, "num_preemptions", 0),
            hashes=self._hashes(request.block_hashes[request.num_prompt_tokens // self._hash_block_size :]),
        )

    def _hashes(self, hashes: Sequence[bytes]) -> list[int]:
        if not self._keeps_hashes:
            return []
        found = []
        for value in hashes:
            found.append(int.from_bytes(blake2b(value, digest_size=6, key=self._key).digest(), "little"))
            self._rest()
        return found


def refused_of(request: Any) -> list[str]:  # noqa: ANN401 - a Request
    """Name what a request asks of the scheduler that a simulation of it does not do."""
    asks = {
        "pooling": request.pooling_params is not None,
        "structured output": request.structured_output_request is not None,
        "multimodal inputs": bool(getattr(request, "mm_features", None)),
        "prompt embeddings": getattr(request, "prompt_embeds", None) is not None,
        "KV transfer": getattr(request, "kv_transfer_params", None) is not None,
        "streamed inputs": bool(getattr(request, "resumable", False)),
    }
    return [name for name, is_asked in asks.items() if is_asked]
