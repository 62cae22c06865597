"""What the changes that rules ask for would win, asked of a recording while it is open.

In: a recording and its breakdown. Out: the breakdown with its forecasts, which `wins` merges later.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from taxbreak_vllm.insight.evidence import by_phase, distrust
from taxbreak_vllm.insight.rules import RULES
from taxbreak_vllm.insight.wins import remedy_of
from taxbreak_vllm.model.breakdown import Breakdown
from taxbreak_vllm.model.forecast import Remedy
from taxbreak_vllm.model.step import Phase

if TYPE_CHECKING:
    from taxbreak_vllm.model.fusion import FusionReport
    from taxbreak_vllm.taxes.recording import Recording


def foreseen(recording: "Recording", breakdown: Breakdown, *, fusion: "FusionReport | None" = None) -> Breakdown:
    """Add what the change of each rule that finds something would win, however little it weighs in this recording."""
    doubt = distrust(breakdown)
    if doubt is not None and not doubt.is_untimed:
        return breakdown
    asked: defaultdict[Remedy, list[Phase | None]] = defaultdict(list)
    for evidence in by_phase([breakdown], fusion, None):
        for finding in (one for rule in RULES if (one := rule(evidence)) is not None):
            change = remedy_of(finding)
            if change is not None and any(finding.amounts_ns) and evidence.phase not in asked[change]:
                asked[change].append(evidence.phase)
    if not asked:
        return breakdown
    from taxbreak_vllm.whatif.foresee import foresee  # what most recordings need not load

    maximal = (chain.kernels for chain in fusion.chains if chain.is_maximal) if fusion is not None else ()
    found = foresee(recording, asked, dilation=breakdown.calibration.dilation, chains=apart(maximal))
    return replace(breakdown, forecasts=found)


def apart(chains: Iterable[tuple[str, ...]], most: int = 8) -> list[tuple[str, ...]]:
    """Choose chains of kernels that can all be fused at once, as none of these is in two, the first ones first."""
    found: list[tuple[str, ...]] = []
    taken: set[str] = set()
    for chain in chains:
        if len(found) < most and len(set(chain)) == len(chain) and taken.isdisjoint(chain):
            found.append(chain)
            taken.update(chain)
    return found
