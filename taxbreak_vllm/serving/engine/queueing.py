"""Why requests wait to be scheduled: what an engine's scheduler does in, the parts of each request's wait out.

A request waits for its grammar until that is compiled, for the KV cache of another server from when blocks were set
aside for it until that has come, and else for KV blocks, or for the encoder, while the scheduler refuses these to the
request it has come to: nobody passes that one. These refusals are summed up over time, so that a request takes readings
of the sum and none that waits is looked at in between. The rest of its wait is for a place in a step.

The parts go to the API server with the request's first output, among its trace headers, and are taken off there. Read
in vllm/v1/core/sched/scheduler.py and vllm/v1/structured_output/request.py of 0.26 to 0.32.
"""

from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from time import monotonic_ns
from typing import Any

from taxbreak_vllm.serving.drops import logger

HEADER = "taxbreak-waits"  # ns that a request waited for KV blocks, the encoder, a grammar, a remote KV cache
_WAIT = "taxbreak_wait"
_KV, _ENCODER = 0, 1

Refused = tuple[int, int]  # for how long KV blocks and the encoder had been refused by some instant, ns


class _Wait:
    """One request's wait so far; `since` is when what it waits for now began, and the sums by then."""

    __slots__ = ("encoder_ns", "grammar_ns", "is_compiling", "kv_ns", "remote_kv_ns", "since")

    def __init__(self, now_ns: int, refused: Refused) -> None:
        self.kv_ns = self.encoder_ns = self.grammar_ns = self.remote_kv_ns = 0
        self.is_compiling = False
        self.since = now_ns, refused

    def was_refused(self, now_ns: int, refused: Refused) -> None:
        kv_ns, encoder_ns = self.since[1]
        self.kv_ns += refused[_KV] - kv_ns
        self.encoder_ns += refused[_ENCODER] - encoder_ns
        self.since = now_ns, refused

    def has_grammar(self, now_ns: int, refused: Refused) -> None:
        self.is_compiling = False
        self.grammar_ns += now_ns - self.since[0]
        self.since = now_ns, refused

    def has_remote_kv(self, now_ns: int, refused: Refused) -> None:
        self.remote_kv_ns += now_ns - self.since[0]
        self.since = now_ns, refused


