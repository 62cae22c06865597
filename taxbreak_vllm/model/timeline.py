"""A step instant by instant, as the page draws it."""

from dataclasses import dataclass
from enum import IntEnum

import msgspec


class DeviceClass(IntEnum):
    """Whose an instant of the device is; a higher class wins."""

    EDGE = 0
    QUEUE = 1
    HOST = 2
    BLOCKED = 3
    OTHER_ACTIVE = 4
    ACTIVE = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """Segments by start: `kind[i]` indexes `kinds`, `name[i]` the timeline's `names` (-1: none)."""

    title: str
    kinds: tuple[str, ...]
    start_ns: tuple[int, ...]
    length_ns: tuple[int, ...]
    kind: tuple[int, ...]
    name: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTimeline:
    """One step. `window_ns` is its length on the host, `device_window_ns` reaches to the end of its last activity.

    `drawn_ns` is less where a lane had more than `max_segments`: what comes after it is left out.
    """

    step: str
    device_type: str
    window_ns: int
    device_window_ns: int
    drawn_ns: int
    lanes: tuple[Lane, ...]
    names: tuple[str, ...]

    def to_json(self) -> bytes:
        """Encode as one JSON object."""
        return msgspec.json.encode(self)
