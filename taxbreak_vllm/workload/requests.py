"""Requests to be served: recorded ones, or given by lengths and arrivals."""

import random
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from types import MappingProxyType
from typing import overload

import numpy as np
import numpy.typing as npt

from taxbreak_vllm.traffic.rows import Aborted, Added, Ended, Int64, Row

_COLUMNS = ("number", "num_prompt_tokens", "num_outputs", "max_tokens", "stops", "priority", "lora", "reads_cache")
_CHUNK = 4096
_row = attrgetter(*_COLUMNS)


@dataclass(frozen=True, slots=True)
class Planned:
    """How a request goes: it ends after `num_outputs` tokens, by itself where it `stops`; ids of its blocks' hashes."""

    hashes: Sequence[int] = ()
    num_outputs: int = 0
    stops: bool = False


@dataclass(frozen=True, slots=True)
class Request:
    """One request, `at_ns` when it reaches an API server; it ends after `num_outputs`, by itself where it `stops`."""

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

    @property
    def plan(self) -> Planned:
        """How it goes."""
        return Planned(self.hashes, self.num_outputs, self.stops)


class Requests(Sequence[Request]):
    """Requests in the order in which they come; a million of them take 72 MB, as each is made when it is looked at.

    `at_ns` (requests,) are arrivals, `rows` (requests, 8) a request's numbers and switches, `hashes` those of each, or
    none at all.
    """

    def __init__(self, at_ns: npt.NDArray[np.float64], rows: Int64, hashes: Sequence[Sequence[int]] = ()) -> None:
        self.at_ns = at_ns
        self._rows = rows
        self._hashes = hashes

    @classmethod
    def of(cls, requests: Iterable[Request]) -> "Requests":
        """Keep requests, ordered by arrival."""
        at_ns, rows, hashes = array("d"), array("q"), []
        for request in requests:
            at_ns.append(request.at_ns)
            rows.extend(_row(request))
            hashes.append(request.hashes)
        at = np.array(at_ns)
        order = at.argsort(kind="stable")
        known = [hashes[place] for place in order.tolist()] if any(hashes) else ()
        return cls(at[order], np.array(rows).reshape(-1, len(_COLUMNS))[order], known)

    def coming_at(self, at_ns: npt.NDArray[np.float64]) -> "Requests":
        """Return the same requests at other times (requests,), in the same order."""
        return Requests(at_ns, self._rows, self._hashes)

    def __len__(self) -> int:
        return len(self.at_ns)

    def __iter__(self) -> Iterator[Request]:
        for begin in range(0, len(self), _CHUNK):
            yield from self._made(begin, begin + _CHUNK)

    @overload
    def __getitem__(self, place: int) -> Request: ...

    @overload
    def __getitem__(self, place: slice) -> "Requests": ...

    def __getitem__(self, place: int | slice) -> "Request | Requests":
        if isinstance(place, slice):
            return Requests(self.at_ns[place], self._rows[place], self._hashes[place])
        place = range(len(self))[place]
        return next(self._made(place, place + 1))

    def _made(self, begin: int, end: int) -> Iterator[Request]:
        hashes = self._hashes[begin:end] or [()] * (end - begin)
        at_ns, rows = self.at_ns[begin:end].tolist(), self._rows[begin:end].tolist()
        for at, row, known in zip(at_ns, rows, hashes, strict=False):
            number, prompt, outputs, most, stops, priority, lora, reads_cache = row
            yield Request(number, at, prompt, outputs, most, stops != 0, priority, lora, reads_cache != 0, known)


def recorded_requests(rows: Iterable[Row], at_ns: Mapping[int, float] = MappingProxyType({})) -> Requests:
    """Return those that ended, at the times at which they came; one that was dropped ends after as many tokens.

    They came at `at_ns`, by number, where it is known, else when vLLM's API server had read them.
    """
    rows = list(rows)
    ends = {row.number: row for row in rows if isinstance(row, Ended)}
    dropped = {number for row in rows if isinstance(row, Aborted) for number in row.numbers}
    return Requests.of(
        Request(
            number=row.number,
            at_ns=at_ns.get(row.number, float(row.arrived_ns)),
            num_prompt_tokens=row.num_prompt_tokens,
            num_outputs=max(1, ends[row.number].num_output_tokens),
            max_tokens=row.max_tokens,
            stops=ends[row.number].reason != "length" or row.number in dropped,
            priority=row.priority,
            lora=row.lora,
            reads_cache=row.reads_cache,
            hashes=[*row.hashes, *ends[row.number].hashes],
        )
        for row in rows
        if isinstance(row, Added) and row.number in ends
    )


def faster(requests: Requests, factor: float) -> Requests:
    """Return the same requests, coming that many times as fast."""
    begin = requests.at_ns[:1]
    return requests.coming_at(begin + (requests.at_ns - begin) / factor)


def gamma_arrivals(requests: Requests, shape: float, *, seed: int = 0) -> Requests:
    """Return the same requests at the same mean rate, gaps drawn from a gamma distribution: 1 Poisson, 0.3 bursty."""
    if len(requests) < 2:
        return requests
    draw = random.Random(seed)
    mean = float(requests.at_ns[-1] - requests.at_ns[0]) / (len(requests) - 1)
    gaps = [draw.gammavariate(shape, mean / shape) for _ in range(len(requests) - 1)]
    return requests.coming_at(requests.at_ns[0] + np.concatenate([[0.0], np.cumsum(gaps)]))


def arriving(requests: Requests, *, load: float = 1.0, arrivals: float | None = None) -> Requests:
    """Return requests that come `load` times as fast, with gaps of that shape where one is named."""
    wanted = faster(requests, load)
    return wanted if arrivals is None else gamma_arrivals(wanted, arrivals)
