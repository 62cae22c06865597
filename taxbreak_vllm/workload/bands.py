"""How far an answer may be off: draws of it and what the checks were off in, a band of each figure out.

Draws differ in their noise and in what steps cost, which is known as well as the checks met TPOT and as parts of the
recording agree. A band holds the mean of the draws, and that mean less what each check was off; nine tenths of a normal
distribution lie in what widens it: how far the draws are apart, and by how much servers were off besides
(`make bench-workload-pairs`).
"""

from collections.abc import Sequence
from math import exp, hypot, log, log1p
from statistics import mean, stdev

from taxbreak_vllm.model.workload import Validation

NINE_TENTHS = 1.645  # standard deviations either way
KNOWN_STEPS = 0.004  # a step's parts are no better known than this share of them
BESIDES = {"mean": 0.004, "p50": 0.008, "p90": 0.01, "p99": 0.02}
THROUGHPUT_BESIDES = 0.001


def spread_of_steps(checks: Sequence[Validation], drift_ratio: float) -> float:
    """Return how well what steps cost is known, as a share of it: the worse of two.

    One is TPOT in the checks, which is steps alone, the other `Fit.drift_ratio`.
    """
    return max([KNOWN_STEPS, drift_ratio, *(abs(check.error_ratio.get("tpot_mean", 0.0)) for check in checks)])


def band_of(name: str, draws: Sequence[float], checks: Sequence[Validation]) -> tuple[float, float]:
    """Return between what a figure lies, from draws of it."""
    if len(draws) < 2 or min(draws) <= 0:
        return min(draws), max(draws)
    logs = [log(value) for value in draws]
    besides = BESIDES.get(name.rpartition("_")[2], THROUGHPUT_BESIDES)
    wide = NINE_TENTHS * hypot(stdev(logs), besides)
    off = [log1p(error) for check in checks if (error := check.error_ratio.get(name)) is not None and error > -1]
    return exp(mean(logs) - max([0.0, *off]) - wide), exp(mean(logs) - min([0.0, *off]) + wide)


def of_steps(seed: int, num: int, spread: float) -> float:
    """Return how many times as long steps take in one of `num` draws: evenly over what is likely."""
    place = (seed + 0.5) / num - 0.5
    return 1 + 2 * spread * place * NINE_TENTHS
