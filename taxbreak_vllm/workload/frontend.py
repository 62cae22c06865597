"""An API server as a queue: the stamps of its requests in, what each costs it out, and when it gets to what.

Its event loop does one thing at a time: a request's way in; an engine's message, whose outputs it takes apart one by
one and then sends on one by one; a request's end. What a request takes is told by those that came alone, what an output
takes by how much longer messages of more outputs take; the rest of what was measured is waiting, which is simulated. On
its way to and from the engine nothing waits for the loop.
"""

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from taxbreak_vllm.iterations.rows import Column as Turn
from taxbreak_vllm.model.workload import FrontendFit
from taxbreak_vllm.stages.rows import Column
from taxbreak_vllm.traffic.rows import Int64, Stamped, unstamped
from taxbreak_vllm.workload.cost import least_absolute_deviations
from taxbreak_vllm.workload.recording import Recorded

MIN_REQUESTS = 20
_CLOSED_RATIO = 0.9
_MANY_CLIENTS = 4
_SHARE = 0.95  # of times, the shorter ones
_OTHER_CLOCK_NS = 10**9  # an engine that is further off is on another machine


def request_rows(apis: Sequence[Recorded]) -> Int64:
    """Return the served requests of all API servers (requests, columns of `stages.rows.Column`), by arrival."""
    names = [column.name.lower() for column in Column]
    parts = [unstamped([row for row in api.rows if isinstance(row, Stamped)], api.setup, names) for api in apis]
    rows = np.concatenate([part for part in parts if len(part)] or [np.zeros((0, len(Column)), dtype=np.int64)])
    is_served = (rows[:, Column.SENT] > 0) & (rows[:, Column.FIRST_PUT] > 0) & (rows[:, Column.END] > 0)
    served: Int64 = rows[is_served & (rows[:, Column.NUM_OUTPUT_TOKENS] > 0)]
    ordered: Int64 = served[served[:, Column.ARRIVED].argsort()]
    return ordered


def busiest(apis: Sequence[Recorded]) -> Int64:
    """Return the served requests of the API server that had most, which stands for all."""
    return max((request_rows([api]) for api in apis), key=len, default=request_rows(()))


def fit_frontend(rows: Int64, turns: Int64) -> FrontendFit | None:
    """Fit what things cost one API server; None for too few requests.

    From its requests (requests, columns of `stages.rows.Column`) and the turns of their engine's loop (turns, columns
    of `iterations.rows.Column`).
    """
    if len(rows) < MIN_REQUESTS:
        return None
    num_open = _num_open(rows)
    taken, put, sent = (rows[:, column] for column in (Column.FIRST_TAKEN, Column.FIRST_PUT, Column.FIRST_SEND1))
    is_streamed = (rows[:, Column.IS_STREAMED] > 0) & (sent > 0)
    message_ns, output_ns = _each(put - taken, num_open, is_streamed & (taken > 0) & (put >= taken))
    _, send_ns = _each(sent - put, num_open, is_streamed & (sent >= put))
    end_ns = _mean(rows[:, Column.END] - np.maximum(rows[:, Column.LAST_SEND0], rows[:, Column.LAST_PUT]))
    return FrontendFit(
        num_requests=len(rows),
        request_ns=_request_ns(rows),
        to_engine_ns=_to_engine_ns(rows, turns),
        from_engine_ns=_from_engine_ns(rows, turns),
        message_ns=message_ns,
        output_ns=output_ns,
        send_ns=round(send_ns * float(is_streamed.mean())),
        end_ns=max(0, end_ns - send_ns),
    )


def _request_ns(rows: Int64) -> int:
    """Return what a request takes that came when no other was on its way in."""
    arrived, sent = rows[:, Column.ARRIVED], rows[:, Column.SENT]
    sent_before = np.concatenate([[0], np.maximum.accumulate(sent)[:-1]])
    is_alone = (sent_before <= arrived) & (np.append(arrived[1:], sent.max() + 1) >= sent)
    took = (sent - arrived)[is_alone]
    return _mean(took) if len(took) >= MIN_REQUESTS else int(np.quantile(sent - arrived, 0.25))


def _num_open(rows: Int64) -> Int64:
    """Return for each request how many had an output in the message with its first one, itself among them.

    Nearly: all that had their first token by then and not yet their last.
    """
    first, last = np.sort(rows[:, Column.FIRST_TOKEN]), np.sort(rows[:, Column.LAST_TOKEN])
    at = rows[:, Column.FIRST_TOKEN]
    found: Int64 = np.searchsorted(first, at, side="right") - np.searchsorted(last, at, side="left")
    return np.maximum(found, 1)


