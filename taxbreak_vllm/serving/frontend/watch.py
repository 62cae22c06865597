"""The watch over one API server: rows of its requests in, their sums out, once a second into the spool.

The thread of the event loop writes rows; one of ours counts them. A fault of ours ends the watch, never the server.
"""

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from taxbreak_vllm.machine.run_queue import RunQueueWait
from taxbreak_vllm.model.errors import SpoolError
from taxbreak_vllm.model.frontend import NUM_WATERFALLS, WAITS, FrontendState, SpanHistogram, Stage, Waterfall
from taxbreak_vllm.serving.drops import logger
from taxbreak_vllm.serving.frontend.arrivals import Arrivals
from taxbreak_vllm.serving.frontend.hooks import RequestHooks
from taxbreak_vllm.serving.frontend.in_flight import FOLLOWED_EVERY, InFlight
from taxbreak_vllm.serving.frontend.kept import KeptRequests
from taxbreak_vllm.serving.turns import Turns, is_news
from taxbreak_vllm.settings import Settings
from taxbreak_vllm.spool.layout import ARRIVALS
from taxbreak_vllm.spool.spool import Spool
from taxbreak_vllm.stages.account import Int64, Requests, account, added, delivery
from taxbreak_vllm.stages.rows import Column

_WATERFALLS_NS = 5 * 10**9
_HOOK = "hook"


class FrontendWatch:
    """Counts the requests of one API server from now on."""

    def __init__(
        self,
        in_flight: InFlight,
        spool: Spool,
        state: FrontendState,
        settings: Settings,
        *,
        unix_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._in_flight = in_flight
        self._spool = spool
        self._unix_ns = unix_ns
        self._kept = KeptRequests(state.server_id, state.api, spool, settings)
        self._run_queue = RunQueueWait(threading.get_native_id())
        self._waterfalls: deque[Waterfall] = deque(maxlen=NUM_WATERFALLS)
        self._has_new_waterfalls = False
        self._waterfalls_unix_ns = 0
        started_ns = unix_ns()
        self.state = replace(
            state,
            pid=os.getpid(),
            started_unix_ns=started_ns,
            updated_unix_ns=started_ns,
            followed_every=FOLLOWED_EVERY,
        )
        self._turns = Turns("taxbreak-frontend", self.turn, self._end)

    def attach(self, engine_client: Any) -> None:  # noqa: ANN401 - an AsyncLLM
        """Put the hooks on an engine's client; called on the thread of the event loop, which is the one watched."""
        try:
            RequestHooks(self._in_flight).attach(engine_client)
        except Exception as error:
            self._in_flight.fail(error)
            return
        self._publish()
        try:
            folder = self._spool.api_dir(self.state.server_id, self.state.api)
            self._in_flight.arrivals = Arrivals(folder / ARRIVALS)
        except (OSError, SpoolError) as error:
            logger.debug("taxbreak: engines are not told of requests on their way: %s", error)
        self._in_flight.is_on = True

    def start(self) -> None:
        """Start counting."""
        self._turns.start()

    def turn(self) -> None:
        """Count what was written since the last time, and publish the sums if they changed or are old."""
        before, in_flight = self.state, self._in_flight
        rows = in_flight.requests.take()
        self._kept.add(rows)
        self._count(rows, in_flight.outputs.take(), in_flight.lags.take()[:, 0])
        now_ns = self._unix_ns()
        self.state = replace(
            self.state,
            num_lost=in_flight.requests.num_lost,
            num_in_flight=in_flight.num_in_engine,
            runqueue_wait_ratio=self._run_queue.ratio(),
            off_reason=_HOOK if in_flight.fault else None,
            traffic_off_reason=self._kept.off_reason,
        )
        if is_news(self.state, before, now_ns):
            self.state = replace(self.state, updated_unix_ns=now_ns)
            self._publish()

    def _end(self, error: Exception) -> None:
        self._in_flight.fail(error)
        self.state = replace(self.state, off_reason=_HOOK, updated_unix_ns=self._unix_ns())
        self._publish()

    def _count(self, rows: Int64, outputs: Int64, lags_ns: Int64) -> None:
        state = self.state
        if len(lags_ns):
            state = replace(state, loop_lag=added(state.loop_lag, lags_ns))
        if len(outputs):
            state = replace(state, tokens=_all_added(state.tokens, delivery(outputs)))
        if len(rows):
            found = account(rows)
            state = replace(
                state,
                num_requests=state.num_requests + len(rows),
                num_failed=state.num_failed + found.num_failed,
                num_unknown=state.num_unknown + found.num_unknown,
                num_undivided=state.num_undivided + int((~found.is_divided).sum()),
                stages=_all_added(state.stages, _told(found)),
                ttft=added(state.ttft, found.ttft_ns),
                total=added(state.total, found.total_ns),
            )
            new = _waterfalls(found, self._unix_ns() - time.monotonic_ns())
            self._waterfalls.extend(new)
            self._has_new_waterfalls |= bool(new)
        self.state = state

    def _publish(self) -> None:
        state = self.state
        try:
            self._spool.put_frontend_state(state)
            if self._has_new_waterfalls and state.updated_unix_ns - self._waterfalls_unix_ns >= _WATERFALLS_NS:
                self._spool.put_waterfalls(state.server_id, state.api, tuple(self._waterfalls))
                self._has_new_waterfalls, self._waterfalls_unix_ns = False, state.updated_unix_ns
        except SpoolError as error:
            logger.debug("taxbreak: %s", error)  # its workers say so aloud


def _told(found: Requests) -> dict[Stage, Int64]:
    return {stage: spans[found.is_divided] if stage in WAITS else spans for stage, spans in found.stages_ns.items()}


def _all_added(
    histograms: Mapping[Stage, SpanHistogram], spans_ns: Mapping[Stage, Int64]
) -> dict[Stage, SpanHistogram]:
    return {stage: added(histograms.get(stage, SpanHistogram()), spans) for stage, spans in spans_ns.items()}


def _waterfalls(found: Requests, unix_offset_ns: int) -> list[Waterfall]:
    """Return those of followed requests, in the order in which they ended."""
    return [
        Waterfall(
            number=int(row[Column.NUMBER]),
            engine=str(row[Column.ENGINE]),
            started_unix_ns=int(row[Column.ARRIVED]) + unix_offset_ns,
            total_ns=int(found.total_ns[place]),
            ttft_ns=int(found.ttft_ns[place]),
            stages_ns={
                stage: int(spans[place])
                for stage, spans in found.stages_ns.items()
                if found.is_divided[place] or stage not in WAITS
            },
            first_token_ns={stage: int(spans[place]) for stage, spans in found.first_ns.items()},
            num_prompt_tokens=int(row[Column.NUM_PROMPT_TOKENS]),
            num_output_tokens=int(row[Column.NUM_OUTPUT_TOKENS]),
            is_streamed=bool(row[Column.IS_STREAMED]),
        )
        for place in found.rows[:, Column.IS_FOLLOWED].nonzero()[0]
        for row in (found.rows[place],)
    ]
