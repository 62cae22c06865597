"""What a simulating process is asked, and how it says no."""

import msgspec


class Check(msgspec.Struct, frozen=True, tag="check"):
    """Schedule the traffic at a path again."""

    path: str


class Failure(msgspec.Struct, frozen=True):
    """Why a task was not done."""

    reason: str


Task = Check
