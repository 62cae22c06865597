"""Which of an API server's requests is which of its engine's: neither keeps an id, both when it reached the engine."""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable

from taxbreak_vllm.stages.rows import Column
from taxbreak_vllm.traffic.rows import Added, Int64

_NEAR_NS = 2 * 10**6


def paired(added: Iterable[Added], served: Int64) -> dict[int, int]:
    """Return, by its number, the place of an engine's request in `served` (requests, columns of `stages.rows.Column`).

    Two are one that reached the engine within 2 ms of one another with as many prompt tokens, the nearest first come.
    What only one side kept, as the other's is not written yet or was deleted, has no place.
    """
    of_length: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
    for row in sorted(added, key=lambda row: row.at_ns):
        of_length[row.num_prompt_tokens].append((row.at_ns, row.number))
    found: dict[int, int] = {}
    queued, lengths = served[:, Column.QUEUED], served[:, Column.NUM_PROMPT_TOKENS]
    for place in queued.argsort(kind="stable").tolist():
        at_ns = int(queued[place])
        alike = of_length[int(lengths[place])]
        first = bisect_left(alike, (at_ns - _NEAR_NS, -1))
        near = [each for each in alike[first : bisect_left(alike, (at_ns + _NEAR_NS, -1))] if each[1] not in found]
        if near:
            found[min(near, key=lambda each: abs(each[0] - at_ns))[1]] = place
    return found
