"""What a step costs: recorded steps in, a model of each part of their time out, with the noise about it.

Each part is linear in a step's work (one, prompt tokens, requests in their prompt, requests that generate, Σ context)
by least absolute deviations, no coefficient below 0, apart for each graph mode: stalls do not bend it. About it there
is noise, drawn in runs of neighbouring steps as it comes in runs, and there are stalls, a process in time of their own.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from taxbreak_vllm.model.errors import WorkloadError
from taxbreak_vllm.model.workload import CostTerm, Fit, Stalls
from taxbreak_vllm.workload.steps import PARTS, Steps

Float64 = npt.NDArray[np.float64]

WORK = ("prompt_tokens", "num_prefills", "num_decodes", "context")
MIN_STEPS = 200
MAX_STALL_RATIO = 0.05
_ROUNDS = 60
_LEAST_NS = 1e3
_STALL_NS = 10**6  # a step that took twice what it should and this much more has stalled
_RUN = 8  # neighbouring steps whose noise is drawn together


def least_absolute_deviations(x: Float64, y: Float64) -> Float64:
    """Return coefficients (columns,), none below 0, of x (rows, columns) that are nearest to y (rows,) in Σ|y − x·β|.

    By reweighted least squares; a column whose coefficient comes out below 0 is left out.
    """
    scale = np.maximum(np.abs(x).max(axis=0), 1e-12)
    x = x / scale
    beta = _nonnegative(x, y)
    for _ in range(_ROUNDS):
        weight = 1 / np.sqrt(np.maximum(np.abs(y - x @ beta), _LEAST_NS))
        new = _nonnegative(x * weight[:, None], y * weight)
        if np.abs(new - beta).max() <= 1e-6 * max(1.0, np.abs(beta).max()):
            break
        beta = new
    found: Float64 = new / scale
    return found


def _nonnegative(x: Float64, y: Float64) -> Float64:
    kept = list(range(x.shape[1]))
    beta = np.zeros(x.shape[1])
    while kept:
        solved = np.linalg.lstsq(x[:, kept], y, rcond=None)[0]
        if solved.min() >= 0:
            beta[kept] = solved
            return beta
        del kept[int(solved.argmin())]
    return beta


@dataclass(frozen=True, slots=True)
class StepCost:
    """A model of one engine's steps: `beta_ns` by graph mode, (3, 5) each; `seen` are bounds of the work, (2, 4)."""

    beta_ns: Mapping[str, Sequence[Sequence[float]]]
    seen: npt.NDArray[np.int64]
    noise: dict[bool, Sequence[float]]
    stalls: Sequence[tuple[float, float]]  # ns of busy time before each, and how long it was, ns
    fit: Fit

    def parts_ns(self, mode: str, prompt_tokens: int, num_prefills: int, num_decodes: int, context: int) -> list[float]:
        """Return what the parts of a step take, noise aside."""
        beta = self.beta_ns.get(mode)
        if beta is None:
            beta = next(iter(self.beta_ns.values()))
        return [b[0] + b[1] * prompt_tokens + b[2] * num_prefills + b[3] * num_decodes + b[4] * context for b in beta]


