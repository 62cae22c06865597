"""How far an answer may be off: draws of it and what the checks were off in, a band of each figure out.

Draws differ in their noise and in what steps cost: by as much as a server's own steps are known. A band holds the mean
of the draws, and that mean less what each check was off; nine tenths of a normal distribution lie in what widens it: how
far the draws are apart, and by how much runs of servers were off besides (`make bench-workload-pairs`).
"""

from collections.abc import Sequence
from math import exp, hypot, log, log1p
from statistics import mean, stdev

from taxbreak_vllm.model.workload import Validation

NINE_TENTHS = 1.645  # standard deviations either way
KNOWN_STEPS = 0.005  # a step's parts are no better known than this share of them
BESIDES = {"mean": 0.01, "p50": 0.02, "p90": 0.02, "p99": 0.04}
THROUGHPUT_BESIDES = 0.003


def spread_of_steps(checks: Sequence[Validation]) -> float:
    """Return how well what steps cost is known, as a share of it: by TPOT in the checks, which is steps alone."""
    return max(KNOWN_STEPS, *(abs(check.error_ratio.get("tpot_mean", 0.0)) for check in checks))


def band_of(name: str, draws: Sequence[float], checks: Sequence[Validation]) -> tuple[float, float]:
    """Return between what a figure lies, from draws of it."""
    if len(draws) < 2 or min(draws) <= 0:
        return min(draws), max(draws)
    logs = [log(value) for value in draws]
    besides = BESIDES.get(name.rpartition("_")[2], THROUGHPUT_BESIDES)
    wide = NINE_TENTHS * hypot(stdev(logs), besides)
    off = [log1p(error) for check in checks if (error := check.error_ratio.get(name)) is not None and error > -1]
    return exp(mean(logs) - max(0.0, *off, 0.0) - wide), exp(mean(logs) - min(0.0, *off, 0.0) + wide)


def of_steps(seed: int, num: int, spread: float) -> float:
    """Return how many times as long steps take in one of `num` draws: evenly over what is likely."""
    place = (seed + 0.5) / num - 0.5
    return 1 + 2 * spread * place * NINE_TENTHS

