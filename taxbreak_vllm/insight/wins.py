"""What a change is predicted to win of the steps of a phase, from the forecasts kept with its recordings.

In: the evidence of a phase, and what a rule found in it. Out: a `Win`, or why there is none. Each recording has an
interval of its own, which no number of recordings makes smaller; how much they differ widens it.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import median

from taxbreak_vllm.insight.evidence import Evidence, Finding
from taxbreak_vllm.insight.plain import Spent
from taxbreak_vllm.model.advice import Win
from taxbreak_vllm.model.forecast import Forecast, Remedy

REMEDIES: Mapping[str, Remedy] = {
    "cuda-graphs": Remedy.GRAPH,
    "capture-sizes": Remedy.GRAPH,
    "library-front-end": Remedy.GRAPH,
    "async-scheduling": Remedy.AHEAD,
    "engine-loop": Remedy.AHEAD,
    "faster-core": Remedy.FASTER,
    "fused-kernels": Remedy.FUSED,
    "compilation": Remedy.COMPILED,
}
BEYOND: Mapping[str, str] = {  # what no replay of one recording tells of a rule's change
    "full-graphs": "what one graph costs in place of many is in no recording of the many",
    "batch-size": "how a step grows with its batch is not in a recording of one size",
    "larger-batch": "how a step grows with its batch is not in a recording of one size",
    "prefill-budget": "how a step grows with its prompt tokens is not in a recording of one size",
    "cpu-limit": "how long threads waited for a CPU is not in a recording",
    "quantization": "how long the smaller kernels take is not in a recording",
    "fused-kernels": "what a fused kernel saves of its parts' memory traffic is not in a recording",
}

_WIDENED = 1.645 * 1.4826  # of the wins' median absolute deviation: where 90 % of their medians lie
_MIN_SPREAD = 3  # of fewer wins the interval is all that they reach


def remedy_of(finding: Finding) -> Remedy | None:
    """Return what is replayed for a finding; what fusing wins of the device's own time no replay tells."""
    change = REMEDIES.get(finding.rule)
    return None if change is Remedy.FUSED and finding.spent is not Spent.HOST else change


def merged(e: Evidence, finding: Finding, *, at_most_ns: int, at_most_ratio: float) -> Win | str:
    """Return what a change is predicted to win of a step of a phase, or why that is not known.

    `at_most_ns` of a step, the share `at_most_ratio`, bound it. A step in which there is nothing to win wins nothing.
    """
    change = remedy_of(finding)
    told = [next((f for f in own if f.change == change), None) for own in e.forecasts]
    own = [f for f, amount_ns in zip(told, finding.amounts_ns, strict=True) if f is not None or amount_ns]
    known = [f for f in own if f is not None and f.refused is None]
    if 2 * len(known) < len(own) or not known:
        return _why_not(finding, own, len(known))
    plain_ns = sum(f.plain_ns or 0 for f in known) / len(known) * len(own) / len(told)
    wins, lows, highs = (
        [ratio or 0.0 for ratio in ratios]
        for ratios in zip(*((f.win_ratio, f.low_ratio, f.high_ratio) for f in known), strict=True)
    )
    win, low, high = median(wins), min(lows), max(highs)
    if len(known) >= _MIN_SPREAD:
        spread = _WIDENED * median(abs(each - win) for each in wins) / len(wins) ** 0.5
        low, high = median(lows) - spread, median(highs) + spread
    point_ns, low_ns, high_ns = (round(share * plain_ns) for share in (win, low, high))
    if low_ns > at_most_ns:
        return f"{low_ns / 1e6:.2f} ms at least were predicted, above the bound: one of the two is wrong"
    point_ns, high_ns = min(point_ns, at_most_ns), min(high_ns, at_most_ns)
    ratio = at_most_ratio / at_most_ns if at_most_ns else 0.0
    return Win(
        win_ns=point_ns,
        low_ns=low_ns,
        high_ns=high_ns,
        win_ratio=point_ns * ratio,
        low_ratio=low_ns * ratio,
        high_ratio=high_ns * ratio,
        change=str(known[-1].change),
        num_steps=len(known),
    )


def _why_not(finding: Finding, own: Sequence[Forecast | None], num_known: int) -> str:
    refusals = Counter(f.refused for f in own if f is not None and f.refused is not None)
    reason = refusals.most_common(1)[0][0] if refusals else BEYOND.get(finding.rule, "no recording of it was replayed")
    return f"{len(own) - num_known} of {len(own)} recorded steps do not tell: {reason}" if num_known else reason
