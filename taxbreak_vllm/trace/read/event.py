"""One event as the file holds it: its fields, and its times as exact integer ns.

A float of microseconds tells its ns below 2^43 µs (its spacing is under 1 ns there); larger fractions are decoded as
decimals.
"""

import json
from contextlib import suppress
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from taxbreak_vllm.trace.events import Int64

_EXACT_FLOAT_US = 2.0**43

# Starts and ends fit 64 bits of ns; an event outside is damaged (2^53 µs is inside).
_MAX_START_US, _MAX_LENGTH_US = 9_150_000_000_000_000, 2**46

_Id = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]

_START_LIMIT = msgspec.Meta(ge=-_MAX_START_US, le=_MAX_START_US)

_LENGTH_LIMIT = msgspec.Meta(ge=-_MAX_LENGTH_US, le=_MAX_LENGTH_US)


class EventArgs(
    msgspec.Struct,
    gc=False,
    frozen=True,
    rename={
        "external": "External id",
        "external_old": "external id",
        "graph": "graph id",
        "awaited_stream": "wait_on_stream",
        "record": "wait_on_cuda_event_record_corr_id",
    },
):
    """The arguments of an event that joins need."""

    correlation: _Id = -1
    external: _Id = -1
    external_old: _Id = -1
    stream: _Id = -1
    device: _Id = -1
    graph: _Id = -1
    awaited_stream: _Id = -1
    record: _Id = -1


class Event(msgspec.Struct, gc=False):
    """The fields that any event may have."""

    ph: str = ""
    cat: str = ""
    name: str = ""
    pid: int | str = 0
    tid: int | str = 0
    ts: Annotated[int, _START_LIMIT] | Annotated[float, _START_LIMIT] | None = None
    dur: Annotated[int, _LENGTH_LIMIT] | Annotated[float, _LENGTH_LIMIT] = 0
    args: EventArgs = EventArgs()


class ExactEvent(msgspec.Struct, gc=False):
    """Its times as decimals."""

    ph: str = ""
    cat: str = ""
    ts: Decimal | None = None
    dur: Decimal = Decimal(0)


_EXACT_EVENT = msgspec.json.Decoder(ExactEvent)


def is_exact(us: NDArray[Any]) -> bool:
    """Tell whether times in µs give their ns exactly."""
    return us.dtype.kind == "i" or (us.dtype.kind == "f" and bool(np.all(np.abs(us) < _EXACT_FLOAT_US)))


def to_ns(us: NDArray[Any]) -> Int64:
    """Return exact times in ns."""
    if us.dtype.kind == "i":
        return us.astype(np.int64) * 1000
    # Whole µs apart: us * 1000.0 rounds a second time, which between 2^42 µs and 2^52 ns costs a quarter of them 1 ns.
    whole = np.floor(us)
    return np.asarray(whole.astype(np.int64) * 1000 + np.rint((us - whole) * 1000.0).astype(np.int64))


def exact_ns(us: Decimal) -> int:
    """Return a time in ns, rounded where it has a fraction."""
    return int((us * 1000).to_integral_value())


def read_leniently(raw: msgspec.Raw, decoder: msgspec.json.Decoder[Any]) -> tuple[Event, ExactEvent] | None:
    """Read an event by itself, its numbers from texts where need be; None where it has no time or is no event."""
    with suppress(msgspec.ValidationError, UnicodeDecodeError):
        return decoder.decode(raw), _EXACT_EVENT.decode(raw)
    try:
        tree = json.loads(bytes(raw).decode(errors="replace"), parse_float=Decimal)
    except ValueError:
        return None
    if not isinstance(tree, dict):
        return None
    if tree.get("ph") != "X":
        return Event(), ExactEvent()
    start_us, dur_us = _number(tree.get("ts")), _number(tree.get("dur", 0))
    if start_us is None or dur_us is None:
        return None
    args = tree.get("args")
    ids = {key: _number(value) for key, value in args.items()} if isinstance(args, dict) else {}
    texts = {key: str(tree.get(key, "")) for key in ("ph", "cat", "name", "pid", "tid")}
    known = {key: int(value) for key, value in ids.items() if value is not None and abs(value) < 2**63}
    if abs(start_us) > _MAX_START_US or abs(dur_us) > _MAX_LENGTH_US:
        return None
    event = Event(**texts, ts=float(start_us), dur=float(dur_us), args=msgspec.convert(known, EventArgs))
    return event, ExactEvent(ph=event.ph, cat=event.cat, ts=start_us, dur=dur_us)


def _number(value: object) -> Decimal | None:
    """Read a number, also one written as a text; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | Decimal | str):
        return None
    try:
        number = Decimal(value)
    except InvalidOperation:
        return None
    return number if number.is_finite() else None
