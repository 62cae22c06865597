"""How far a recording can be trusted to show the step it slowed down (methodology section 5)."""

from dataclasses import dataclass
from enum import StrEnum

GOOD = 1.1  # a share worth acting on is a tenth of the step: less than that is unexplained
USABLE = 2.0  # beyond it more than half of what was recorded, or of the plain step, is nowhere in the other

POOR = "calibration is poor: the recorded step is not the plain one"


class Grade(StrEnum):
    """How near the recorded step, the profiler's known cost taken off, comes to the plain one."""

    GOOD = "good"
    USABLE = "usable"
    POOR = "poor"


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Observer effect.

    `dilation` is the recorded step over the median plain one, `plain_ns`. Where that and the profiler's cost per op are
    known, the cost is taken off ΔFT and `state` is "calibrated"; `residual` is what the step then still takes beyond
    the plain one, as a share of it. `host` and `device` stay as recorded. `grade` follows from the residual of what is
    calibrated, None for the rest: good up to 1.1 times the plain step or down to 1/1.1, usable up to twice or half.
    """

    dilation: float | None = None
    op_cost_ns: int | None = None
    residual: float | None = None
    state: str = "uncalibrated"
    plain_ns: int | None = None
    grade: Grade | None = None

    def __post_init__(self) -> None:
        is_known = self.state == "calibrated" and bool(self.dilation) and self.residual is not None
        object.__setattr__(self, "grade", grade_of(self.residual or 0.0) if is_known else None)

    @property
    def notes(self) -> tuple[str, ...]:
        """Say what must be known of a recording that is not to be trusted."""
        return (f"{POOR}, so nothing is advised on it",) if self.grade is Grade.POOR else ()


def grade_of(residual: float) -> Grade:
    """Grade by what is unexplained, alike for a step that took too long and for one that was too quick."""
    off = 1 + residual
    if off <= 1 / USABLE or off >= USABLE:
        return Grade.POOR
    return Grade.GOOD if 1 / GOOD <= off <= GOOD else Grade.USABLE
