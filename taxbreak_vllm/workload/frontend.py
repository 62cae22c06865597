"""An API server as a queue: the stamps of its requests in, what each costs it out, and when it gets to what.

Its event loop does one thing at a time: a request's way in, each output it hands on, a request's end. What each takes
by itself is the lower quartile of what was measured: the rest of that is waiting for the others, which is simulated.
"""

from collections.abc import Sequence

import numpy as np

from taxbreak_vllm.model.workload import FrontendFit
from taxbreak_vllm.stages.rows import Column
from taxbreak_vllm.traffic.rows import Int64, Stamped, unstamped
from taxbreak_vllm.workload.recording import Recorded

MIN_REQUESTS = 20
_CLOSED_RATIO = 0.9
_MANY_CLIENTS = 4


def request_rows(apis: Sequence[Recorded]) -> Int64:
    """Return the served requests of all API servers (requests, columns of `stages.rows.Column`), by arrival."""
    names = [column.name.lower() for column in Column]
    parts = [unstamped([row for row in api.rows if isinstance(row, Stamped)], api.setup, names) for api in apis]
    rows = np.concatenate([part for part in parts if len(part)] or [np.zeros((0, len(Column)), dtype=np.int64)])
    is_served = (rows[:, Column.SENT] > 0) & (rows[:, Column.FIRST_PUT] > 0) & (rows[:, Column.END] > 0)
    served: Int64 = rows[is_served & (rows[:, Column.NUM_OUTPUT_TOKENS] > 0)]
    ordered: Int64 = served[served[:, Column.ARRIVED].argsort()]
    return ordered


def fit_frontend(rows: Int64) -> FrontendFit | None:
    """Fit what things cost; None for too few requests."""
    if len(rows) < MIN_REQUESTS:
        return None

    def alone(begin: Column, end: Column) -> int:
        took = rows[:, end] - rows[:, begin]
        took = took[(rows[:, begin] > 0) & (rows[:, end] > 0) & (took >= 0)]
        return int(np.quantile(took, 0.25)) if len(took) else 0

    return FrontendFit(
        num_requests=len(rows),
        request_ns=alone(Column.ARRIVED, Column.SENT),
        output_ns=alone(Column.FIRST_TAKEN, Column.FIRST_PUT),
        end_ns=alone(Column.LAST_PUT, Column.END),
    )


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
        self._request_ns = factor * fit.request_ns if fit else 0.0
        self._output_ns = factor * fit.output_ns if fit else 0.0
        self._end_ns = factor * fit.end_ns if fit else 0.0

    def take_request(self, at_ns: float) -> float:
        """Return when a request that arrives then reaches the engine."""
        return self._do(at_ns, self._request_ns)

    def take_output(self, at_ns: float, *, is_last: bool) -> tuple[float, float]:
        """Return when an output of that time was handed on, and when its answer's end was sent if it is the last."""
        put_ns = self._do(at_ns, self._output_ns)
        return put_ns, self._do(put_ns, self._end_ns) if is_last else put_ns

    def _do(self, at_ns: float, cost_ns: float) -> float:
        self._free_ns = max(self._free_ns, at_ns) + cost_ns
        self.busy_ns += cost_ns
        return self._free_ns
