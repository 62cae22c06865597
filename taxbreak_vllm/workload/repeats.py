"""A step that is the one before it again, each request a token further: taken on without being chosen anew.

Where every request generates, none comes, ends or lacks a block, and none waits for whom there is a seat, vLLM's
scheduler chooses the same step again; nearly all of its time goes there. What changes then is counted here, and blocks
are still vLLM's to give and to cache, wherever a request enters one or fills one. All else, and every end, is a step of
vLLM's. Read in `schedule`, `_update_after_schedule` and `update_from_output` of vllm/v1/core/sched/scheduler.py and
async_scheduler.py, 0.26 to 0.33; `tests/e2e/offline_repeats.py` compares both ways step by step.
"""

from collections.abc import Sequence
from math import gcd
from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.kv_cache_interface import FullAttentionSpec

_MAX_AHEAD = 1  # steps whose output is not there yet: with more, blocks are cached at other tokens than these


class Again:
    """A step like `first`, a SchedulerOutput, in which requests have computed so many tokens before."""

    __slots__ = ("first", "num_computed_tokens", "num_scheduled_tokens", "stretch", "total_num_scheduled_tokens")

    def __init__(self, stretch: "Stretch", first: Any, num_computed_tokens: list[int]) -> None:  # noqa: ANN401
        self.stretch = stretch
        self.first = first
        self.num_computed_tokens = num_computed_tokens
        self.num_scheduled_tokens = first.num_scheduled_tokens
        self.total_num_scheduled_tokens = first.total_num_scheduled_tokens

    @property
    def scheduled_cached_reqs(self) -> "Again":
        """Its requests, of which it tells."""
        return self

    @property
    def req_ids(self) -> Sequence[str]:
        """Their names."""
        return self.first.scheduled_cached_reqs.req_ids  # type: ignore[no-any-return]

    @property
    def num_output_tokens(self) -> Sequence[int]:
        """Of the first step: some."""
        return self.first.scheduled_cached_reqs.num_output_tokens  # type: ignore[no-any-return]

    @property
    def resumed_req_ids(self) -> Sequence[str]:
        """None of them."""
        return ()

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - all else is as it was
        return getattr(self.first, name)


class Stretch:
    """Steps alike: their requests, and how many more there may be before one of them has to be vLLM's."""

    __slots__ = ("first", "num_left", "outputs", "requests")

    def __init__(self, first: Any, requests: Sequence[Any], num_left: int) -> None:  # noqa: ANN401
        self.first = first
        self.requests = requests
        self.num_left = num_left
        self.outputs = [(int(request.request_id), False) for request in requests]


class Repeats:
    """Repeats the steps of one scheduler that can be."""

    def __init__(self, scheduler: Any, token: int) -> None:  # noqa: ANN401 - a Scheduler of vLLM's
        self._scheduler = scheduler
        self._token = token
        self._blocks = scheduler.kv_cache_manager
        self._is_ahead = isinstance(scheduler, AsyncScheduler)
        self._counts_in_flight: bool | None = None
        self._counts_steps = hasattr(scheduler, "current_step")
        specs = [group.kv_cache_spec for group in scheduler.kv_cache_config.kv_cache_groups]
        self._can_repeat = all(type(spec) is FullAttentionSpec for spec in specs) and not (
            getattr(scheduler, "defer_block_free", False) or scheduler.num_spec_tokens or scheduler.connector
        )
        self._unit = gcd(*(spec.block_size for spec in specs)) or 1
        self._stretch: Stretch | None = None

    def begin(self, scheduled: Any, requests: Sequence[Any], num_ahead: int) -> None:  # noqa: ANN401
        """See whether steps like this one, a SchedulerOutput just chosen, may follow.

        `requests` are those it has a token of, or None; so many steps were under way before it.
        """
        self._stretch = None
        scheduler, cached = self._scheduler, scheduled.scheduled_cached_reqs
        num, num_running = len(requests), len(scheduler.running)
        if (
            not (self._can_repeat and requests)
            or not num == num_running == scheduled.total_num_scheduled_tokens == len(cached.req_ids)
            or num_ahead > _MAX_AHEAD
            or (len(scheduler.requests) > num_running < scheduler.max_num_running_reqs)
            or cached.resumed_req_ids
            or None in requests
            or not all(cached.num_output_tokens)
        ):
            return
        num_left = min(map(self._num_left, requests)) - 2 - num_ahead  # its own, those ahead of it, and an end
        if num_left > 0:
            self._stretch = Stretch(scheduled, requests, num_left)

    def end(self) -> None:
        """Have the next step be vLLM's."""
        self._stretch = None

    def schedule(self) -> Again | None:
        """Return the step before again; None where vLLM has to choose."""
        stretch = self._stretch
        if stretch is None:
            return None
        if not stretch.num_left or self._blocks.block_pool.get_num_free_blocks() < len(stretch.requests):
            self._stretch = None
            return None
        stretch.num_left -= 1
        requests, unit, is_ahead = stretch.requests, self._unit, self._is_ahead
        again = Again(stretch, stretch.first, [request.num_computed_tokens for request in requests])
        if self._counts_steps:
            self._scheduler.current_step += 1
        if self._counts_in_flight is None:
            self._counts_in_flight = hasattr(requests[0], "num_in_flight_tokens")
        for request, computed in zip(requests, again.num_computed_tokens, strict=True):
            if computed % unit == 0 or (computed + 1) % unit == 0:  # it enters a block, or fills one
                self._blocks.allocate_slots(request, 1, num_lookahead_tokens=self._scheduler.num_lookahead_tokens)
            request.num_computed_tokens = computed + 1
            if self._counts_in_flight:
                request.num_in_flight_tokens += 1
            if is_ahead:
                request.num_output_placeholders += 1
        return again

    def update(self, again: Again) -> list[tuple[int, bool]] | None:
        """Take in the output of a repeated step; None where vLLM has to, as something else came between."""
        stretch = self._stretch
        if stretch is None or again.stretch is not stretch:
            return None
        for request in stretch.requests:
            if self._counts_in_flight:
                request.num_in_flight_tokens -= 1
            request.append_output_token_ids(self._token)
            if self._is_ahead:
                request.num_output_placeholders -= 1
                cached = request.num_computed_tokens - request.num_output_placeholders
                if cached % self._unit == 0:
                    self._blocks.cache_blocks(request, cached)
        return stretch.outputs

    def _num_left(self, request: Any) -> int:  # noqa: ANN401 - a Request
        """Return how many more tokens it has, the last included."""
        num_outputs: int = request.num_output_tokens
        most: int = request.max_tokens if request.stops_at is None else min(request.max_tokens, request.stops_at + 1)
        longest: int = self._scheduler.max_model_len - request.num_tokens - 1
        return min(most - num_outputs, longest)