def fit_cost(steps: Steps) -> StepCost:
    """Fit a model; raises WorkloadError for too few steps, or where stalls take too much of the time."""
    if len(steps) < MIN_STEPS:
        raise WorkloadError(f"{len(steps)} recorded steps are too few to tell what one costs; {MIN_STEPS} are needed")
    x = np.column_stack([np.ones(len(steps)), steps.work]).astype(np.float64)
    modes = np.array(steps.graph_mode)
    beta_ns: dict[str, Sequence[Sequence[float]]] = {}
    expected = np.zeros_like(steps.parts_ns, dtype=np.float64)
    for mode in sorted(set(steps.graph_mode)):
        of = modes == mode
        if of.sum() < MIN_STEPS // 10:
            continue
        beta = np.stack([least_absolute_deviations(x[of], steps.parts_ns[of, place]) for place in range(len(PARTS))])
        beta_ns[mode], expected[of] = beta.tolist(), x[of] @ beta.T
    is_fitted = expected.sum(axis=1) > 0
    whole, took = expected.sum(axis=1)[is_fitted], steps.total_ns[is_fitted].astype(np.float64)
    excess = took - whole
    is_stall = excess > whole + _STALL_NS
    ratio = took / whole
    is_prefill = steps.work[is_fitted, 1] > 0
    plain = {kind: ratio[(is_prefill == kind) & ~is_stall].tolist() for kind in (False, True)}
    plain = {kind: values or plain[not kind] for kind, values in plain.items()}
    busy = np.cumsum(whole)
    at = busy[is_stall]
    gaps = np.diff(np.concatenate([[0.0], at]))
    stall_ratio = float(excess[is_stall].sum() / took.sum())
    fit = Fit(
        num_steps=len(steps),
        terms=tuple(
            CostTerm(part=part, graph_mode=mode, coefficients_ns=dict(zip(("step", *WORK), row, strict=True)))
            for mode, beta in beta_ns.items()
            for part, row in zip(PARTS, beta, strict=True)
        ),
        seen={name: (int(lo), int(hi)) for name, lo, hi in zip(WORK, *_bounds(steps), strict=True)},
        median_error_ratio=float(np.median(np.abs(excess) / took)),
        stalls=Stalls(
            num=int(is_stall.sum()),
            time_ratio=stall_ratio,
            median_ns=int(np.median(excess[is_stall])) if is_stall.any() else 0,
            max_ns=int(excess[is_stall].max()) if is_stall.any() else 0,
        ),
    )
    return StepCost(
        beta_ns=beta_ns,
        seen=np.stack(_bounds(steps)),
        noise=plain,
        stalls=list(zip(gaps.tolist(), excess[is_stall].tolist(), strict=True)),
        fit=fit,
    )


def check_stalls(cost: StepCost) -> None:
    """Raise WorkloadError where stalls take more of the time than can be told of other traffic."""
    stalls = cost.fit.stalls
    if stalls.time_ratio > MAX_STALL_RATIO:
        raise WorkloadError(
            f"stalls take {stalls.time_ratio:.1%} of the steps' time ({stalls.num:,}, {stalls.median_ns / 1e6:.1f} ms "
            f"in the middle), more than {MAX_STALL_RATIO:.0%}: what is predicted would be theirs; see "
            "taxbreak_runqueue_wait_ratio for a neighbour on the processor"
        )


class Noise:
    """Draws what steps take, about what the model says."""

    def __init__(self, cost: StepCost, seed: int) -> None:
        self._cost = cost
        self._draw = random.Random(seed)
        self._runs: dict[bool, list[float]] = {False: [], True: []}
        self._stalls: list[tuple[float, float]] = []
        self._to_stall_ns = self._next_gap()

    def factor(self, is_prefill: bool) -> float:
        """Return how many times as long as the model says the next step takes."""
        run = self._runs[is_prefill]
        if not run:
            values = self._cost.noise[is_prefill]
            if not values:
                return 1.0
            begin = self._draw.randrange(max(1, len(values) - _RUN + 1))
            run.extend(values[begin : begin + _RUN])
        return run.pop()

    def stall_ns(self, busy_ns: float) -> float:
        """Return how long the engine stalls within so much work."""
        self._to_stall_ns -= busy_ns
        stalled = 0.0
        while self._to_stall_ns <= 0 and self._cost.stalls:
            stalled += self._size
            self._to_stall_ns += max(1.0, self._next_gap())
        return stalled

    def _next_gap(self) -> float:
        if not self._cost.stalls:
            return float("inf")
        if not self._stalls:
            begin = self._draw.randrange(len(self._cost.stalls))
            self._stalls = list(self._cost.stalls[begin : begin + _RUN])
        gap, self._size = self._stalls.pop(0)
        return gap


def _bounds(steps: Steps) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    return steps.work.min(axis=0), steps.work.max(axis=0)
