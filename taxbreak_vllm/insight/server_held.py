"""Whether a change around a server's steps held: the part that its rule is about, before and after the restart.

In: the evidence of two starts of a server. Out: an `Outcome`. Means over all iterations or requests of a start are
compared, which tell no interval: a part that fell by what is worth a restart, or by half, fell for the change. What a
part is of is told beside it, as the load may have changed too.
"""

from collections.abc import Mapping, Sequence

from taxbreak_vllm.insight.plain import WORTH_RATIO
from taxbreak_vllm.insight.server_evidence import Part, ServerEvidence
from taxbreak_vllm.model.advice import Advice, Held, Outcome

_HALF = 0.5


def part_outcome(
    advice: Advice,
    settings: Mapping[str, tuple[str, str]],
    before: Sequence[ServerEvidence],
    after: Sequence[ServerEvidence],
) -> Outcome:
    """Say whether what a rule of `PARTS` is about fell; of several engines the one counts that loses most."""
    old, new = (_largest(advice.rule, found) for found in (before, after))
    change = new.spent_ns / old.spent_ns if old is not None and new is not None and old.spent_ns else None
    changed = ", ".join(f"{name} {was} → {now}" for name, (was, now) in settings.items())
    return Outcome(
        held=_held(old, new),
        rules=(advice.rule,),
        settings=settings,
        per=advice.per,
        phase=None,
        change=change,
        interval=None,
        promised_ratio=advice.at_most_ratio,
        num_before=old.num if old is not None else 0,
        num_after=new.num if new is not None else 0,
        words=f"{changed}: {_measured(old, new)}; the bound was {advice.at_most_ratio:.0%} less",
    )


def _largest(rule: str, found: Sequence[ServerEvidence]) -> Part | None:
    parts = [part for evidence in found if (part := evidence.part(rule)).is_known]
    return max(parts, key=lambda part: part.ratio, default=None)


def _held(old: Part | None, new: Part | None) -> Held:
    if old is None or new is None:
        return Held.NOT_ENOUGH_YET
    fell_ns = old.spent_ns - new.spent_ns
    is_enough = fell_ns >= WORTH_RATIO * old.whole_ns or fell_ns >= _HALF * old.spent_ns
    return Held.HELD if old.spent_ns and is_enough else Held.DID_NOT_HOLD


def _measured(old: Part | None, new: Part | None) -> str:
    if old is None or new is None:
        return "too little was served on both sides"
    took, takes = (f"{part.spent_ns / 1e6:.3g} of {part.whole_ns / 1e6:.3g} ms" for part in (old, new))
    return (
        f"of each {new.per} what the advice is about takes {takes}; it took {took} ({old.num} and {new.num} {new.per}s)"
    )
