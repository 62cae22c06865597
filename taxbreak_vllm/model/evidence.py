"""What a breakdown stands on: how much of the truth a recording holds, and which figures it is not enough for."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

# Advice names one change as the best, so it needs more.
MIN_LINKED_RATIO = 0.95  # of the kernels
MAX_UNREADABLE_RATIO = 0.01  # of the events


class Figure(StrEnum):
    """What is withheld where too much is missing: a group of figures that one loss makes wrong together.

    `causes` are the parts of idle time and the exposed tax.
    """

    HDBI = "hdbi"
    TAXES = "taxes"
    IDLE = "idle"
    CAUSES = "causes"


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Counts of what was lost, set aside or not understood, and for each figure withheld the reason in one sentence.

    Of a step or a trace: `launches` left an activity, `unanswered` ones none, and of those `lost_graphs` replayed a
    graph; `unlinked` of the `kernels` have no launch; `missing_nodes` are nodes that other replays of the same graph
    have, in `poor_replays` of them; `misplaced` activities cannot have been when they say: they begin before their own
    launch or, in a live recording, contradict their stream or a wait for the device.

    Of a live recording only: `lost_copies` left no activity; of launches and copies without one `missing_head` came
    before the first with one; for `unexplained_ns` the device stood idle with work launched and nothing recorded that
    this waited for; `doubtful_ns` of the iteration may have been otherwise, for all of that.

    Of a trace only: `out_of_range` records lie far from all others in time and were set aside, `clipped` ones ran over
    what came after them on their stream and were cut there, `set_aside` names some of both; `outside_steps` launches
    lie in no step, `folded_steps` ran beside another on a second thread and count as part of that; `processes` launched
    work; `overhead_ns` is what the profiler recorded of its own work; `unread` counts events by a category that is not
    understood.
    """

    launches: int = 0
    unanswered: int = 0
    lost_graphs: int = 0
    kernels: int = 0
    unlinked: int = 0
    poor_replays: int = 0
    missing_nodes: int = 0
    lost_copies: int = 0
    missing_head: int = 0
    misplaced: int = 0
    unexplained_ns: int = 0
    doubtful_ns: int = 0
    out_of_range: int = 0
    clipped: int = 0
    set_aside: tuple[str, ...] = ()
    outside_steps: int = 0
    folded_steps: int = 0
    processes: int = 0
    overhead_ns: int = 0
    unread: Mapping[str, int] = field(default_factory=dict)
    withheld: Mapping[Figure, str] = field(default_factory=dict)
