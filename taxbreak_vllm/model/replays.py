"""What a route asks the process that replays recordings, and what that replies: one line of JSON each."""

from typing import Any

import msgspec


class Question(msgspec.Struct, frozen=True):
    """Captures, and a change in the words of `asked`; `timeline` has it drawn."""

    paths: list[str]
    change: dict[str, Any]
    timeline: bool = False


class Reply(msgspec.Struct, frozen=True):
    """What each capture says of a change, as JSON; else why it is no change, or why a capture is not read."""

    answers: list[msgspec.Raw] = []
    no_change: str | None = None
    unread: str | None = None
