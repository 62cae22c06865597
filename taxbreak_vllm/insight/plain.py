"""What was measured in recorded steps, carried over to plain ones: bounds, what outweighs the profiler, intervals.

Recording lengthens the host's time and hardly the device's. So in the plain step (i) the device works as long as in the
recorded one, (ii) what it waits for the host is at most what it was seen to wait, and at most what its work leaves of
the plain step, and (iii) it is at least what it was seen to wait less all that the recording added. Where a recording
was quicker than the plain steps, what it lacks is added to (ii). All durations are integer ns.
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

from taxbreak_vllm.model.calibration import USABLE

WORTH_RATIO = 0.10  # a smaller share of the step is not worth a restart
# Of n steps all lie on one side of their median with a probability of 2^(1 - n): from six on less than 5 %.
MIN_STEPS = 6

_NUM_DRAWS = 400
_MAX_BLOCKS = 50  # neighbours are alike, so they are drawn together
_TAIL = 0.025


class Spent(Enum):
    """Whose time an amount is: the host's, which recording lengthens, or not (`TOKEN`: all there is, the next one's
    preparation included, which the tokens of a step share).
    """

    HOST = "host"
    DEVICE = "device"
    TOKEN = "token"


@dataclass(frozen=True, slots=True)
class PlainTime:
    """A step, or a sum of steps, without what the profiler added.

    `window_ns` is the device's window, `step_ns` the step itself, `active_ns` the device's work (0 where that is the
    host's own), `doubt_ns` what recording may have added to the host's time; negative where it took less than plain.
    """

    window_ns: int
    step_ns: int
    active_ns: int
    doubt_ns: int

    @classmethod
    def sum(cls, parts: Iterable["PlainTime"]) -> "PlainTime":
        """Add steps."""
        rows = [(part.window_ns, part.step_ns, part.active_ns, part.doubt_ns) for part in parts]
        return cls(*map(sum, zip(*rows, strict=True))) if rows else cls(0, 0, 0, 0)

    def at_most_ns(self, amount_ns: int, spent: Spent) -> int:
        """Bound what a change to this can win of the plain step, never more than that."""
        if spent is Spent.HOST:
            amount_ns = min(amount_ns + max(0, -self.doubt_ns), self.window_ns - self.active_ns)
        whole_ns = self.window_ns if spent is Spent.TOKEN else min(self.window_ns, self.step_ns)
        return max(0, min(amount_ns, whole_ns))

    def at_least_ns(self, amount_ns: int, spent: Spent) -> int:
        """Return how much of it there is even if all that the profiler added is in it."""
        return amount_ns - (max(0, self.doubt_ns) if spent is Spent.HOST else 0)

    def ratio(self, amount_ns: int) -> float:
        """Return an amount as a share of the plain step."""
        return amount_ns / self.window_ns if self.window_ns > 0 else 0.0

    def weighs(self, amount_ns: int, spent: Spent = Spent.HOST) -> bool:
        """Whether that much time is worth acting on even if all the profiler's time is in it."""
        return self.ratio(self.at_least_ns(amount_ns, spent)) >= WORTH_RATIO

    def weighs_from_ns(self, amount_ns: int) -> float:
        """Return how long the plain step must be, as a share of the recorded one, for an amount of host time to weigh.

        For steps whose plain duration is not known, so that nothing is taken off them here.
        """
        added_ns = (amount_ns - WORTH_RATIO * self.window_ns) / (1 - WORTH_RATIO)
        return 1 - added_ns / self.step_ns

    def is_small_from_ns(self, amount_ns: int) -> float:
        """Return the same for an amount to be too small to act on, whatever recording added."""
        return 1 - (self.window_ns - amount_ns / WORTH_RATIO) / self.step_ns

    def never_weighs(self, amount_ns: int) -> bool:
        """Whether an amount of host time is not worth acting on, however long the plain step is.

        Its share is largest where the plain step is no longer than it and the device's work, or as short as it may be.
        """
        shortest_ns = self.window_ns - self.step_ns * (1 - 1 / USABLE)
        return amount_ns < WORTH_RATIO * max(amount_ns + self.active_ns, shortest_ns)


def interval(parts: Sequence[PlainTime], amounts_ns: Sequence[int], spent: Spent) -> tuple[float, float] | None:
    """Return what holds the bound, as a share, with a probability of 95 %; None for fewer than `MIN_STEPS` steps.

    Steps are drawn again, with replacement, always in the same way (percentile bootstrap).
    """
    if len(parts) < MIN_STEPS:
        return None
    size = -(-len(parts) // _MAX_BLOCKS)
    starts = range(0, len(parts), size)
    blocks = [(PlainTime.sum(parts[at : at + size]), sum(amounts_ns[at : at + size])) for at in starts]
    draw = random.Random(0)
    ratios = []
    for _ in range(_NUM_DRAWS):
        drawn = draw.choices(blocks, k=len(blocks))
        whole = PlainTime.sum(part for part, _ in drawn)
        ratios.append(whole.ratio(whole.at_most_ns(sum(amount_ns for _, amount_ns in drawn), spent)))
    ratios.sort()
    cut = int(_TAIL * _NUM_DRAWS)
    return ratios[cut], ratios[-1 - cut]
