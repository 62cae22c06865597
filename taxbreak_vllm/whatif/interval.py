"""Between what steps lie under a change, as no recording tells all that it depends on.

In: variants of a graph, any of which may be right, and how long steps take in each without the change. Out: what they
take under it in the one variant or the other, at both ends of each factor's range.
"""

from collections.abc import Iterable, Sequence

from taxbreak_vllm.model.whatif import Gate
from taxbreak_vllm.whatif.apply import at_both_ends
from taxbreak_vllm.whatif.build import Model
from taxbreak_vllm.whatif.changes import Change
from taxbreak_vllm.whatif.graph import Graph
from taxbreak_vllm.whatif.spans import Spans, means

Variant = tuple[Graph, Sequence[float] | None]  # and what each group of steps takes in it, ns; None: what they took

_FORGIVEN = ("reproduction", "unexplained", "contention")  # what their gates let pass is error all the same


def interval(
    variants: Iterable[Variant], model: Model, change: Change, groups: Sequence[Spans], took_ns: Sequence[float]
) -> list[tuple[float, float]]:
    """Return between what each group of steps, which took so long, lies: other by as much as in the variants."""
    found = [
        [was + after - before for was, after, before in zip(took_ns, means(changed, groups), befores, strict=True)]
        for variant, known_ns in variants
        for befores in (took_ns if known_ns is None else known_ns,)
        for changed in at_both_ends(variant, model, change)
    ]
    return [(min(group), max(group)) for group in zip(*found, strict=True)]


def model_error(gates: Iterable[Gate]) -> float:
    """Return what share of the recording the graph gets wrong, or does not explain, as its gates found."""
    return sum(gate.value for gate in gates if gate.name in _FORGIVEN)
