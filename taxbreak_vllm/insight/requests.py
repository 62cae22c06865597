"""Which requests to show of many: one that stands for them, and the slow ones.

In: waterfalls and states of API servers. Out: the medians of the first, which are of one request in many, or while they
are few the means of all requests; the newest of the slow ones.
"""

from collections.abc import Iterable, Sequence
from itertools import chain
from statistics import median_low

from taxbreak_vllm.model.frontend import NUM_WATERFALLS, FrontendState, Stage, Waterfall
from taxbreak_vllm.model.server import TypicalRequest

MIN_REQUESTS = 20  # fewer stand for none: the first of a server are slow
SLOW_RATIO = 0.05  # of the requests are called slow, one at least

NUM_SLOW = 4  # are shown


def newest(waterfalls: Iterable[Waterfall]) -> list[Waterfall]:
    """Return as many as an API server keeps, the one that ended last first."""
    return sorted(waterfalls, key=lambda w: w.started_unix_ns + w.total_ns, reverse=True)[:NUM_WATERFALLS]


def typical(waterfalls: Sequence[Waterfall], states: Sequence[FrontendState]) -> TypicalRequest | None:
    """Return medians of the waterfalls or, while they are few, means of all requests; None of too few requests."""
    if len(waterfalls) < MIN_REQUESTS:
        return _mean(states)
    stages = _stages(w.stages_ns for w in waterfalls)
    return TypicalRequest(
        num=len(waterfalls),
        is_median=True,
        stages_ns={stage: median_low(w.stages_ns.get(stage, 0) for w in waterfalls) for stage in stages},
        ttft_ns=median_low(w.ttft_ns for w in waterfalls),
        first_token_ns=median_low(map(_first_token_ns, waterfalls)),
        total_ns=median_low(w.total_ns for w in waterfalls),
    )


def _mean(states: Sequence[FrontendState]) -> TypicalRequest | None:
    num = sum(state.total.num for state in states)
    if num < MIN_REQUESTS:
        return None
    told = [state.stages for state in states]
    histograms = [item for stages in told for item in stages.items()]
    stages_ns = {stage: sum(h.sum_ns for of, h in histograms if of == stage) // num for stage in _stages(told)}
    return TypicalRequest(
        num=num,
        is_median=False,
        stages_ns=stages_ns,
        ttft_ns=sum(state.ttft.sum_ns for state in states) // num,
        first_token_ns=sum(stage_ns for stage, stage_ns in stages_ns.items() if stage is not Stage.DECODE),
        total_ns=sum(state.total.sum_ns for state in states) // num,
    )


def _stages(told: Iterable[Iterable[Stage]]) -> list[Stage]:
    """Return every stage in order, and after them those that only another version's servers tell of."""
    return list(dict.fromkeys((*Stage, *chain.from_iterable(told))))


def _first_token_ns(waterfall: Waterfall) -> int:
    decode_ns = waterfall.stages_ns.get(Stage.DECODE, 0)
    return waterfall.ttft_ns if waterfall.is_streamed else waterfall.total_ns - decode_ns


def slow(waterfalls: Sequence[Waterfall]) -> list[Waterfall]:
    """Return the first few of those that took longest, in the order given."""
    longest = sorted((w.total_ns for w in waterfalls), reverse=True)
    if not longest:
        return []
    least_ns = longest[max(0, int(SLOW_RATIO * len(longest)) - 1)]
    return [w for w in waterfalls if w.total_ns >= least_ns][:NUM_SLOW]