class QueueWaits:
    """The waits of one engine's requests; but for the end of a grammar, all of it is on the engine's thread.

    A fault of ours ends it: requests then tell nothing of their wait.
    """

    def __init__(self, scheduler: Any, *, now: Callable[[], int] = monotonic_ns) -> None:  # noqa: ANN401 - a Scheduler
        self._scheduler = scheduler
        self._now = now
        self._begun_ns = 0  # the last scheduling
        self._refused_ns: Refused = 0, 0  # by then
        self._refusal: int | None = None  # what it refused
        self._is_scheduling = False
        self._watched: list[tuple[Any, str, Any]] = []  # and what stood there before
        self._compiled: deque[tuple[_Wait, int]] = deque()
        self._told: list[tuple[Any, Mapping[str, str] | None]] = []  # and its own headers
        self.fault: str | None = None

    def attach(self) -> None:
        """Put hooks on the scheduler; raises AttributeError, before any is put, where it is not as it was read."""
        scheduler = self._scheduler
        queues = [queue for queue in vars(scheduler).values() if hasattr(queue, "peek_request")]
        hooks = [(queue, "peek_request", self._peeking(queue.peek_request)) for queue in queues]
        hooks.append((scheduler, "add_request", self._adding(scheduler.add_request)))
        for owner, name in (
            (scheduler.kv_cache_manager, "allocate_slots"),
            (scheduler, "_try_schedule_encoder_inputs"),
        ):
            getattr(owner, name)
        if not queues:
            raise AttributeError("its scheduler has no queue that is peeked into")
        for owner, name, hook in hooks:
            setattr(owner, name, hook)

    def begin_schedule(self, now_ns: int) -> None:
        """Say that the scheduler begins to choose now."""
        try:
            if self._compiled or self._refusal is not None:
                self._settle(now_ns)
            self._begun_ns = now_ns
            self._is_scheduling = True
        except Exception as error:
            self._fail(error)

    def end_schedule(self, scheduled: Any) -> None:  # noqa: ANN401 - a SchedulerOutput
        """Say that it has, and what."""
        try:
            self._is_scheduling = False
            if self._watched:
                self._unwatch()
            if getattr(scheduled, "preempted_req_ids", None):
                self._refusal = _KV  # of a request that runs; no other was come to
            for new in scheduled.scheduled_new_reqs:
                self._tell(self._scheduler.requests[new.req_id])
        except Exception as error:
            self._fail(error)

    def take_output(self, output: Any) -> None:  # noqa: ANN401 - a ModelRunnerOutput
        """Say that the scheduler has taken an output in."""
        try:
            if self._told:
                self._told = [(request, headers) for request, headers in self._told if not _was_sent(request, headers)]
            transfers = getattr(output, "kv_connector_output", None)
            if transfers is not None:
                now_ns = self._now()
                for request_id in transfers.finished_recving or ():
                    wait = getattr(self._scheduler.requests.get(request_id), _WAIT, None)
                    if wait is not None:
                        wait.has_remote_kv(now_ns, self._refused_by(now_ns))
        except Exception as error:
            self._fail(error)

    def _settle(self, now_ns: int) -> None:
        while self._compiled:
            wait, ended_ns = self._compiled.popleft()
            if wait.is_compiling:
                wait.has_grammar(ended_ns, self._refused_by(ended_ns))
        self._refused_ns, self._refusal = self._refused_by(now_ns), None

    def _refused_by(self, now_ns: int) -> Refused:
        kv_ns, encoder_ns = self._refused_ns
        if self._refusal == _KV:
            kv_ns += max(0, now_ns - self._begun_ns)
        elif self._refusal == _ENCODER:
            encoder_ns += max(0, now_ns - self._begun_ns)
        return kv_ns, encoder_ns

    def _tell(self, request: Any) -> None:  # noqa: ANN401 - a Request that was chosen
        wait = vars(request).pop(_WAIT, None)
        if wait is None:
            return  # not for the first time
        if wait.is_compiling:  # its end is on its way to us
            wait.has_grammar(self._begun_ns, self._refused_ns)
        wait.was_refused(self._begun_ns, self._refused_ns)
        headers = request.trace_headers
        told = f"{wait.kv_ns},{wait.encoder_ns},{wait.grammar_ns},{wait.remote_kv_ns}"
        request.trace_headers = {**(headers or {}), HEADER: told}
        self._told.append((request, headers))

    def _adding(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def add_request(request: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as vLLM calls it
            result = call(request, *args, **kwargs)
            if self.fault is None:
                try:
                    self._begin(request)
                except Exception as error:
                    self._fail(error)
            return result

        return add_request

    def _begin(self, request: Any) -> None:  # noqa: ANN401 - a Request
        now_ns = self._now()
        wait = _Wait(now_ns, self._refused_by(now_ns))
        structured = request.structured_output_request
        grammar = None if structured is None else structured._grammar
        if isinstance(grammar, Future):
            wait.is_compiling = True
            grammar.add_done_callback(lambda _: self._compiled.append((wait, self._now())))
        setattr(request, _WAIT, wait)

    def _peeking(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def peek_request(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as vLLM calls it
            if self._is_scheduling and not self._watched:  # from here on it allocates for requests that wait
                try:
                    self._watch(self._scheduler.kv_cache_manager, "allocate_slots", self._allocating)
                    self._watch(self._scheduler, "_try_schedule_encoder_inputs", self._encoding)
                except Exception as error:
                    self._fail(error)
            return call(*args, **kwargs)

        return peek_request

    def _allocating(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def allocate_slots(request: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as vLLM calls it
            blocks = call(request, *args, **kwargs)
            try:
                if blocks is None:
                    self._refusal = _KV
                elif kwargs.get("delay_cache_blocks"):
                    wait = getattr(request, _WAIT, None)
                    if wait is not None:
                        wait.was_refused(self._begun_ns, self._refused_ns)
            except Exception as error:
                self._fail(error)
            return blocks

        return allocate_slots

    def _encoding(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def try_schedule_encoder_inputs(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as vLLM calls it
            result = call(*args, **kwargs)
            try:
                if result[1] == 0:  # tokens up to the first input that it cannot take
                    self._refusal = _ENCODER
            except Exception as error:
                self._fail(error)
            return result

        return try_schedule_encoder_inputs

    def _watch(self, owner: Any, name: str, hooked: Callable[[Any], Any]) -> None:  # noqa: ANN401 - vLLM's
        before = vars(owner).get(name)
        setattr(owner, name, hooked(getattr(owner, name)))
        self._watched.append((owner, name, before))

    def _unwatch(self) -> None:
        while self._watched:
            owner, name, before = self._watched.pop()
            if before is None:
                delattr(owner, name)
            else:
                setattr(owner, name, before)

    def _fail(self, error: Exception) -> None:
        self._is_scheduling = False
        self._unwatch()
        for request, headers in self._told:
            request.trace_headers = headers
        self._told = []
        if self.fault is None:
            self.fault = repr(error)
            logger.warning("taxbreak: requests no longer tell what they waited for: %r", error)


def _was_sent(request: Any, headers: Mapping[str, str] | None) -> bool:  # noqa: ANN401 - a Request
    """Give a request its own headers back once its first output has been made."""
    is_done = bool(request.num_output_tokens or request.is_finished())
    if is_done:
        request.trace_headers = headers
    return is_done
