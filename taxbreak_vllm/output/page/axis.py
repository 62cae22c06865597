"""An axis of a chart: values in, where each stands in percent of the axis out, and where its ticks are."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

_MAX_TICKS = 6
_LOG_FROM = 20.0  # how many times as large as the least the greatest is where powers of ten are told apart better


@dataclass(frozen=True, slots=True)
class Axis:
    """From `low` to `high`, both shown; logarithmic where `is_log`."""

    low: float
    high: float
    is_log: bool
    ticks: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float], *, from_zero: bool = False) -> "Axis":
        """Choose one that shows all values, of which there is at least one; none is below 0."""
        least, most = min(values), max(values)
        if not from_zero and least > 0 and most / least > _LOG_FROM:
            low, high = math.floor(math.log10(least)), math.ceil(math.log10(most))
            every = [factor * 10.0**power for power in range(low, high + 1) for factor in (1, 3)]
            ticks = [tick for tick in every if least / 3 < tick <= most * 3]
            return cls(min(least, ticks[0]), max(most, ticks[-1]), True, tuple(ticks[:: -(-len(ticks) // _MAX_TICKS)]))
        low_at = 0.0 if from_zero else max(0.0, least - 0.15 * (most - least or least))
        step = _nice((most - low_at or 1.0) / (_MAX_TICKS - 1))
        first = math.floor(low_at / step)
        last = max(first + 1, math.ceil(most / step))
        ticks = [step * place for place in range(first, last + 1)]
        return cls(ticks[0], ticks[-1], False, tuple(ticks))

    def place(self, value: float) -> float:
        """Return where a value stands, in percent from the low end."""
        if self.is_log:
            return 100 * math.log(value / self.low) / math.log(self.high / self.low)
        return 100 * (value - self.low) / (self.high - self.low)


def _nice(step: float) -> float:
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * (1 - 1e-9))
