"""Why an engine waits for requests: its waits and the requests on their way to it in, spans for each cause out.

An instant of a wait is `frontend` while a request that may be this engine's is in an API server; else `ipc_input` once
one was sent to it in this very wait, which ends when that has come; else `no_work`.
"""

from dataclasses import dataclass

import numpy as np

from taxbreak_vllm.iterations.spans import Bool, Int64, Spans
from taxbreak_vllm.model.engine import Between
from taxbreak_vllm.model.frontend import UNKNOWN_ENGINE

_FOREVER = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Arrivals:
    """Requests on their way to one engine: when there were some in the API servers, when each was sent, in order."""

    in_frontend: Spans
    sent_ns: Int64

    @classmethod
    def of(cls, slots: Int64, engine: int) -> "Arrivals":
        """Read slots (requests, 4): arrived, sent, engine, 0. What cannot be, as a slot half written, is passed over.

        Never used is one that arrived at 0; sent at 0 is one that is still in an API server.
        """
        arrived, sent, of_engine = slots[:, 0], slots[:, 1], slots[:, 2]
        sent = np.where(sent == 0, _FOREVER, sent)
        is_ours = (arrived > 0) & (sent >= arrived)
        own = is_ours & (of_engine == engine)
        is_ours &= (of_engine == engine) | (of_engine == UNKNOWN_ENGINE)
        return cls(_union(arrived[is_ours], sent[is_ours]), np.sort(sent[own]))


_NONE = np.zeros(0, dtype=np.int64)
NO_ARRIVALS = Arrivals((_NONE, _NONE), _NONE)


def cut_waits(waits: Spans, arrivals: Arrivals) -> dict[Between, Spans]:
    """Cut an engine's waits by cause; the spans of all causes together are the waits."""
    starts, ends = waits
    next_sent = np.append(arrivals.sent_ns, _FOREVER)[np.searchsorted(arrivals.sent_ns, starts)]
    on_their_way = np.minimum(next_sent, ends), ends
    edges = np.unique(np.concatenate((starts, ends, on_their_way[0], *arrivals.in_frontend)))
    begin, end = edges[:-1], edges[1:]
    is_wait = _within(waits, begin)
    is_frontend = is_wait & _within(arrivals.in_frontend, begin)
    is_input = is_wait & ~is_frontend & _within(on_their_way, begin)
    causes = {
        Between.FRONTEND: is_frontend,
        Between.IPC_INPUT: is_input,
        Between.NO_WORK: is_wait & ~is_frontend & ~is_input,
    }
    return {cause: (begin[is_it], end[is_it]) for cause, is_it in causes.items()}


def _union(starts: Int64, ends: Int64) -> Spans:
    """Join spans that may overlap."""
    order = np.argsort(starts, kind="stable")
    starts, ends = starts[order], np.maximum.accumulate(ends[order])
    is_first = np.ones(len(starts), dtype=np.bool_)
    is_first[1:] = starts[1:] > ends[:-1]
    return starts[is_first], ends[np.append(is_first, True)[1:]]


def _within(spans: Spans, at: Int64) -> Bool:
    """Tell instants that lie in a span."""
    starts, ends = spans
    if not len(starts):
        return np.zeros(len(at), dtype=np.bool_)
    index = np.searchsorted(starts, at, side="right") - 1
    is_within: Bool = (index >= 0) & (at < ends[np.maximum(index, 0)])
    return is_within
