"""Write a trace whose events are those of another, `copies` times over, one after the other in time.

    python benchmarks/repeat_trace.py TRACE.json[.gz] OUT.json COPIES

The text of every event stays as it was recorded, white space included, but for its time and its ids: correlation,
External and flow ids, `Ev Idx`, `Python id`s, `Record function id`s and step numbers go up from copy to copy, so that
the result is one valid trace. It is written copy by copy: memory holds one.

A process of its own, since the peak memory of a child starts at what its parent holds.
"""

import gzip
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

_START = re.compile(rb'"traceEvents"\s*:\s*\[')
# A quote inside a JSON string is escaped, so `"ts":` begins a key wherever it stands.
_NUMBER = re.compile(
    rb'"(ts|correlation|[Ee]xternal id|id|Ev Idx|Python id|Python parent id|Python module id|Record function id)"'
    rb"(\s*:\s*)(\d+)|(ProfilerStep#)(\d+)"
)
_ZERO_IS_NONE = {"correlation", "external id", "record function id"}
_GAP_US = 1000


def main() -> None:
    """Write the file that the command line asks for."""
    source, target, copies = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    text = gzip.decompress(source.read_bytes()) if source.suffix == ".gz" else source.read_bytes()
    head, events, tail = _split(text)
    shift_us = _length_us(events) + _GAP_US
    del text
    pieces, numbers = _template(events)
    del events
    with target.open("wb") as file:
        file.write(head)
        for copy in range(copies):
            file.write(b"," if copy else b"")
            file.writelines(_one_copy(pieces, numbers, copy, shift_us))
        file.write(tail)


def _split(text: bytes) -> tuple[bytes, bytes, bytes]:
    """Cut before the first event and after the last one."""
    match = _START.search(text)
    if match is None:
        raise SystemExit("repeat_trace: no traceEvents list")
    try:
        msgspec.json.decode(b"[" + text[match.end() :], type=list[msgspec.Raw])
        raise SystemExit("repeat_trace: the file ends with its events")
    except msgspec.DecodeError as error:
        place = re.search(r"trailing characters \(byte (\d+)\)", str(error))
        if place is None:
            raise
    end = match.end() + text[match.end() :].rindex(b"]", 0, int(place[1]) - 1)
    return text[: match.end()], text[match.end() : end], text[end:]


class _Time(msgspec.Struct):
    ph: str = ""
    ts: float = 0.0
    dur: float = 0.0


def _length_us(events: bytes) -> int:
    times = [event for event in msgspec.json.decode(b"[" + events + b"]", type=list[_Time]) if event.ph == "X"]
    return int(max(event.ts + event.dur for event in times) - min(event.ts for event in times)) + 1


def _template(events: bytes) -> tuple[list[bytes], list[tuple[str, int]]]:
    """Cut the text at its times and ids: `pieces[i]`, then `numbers[i]` as (key, value); one more piece at the end."""
    pieces, numbers, at = [], [], 0
    for match in _NUMBER.finditer(events):
        group = 3 if match[3] is not None else 5
        pieces.append(events[at : match.start(group)])
        key = "step" if group == 5 else match[1].decode().lower()
        numbers.append((key, int(match[group])))
        at = match.end(group)
    pieces.append(events[at:])
    return pieces, numbers


def _one_copy(pieces: Sequence[bytes], numbers: Sequence[tuple[str, int]], copy: int, shift_us: int) -> Iterator[bytes]:
    highest: dict[str, int] = {}
    for key, value in numbers:
        highest[key] = max(highest.get(key, 0), value)
    # A flow's id is the correlation id of what it joins.
    highest["id"] = highest["correlation"] = max(highest.get("id", 0), highest.get("correlation", 0))
    highest["python id"] = highest["python parent id"] = max(
        highest.get("python id", 0), highest.get("python parent id", 0)
    )
    step = {key: copy * (value + 1) for key, value in highest.items()} | {"ts": copy * shift_us, "step": copy}
    for piece, (key, value) in zip(pieces, numbers, strict=False):
        yield piece
        yield b"%d" % (0 if value == 0 and key in _ZERO_IS_NONE else value + step[key])
    yield pieces[-1]


if __name__ == "__main__":
    main()
