"""Where the time of requests went: rows of stamps in, for each request its stages out, which sum to its total exactly.

Stamps of the engine are on the clock of its machine. They count only where they lie between what this process did
before and after: without them (statistics are off), or with those of another machine's clock, a request is unknown.
What this process stamps after it did something may be late; the engine's stamp of what follows tells.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from taxbreak_vllm.model.frontend import DELIVERY, QUEUED, SPAN_BUCKETS_NS, WAITS, SpanHistogram, Stage
from taxbreak_vllm.stages.rows import Column, Output

Int64 = NDArray[np.int64]
Bool = NDArray[np.bool_]

_BUCKETS = np.array(SPAN_BUCKETS_NS)
_MAX_NS = 3600 * 10**9  # between an engine's sending and our taking up; beyond it the clocks differ
_CUTS = (
    Column.ARRIVED,
    Column.BODY,
    Column.RENDER0,
    Column.RENDER1,
    Column.SENT,
    Column.QUEUED,
    Column.SCHEDULED,
    Column.FIRST_TOKEN,
    Column.LAST_TOKEN,
    Column.LAST_TAKEN,
    Column.LAST_PUT,
    Column.LAST_SEND0,
    Column.END,
)
_STAGES = tuple(stage for stage in Stage if stage not in WAITS)  # between these
_WAITS = (Column.WAIT_KV, Column.WAIT_ENCODER, Column.WAIT_GRAMMAR, Column.WAIT_REMOTE_KV)
_FIRST = (Column.FIRST_TOKEN, Column.FIRST_TAKEN, Column.FIRST_PUT, Column.FIRST_SEND0, Column.FIRST_SEND1)
_ONLY = (Column.LAST_TOKEN, Column.LAST_TAKEN, Column.LAST_PUT, Column.FIRST_SEND0, Column.FIRST_SEND1)


@dataclass(frozen=True, slots=True)
class Requests:
    """Requests whose stages are known, one entry each, and how many there were besides.

    `rows` are theirs. `stages_ns` sum to `total_ns`; of one that is not `is_divided` no engine tells what it waited for
    in its queue: all of that is `queue`. `first_ns` cut the way of the first output that was sent.
    """

    rows: Int64
    total_ns: Int64
    ttft_ns: Int64
    stages_ns: Mapping[Stage, Int64]
    is_divided: Bool
    first_ns: Mapping[Stage, Int64]
    num_failed: int
    num_unknown: int


def account(rows: Int64) -> Requests:
    """Cut requests, `rows` (requests, columns), into stages.

    One that was not rendered here (its prompt came as tokens) is parsed until it is submitted. What a preempted one
    waits for again is part of its prefill or decode. One has failed that has no end, or whose last output came with no
    message of the engine's (an error, an abort); one answered without an output, as it goes on in the background, is
    unknown.
    """
    has_output = rows[:, Column.LAST_PUT] > 0
    was_broken_off = has_output & (rows[:, Column.LAST_TAKEN] == 0)
    has_failed = was_broken_off | (rows[:, Column.STATUS] >= 400) | (rows[:, Column.END] == 0)
    cuts = rows[:, _CUTS].copy()
    rendered = slice(_CUTS.index(Column.RENDER0), _CUTS.index(Column.RENDER1) + 1)
    is_bare = rows[:, Column.RENDER0] == 0
    cuts[is_bare, rendered] = rows[is_bare, Column.SUBMIT0, None]
    sent, queued = _CUTS.index(Column.SENT), _CUTS.index(Column.QUEUED)
    is_late = (cuts[:, queued] >= cuts[:, sent - 1]) & (cuts[:, sent] > 0)
    cuts[is_late, sent] = np.minimum(cuts[is_late, sent], cuts[is_late, queued])
    is_streamed = rows[:, Column.IS_STREAMED, None] > 0
    first = np.where(is_streamed, rows[:, _FIRST], rows[:, _ONLY])
    is_known = has_output & ~has_failed & _in_order(cuts) & _in_order(first)
    spans, first_spans = np.diff(cuts[is_known], axis=1), np.diff(first[is_known], axis=1)
    known = rows[is_known]
    stages_ns = dict(zip(_STAGES, spans.T, strict=True))
    is_divided, parts_ns = _waits(known[:, _WAITS], stages_ns[Stage.QUEUE])
    stages_ns |= dict(zip(QUEUED, parts_ns, strict=True))
    return Requests(
        rows=known,
        total_ns=known[:, Column.END] - known[:, Column.ARRIVED],
        ttft_ns=known[:, Column.FIRST_SEND1] - known[:, Column.ARRIVED],
        stages_ns={stage: stages_ns[stage] for stage in Stage},
        is_divided=is_divided,
        first_ns=dict(zip(DELIVERY, first_spans.T, strict=True)),
        num_failed=int(has_failed.sum()),
        num_unknown=int((~has_failed & ~is_known).sum()),
    )


def _waits(waits_ns: Int64, queue_ns: Int64) -> tuple[Bool, tuple[Int64, ...]]:
    """Tell whose waits (requests, 4) are known and fit their time in the queue, and cut that into `QUEUED`."""
    is_divided: Bool = (waits_ns >= 0).all(axis=1) & (waits_ns.sum(axis=1) <= queue_ns)
    waits_ns = np.where(is_divided[:, None], waits_ns, 0)
    return is_divided, (queue_ns - waits_ns.sum(axis=1), *waits_ns.T)


def delivery(rows: Int64) -> dict[Stage, Int64]:
    """Cut the ways of single outputs, `rows` (outputs, columns); those whose stamps disagree are left out."""
    is_known = _in_order(rows) & (rows[:, Output.TAKEN] - rows[:, Output.TOKEN] < _MAX_NS)
    return dict(zip(DELIVERY, np.diff(rows[is_known], axis=1).T, strict=True))


def added(histogram: SpanHistogram, spans_ns: Int64) -> SpanHistogram:
    """Return a histogram with these durations in it too; each is in the first bucket that is not below it."""
    if not len(spans_ns):
        return histogram
    found = np.bincount(np.searchsorted(_BUCKETS, spans_ns), minlength=len(_BUCKETS) + 1)
    counts = tuple(old + int(new) for old, new in zip(histogram.bucket_counts, found, strict=True))
    return replace(
        histogram,
        num=histogram.num + len(spans_ns),
        sum_ns=histogram.sum_ns + int(spans_ns.sum()),
        bucket_counts=counts,
    )


def _in_order(cuts: Int64) -> Bool:
    ordered: Bool = (cuts[:, 0] > 0) & (np.diff(cuts, axis=1) >= 0).all(axis=1)
    return ordered
