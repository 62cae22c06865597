"""Requests to be served: recorded ones, or given by lengths and arrivals; and what came of each."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from taxbreak_vllm.traffic.rows import Aborted, Added, Ended, Row


@dataclass(slots=True)
class Request:
    """One request, `at_ns` when it reaches an API server; a simulation fills in what came of it, 0 until then."""

    number: int
    at_ns: float
    num_prompt_tokens: int
    num_outputs: int
    max_tokens: int
    stops: bool = False
    priority: int = 0
    lora: int = 0
    reads_cache: bool = True
    hashes: Sequence[int] = ()
    first_ns: float = 0.0
    last_ns: float = 0.0
    sent_ns: float = 0.0
    num_done: int = 0

    def fresh(self) -> "Request":
        """Return it as it was before it was served."""
        return replace(self, first_ns=0.0, last_ns=0.0, sent_ns=0.0, num_done=0)


@dataclass(frozen=True, slots=True)
class Planned:
    """How a request goes: it ends after `num_outputs` tokens, by itself where it `stops`; ids of its blocks' hashes."""

    hashes: Sequence[int] = ()
    num_outputs: int = 0
    stops: bool = False


def recorded_requests(rows: Iterable[Row]) -> list[Request]:
    """Return those that ended, at the times at which they came; one that was dropped ends after as many tokens."""
    rows = list(rows)
    ends = {row.number: row for row in rows if isinstance(row, Ended)}
    dropped = {number for row in rows if isinstance(row, Aborted) for number in row.numbers}
    found = []
    for row in rows:
        end = ends.get(row.number) if isinstance(row, Added) else None
        if not isinstance(row, Added) or end is None:
            continue
        found.append(
            Request(
                number=row.number,
                at_ns=float(row.arrived_ns),
                num_prompt_tokens=row.num_prompt_tokens,
                num_outputs=max(1, end.num_output_tokens),
                max_tokens=row.max_tokens,
                stops=end.reason != "length" or row.number in dropped,
                priority=row.priority,
                lora=row.lora,
                reads_cache=row.reads_cache,
                hashes=[*row.hashes, *end.hashes],
            )
        )
    return sorted(found, key=lambda request: request.at_ns)


def faster(requests: Sequence[Request], factor: float) -> list[Request]:
    """Return the same requests, coming that many times as fast."""
    begin = requests[0].at_ns if requests else 0.0
    return [replace(r.fresh(), at_ns=begin + (r.at_ns - begin) / factor) for r in requests]


def gamma_arrivals(requests: Sequence[Request], shape: float, *, seed: int = 0) -> list[Request]:
    """Return the same requests at the same mean rate, gaps drawn from a gamma distribution: 1 Poisson, 0.3 bursty."""
    if len(requests) < 2:
        return [r.fresh() for r in requests]
    draw = random.Random(seed)
    mean = (requests[-1].at_ns - requests[0].at_ns) / (len(requests) - 1)
    at, found = requests[0].at_ns, []
    for request in requests:
        found.append(replace(request.fresh(), at_ns=at))
        at += draw.gammavariate(shape, mean / shape)
    return found