def _each(took: Int64, num: Int64, is_known: npt.NDArray[np.bool_]) -> tuple[int, int]:
    """Return what each time took, however many there were, and what each of `num` alike took."""
    took, num = took[is_known], num[is_known]
    if not len(took):
        return 0, 0
    x = np.column_stack([np.ones(len(num)), num]).astype(np.float64)
    always, each = least_absolute_deviations(x, took.astype(np.float64)).tolist()
    return int(always), int(each)


def _to_engine_ns(rows: Int64, turns: Int64) -> int:
    """Return what a request takes to an engine that waits for one: there it is not the engine that it waits for."""
    idle = turns[(turns[:, Turn.IDLE0] > 0) & (turns[:, Turn.IDLE1] > 0)]
    if not len(idle):
        return 0
    sent, queued = rows[:, Column.SENT], rows[:, Column.QUEUED]
    of = np.searchsorted(idle[:, Turn.IDLE0], sent, side="right") - 1
    is_awaited = (of >= 0) & (sent < idle[of, Turn.IDLE1]) & (queued >= idle[of, Turn.IDLE1])
    took = (idle[of, Turn.IDLE1] - sent)[is_awaited]
    return int(np.median(took)) if len(took) else 0


def _from_engine_ns(rows: Int64, turns: Int64) -> int:
    """Return what a message takes from the end of its turn; below 0 where it is taken up before that.

    By the last output of each request, which is sent whether its answer is streamed or not.
    """
    turns = turns[(turns[:, Turn.UPDATED] > 0) & (turns[:, Turn.UPDATE0] > 0)]
    if not len(turns):
        return 0
    token, taken = rows[:, Column.LAST_TOKEN], rows[:, Column.LAST_TAKEN]
    of = np.searchsorted(turns[:, Turn.UPDATE0], token, side="right") - 1
    took = taken - turns[of, Turn.END]
    took = took[(of >= 0) & (taken > 0) & (np.abs(took) < _OTHER_CLOCK_NS)]
    return int(np.median(took)) if len(took) else 0


def _mean(took: Int64) -> int:
    """Return the mean of all but the longest, which something else has held up."""
    took = took[(took >= 0) & (took <= np.quantile(took, _SHARE))]
    return int(took.mean()) if len(took) else 0


def is_closed_loop(rows: Int64) -> bool:
    """Tell clients that ask again as soon as they are answered: nearly all of the time as many requests are under way.

    Of many clients one may be between an answer and its next request.
    """
    arrived, ended = rows[:, Column.ARRIVED], rows[:, Column.END]
    at = np.concatenate([arrived, ended])
    order = at.argsort(kind="stable")
    num_open = np.concatenate([np.ones(len(rows), dtype=np.int64), -np.ones(len(rows), dtype=np.int64)])[order].cumsum()
    lasts = np.diff(np.minimum(at[order], arrived.max()), append=arrived.max())
    time_at = np.bincount(np.maximum(num_open, 0), weights=lasts)
    usual = int(time_at.argmax())
    least = usual - 1 if usual >= _MANY_CLIENTS else usual
    return usual > 0 and float(time_at[least : usual + 1].sum()) >= _CLOSED_RATIO * float(time_at.sum()) > 0


class FrontendQueue:
    """One event loop in virtual time."""

    def __init__(self, fit: FrontendFit | None, *, factor: float = 1.0) -> None:
        self._free_ns = self.busy_ns = 0.0
        self._fit = fit or FrontendFit(num_requests=0)
        self._factor = factor

    def take_request(self, at_ns: float) -> float:
        """Return when a request that arrives then reaches the engine."""
        return self._do(at_ns, self._fit.request_ns) + self._factor * self._fit.to_engine_ns

    def take_outputs(self, at_ns: float, are_last: Sequence[bool]) -> list[tuple[float, float]]:
        """Return of each output of a message that the engine sends then when it was handed on, and when it was sent.

        With it goes the end of its answer if it is the last.
        """
        if not are_last:
            return []
        fit, factor = self._fit, self._factor
        begin_ns = self._do(at_ns + factor * fit.from_engine_ns, fit.message_ns)
        output_ns, send_ns, end_ns = factor * fit.output_ns, factor * fit.send_ns, factor * fit.end_ns
        put_ns = [begin_ns + output_ns * num for num in range(1, len(are_last) + 1)]
        costs = [send_ns + end_ns if is_last else send_ns for is_last in are_last]
        sent_ns = [*accumulate(costs, initial=put_ns[-1])][1:]
        self._free_ns = sent_ns[-1]
        self.busy_ns += self._free_ns - begin_ns
        return list(zip(put_ns, sent_ns, strict=True))

    def _do(self, at_ns: float, cost_ns: float) -> float:
        self._free_ns = max(self._free_ns, at_ns) + self._factor * cost_ns
        self.busy_ns += self._factor * cost_ns
        return self._free_ns
