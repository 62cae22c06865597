"""What copying a spool to an archive came to; `taxbreak.archived/1`."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Archived:
    """The objects that are in the archive now and were not known to be, and `left` captures that are not.

    `reason` says why some are left, or rows of tables are; "" where all of it is there.
    `unreadable` captures are not whole and never will be there. `steps_left` wait for their analysis: of them there is
    no row yet.
    """

    url: str
    objects: int
    num_bytes: int
    left: int = 0
    unreadable: int = 0
    steps_left: int = 0
    reason: str = ""
    schema: str = "taxbreak.archived/1"
