"""What a step costs: recorded steps in, a model of each part of their time out, with the noise about it.

Each part is linear in a step's work (one, prompt tokens, requests in their prompt, requests that generate, Σ context)
by least absolute deviations, no coefficient below 0, apart for each graph mode: stalls do not bend it. In prompt tokens
and in requests that generate the line may turn where quarters of the steps end, so that what grows slower or faster
than these is followed. About it there is noise, drawn in runs of neighbouring steps as it comes in runs, and there are
stalls, a process in time of their own.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from taxbreak_vllm.model.errors import WorkloadError
from taxbreak_vllm.model.workload import CostTerm, Fit, Stalls
from taxbreak_vllm.workload.steps import PARTS, Steps

Float64 = npt.NDArray[np.float64]
Parts = Sequence[float]  # before, device, after
_AS_TOLD, _NONE = (1.0, 1.0, 1.0), (0.0, 0.0, 0.0)

WORK = ("prompt_tokens", "num_prefills", "num_decodes", "context")
MIN_STEPS = 200
_TURNS = {0: (0.25, 0.5, 0.75, 0.95), 2: (0.25, 0.5, 0.75, 0.95)}  # by place in WORK, shares of the steps that have any
_MIN_BETWEEN = 40  # steps between two turns of a line
MAX_STALL_RATIO = 0.10
_ROUNDS = 60
_LEAST_NS = 1e3
_STALL_NS = 10**6  # a step that took twice what it should and this much more has stalled
_NUM_PARTS = 8  # of a recording, by which its drift is told
_RUN = 8  # neighbouring steps whose noise is drawn together


def least_absolute_deviations(x: Float64, y: Float64) -> Float64:
    """Return coefficients (columns,), none below 0, of x (rows, columns) that are nearest to y (rows,) in Σ|y − x·β|.

    By reweighted least squares; a column whose coefficient comes out below 0 is left out.
    """
    scale = np.maximum(np.abs(x).max(axis=0), 1e-12)
    x = x / scale
    beta = _nonnegative(x.T @ x, x.T @ y)
    for _ in range(_ROUNDS):
        weighted = x / np.maximum(np.abs(y - x @ beta), _LEAST_NS)[:, None]
        new = _nonnegative(weighted.T @ x, weighted.T @ y)
        if np.abs(new - beta).max() <= 1e-6 * max(1.0, np.abs(beta).max()):
            break
        beta = new
    found: Float64 = new / scale
    return found


def _nonnegative(products: Float64, with_y: Float64) -> Float64:
    """Solve the normal equations, without columns whose coefficient would be below 0."""
    kept = list(range(len(with_y)))
    beta = np.zeros(len(with_y))
    while kept:
        solved = np.linalg.lstsq(products[np.ix_(kept, kept)], with_y[kept], rcond=None)[0]
        if solved.min() >= 0:
            beta[kept] = solved
            return beta
        del kept[int(solved.argmin())]
    return beta


@dataclass(frozen=True, slots=True)
class StepCost:
    """A model of one engine's steps.

    `beta_ns` by graph mode, (3, columns) each: of a step, then of each kind of work one for each stretch between its
    `knots`, ns for one more there. `seen` are bounds of the work, (2, 4).
    """

    beta_ns: Mapping[str, Sequence[Sequence[float]]]
    seen: npt.NDArray[np.int64]
    noise: Mapping[bool, Sequence[Parts]]  # of steps with prompts or without: how many times as long each part took
    stalls: Sequence[tuple[float, Parts]]  # ns of busy time before each, and by how much longer each part took, ns
    fit: Fit
    knots: Sequence[Sequence[int]] = ((), (), (), ())
    _decodes: dict[tuple[str, int], list[float]] = field(default_factory=dict)  # what was asked before, but for context

    def parts_ns(self, mode: str, prompt_tokens: int, num_prefills: int, num_decodes: int, context: int) -> list[float]:
        """Return what the parts of a step take, noise aside."""
        if mode not in self.beta_ns:
            mode = next(iter(self.beta_ns))
        if num_prefills:
            parts = self._without_context(mode, (prompt_tokens, num_prefills, num_decodes))
        else:
            known = self._decodes.get((mode, num_decodes))
            if known is None:
                known = self._decodes[mode, num_decodes] = self._without_context(mode, (0, 0, num_decodes))
            parts = known
        return [part + row[-1] * context for part, row in zip(parts, self.beta_ns[mode], strict=True)]

    def _without_context(self, mode: str, work: Sequence[int]) -> list[float]:
        x = [1.0]
        for value, knots in zip(work, self.knots, strict=False):
            x += [max(0, min(value, high) - low) for low, high in zip((0, *knots), (*knots, value), strict=True)]
        return [sum(b * of for b, of in zip(row, x, strict=False)) for row in self.beta_ns[mode]]


def fit_cost(steps: Steps) -> StepCost:
    """Fit a model; raises WorkloadError for too few steps, or where stalls take too much of the time."""
    if len(steps) < MIN_STEPS:
        raise WorkloadError(f"{len(steps)} recorded steps are too few to tell what one costs; {MIN_STEPS} are needed")
    knots = [_knots(steps.work[:, place], _TURNS.get(place, ())) for place in range(len(WORK))]
    names = ["step", *(name for place, name in enumerate(WORK) for name in _named(name, knots[place]))]
    ramps = [_ramps(steps.work[:, place], knots[place]) for place in range(len(WORK))]
    x = np.column_stack([np.ones(len(steps)), *ramps]).astype(np.float64)
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
    expected, parts = expected[is_fitted], steps.parts_ns[is_fitted].astype(np.float64)
    whole, took = expected.sum(axis=1), parts.sum(axis=1)
    excess = took - whole
    is_stall = excess > whole + _STALL_NS
    ratio = np.divide(parts, expected, out=np.ones_like(parts), where=expected > 0)
    is_prefill = steps.work[is_fitted, 1] > 0
    plain = {kind: ratio[(is_prefill == kind) & ~is_stall].tolist() for kind in (False, True)}
    plain = {kind: values or plain[not kind] for kind, values in plain.items()}
    busy = np.cumsum(whole)
    at = busy[is_stall]
    gaps = np.diff(at, prepend=at[-1:] - busy[-1:])  # from the last on round to the first: as many in as long a time
    stall_ratio = float(excess[is_stall].sum() / took.sum())
    drift = np.std([np.log(part.mean()) for part in np.array_split((took / whole)[~is_stall], _NUM_PARTS)], ddof=1)
    fit = Fit(
        num_steps=len(steps),
        terms=tuple(
            CostTerm(part=part, graph_mode=mode, coefficients_ns=dict(zip(names, row, strict=True)))
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
        drift_ratio=float(drift),
    )
    return StepCost(
        beta_ns=beta_ns,
        knots=knots,
        seen=np.stack(_bounds(steps)),
        noise=plain,
        stalls=list(zip(gaps.tolist(), np.maximum(parts - expected, 0)[is_stall].tolist(), strict=True)),
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


def check_delay(cost: StepCost, added_ns: float, *, times: float = 1.0) -> None:
    """Raise WorkloadError where more is to be taken off the engine's loop than it takes."""
    before, _, after = cost.parts_ns(next(iter(cost.beta_ns)), 0, 0, 1, 0)
    loop_ns = times * (before + after)
    if -added_ns > loop_ns:
        raise WorkloadError(
            f"--host={added_ns / 1e6:+g}ms: of a step of one request the engine's loop takes {loop_ns / 1e6:.3f} ms, "
            "more cannot be taken off"
        )


class Noise:
    """Draws what steps take, about what the model says."""

    def __init__(self, cost: StepCost, seed: int) -> None:
        self._cost = cost
        self._draw = random.Random(seed)
        self._runs: dict[bool, list[Parts]] = {False: [], True: []}
        self._stalls: list[tuple[float, Parts]] = []
        self._size: Parts = _NONE
        self._to_stall_ns = self._first_gap()

    def factors(self, is_prefill: bool) -> Parts:
        """Return how many times as long as the model says each part of the next step takes."""
        run = self._runs[is_prefill]
        if not run:
            values = self._cost.noise[is_prefill]
            if not values:
                return _AS_TOLD
            begin = self._draw.randrange(max(1, len(values) - _RUN + 1))
            run.extend(values[begin : begin + _RUN])
        return run.pop()

    def stall_ns(self, busy_ns: float) -> Parts:
        """Return by how much longer each part takes where the engine stalls within so much work."""
        self._to_stall_ns -= busy_ns
        if self._to_stall_ns > 0 or not self._cost.stalls:
            return _NONE
        stalled = [0.0, 0.0, 0.0]
        while self._to_stall_ns <= 0:
            stalled = [ns + more for ns, more in zip(stalled, self._size, strict=True)]
            self._to_stall_ns += max(1.0, self._next_gap())
        return stalled

    def _first_gap(self) -> float:
        """Begin anywhere in the recorded time: within a long gap more likely than within a short one."""
        gaps = [gap for gap, _ in self._cost.stalls]
        if not gaps:
            return float("inf")
        (begin,) = self._draw.choices(range(len(gaps)), gaps)
        self._take_stalls(begin)
        return self._draw.random() * self._next_gap()

    def _next_gap(self) -> float:
        if not self._stalls:
            self._take_stalls(self._draw.randrange(len(self._cost.stalls)))
        gap, self._size = self._stalls.pop(0)
        return gap

    def _take_stalls(self, begin: int) -> None:
        stalls = self._cost.stalls
        self._stalls = [stalls[(begin + place) % len(stalls)] for place in range(min(_RUN, len(stalls)))]


def _bounds(steps: Steps) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    return steps.work.min(axis=0), steps.work.max(axis=0)


def _knots(values: npt.NDArray[np.int64], shares: Sequence[float]) -> list[int]:
    """Return where a line may turn: at these shares of the steps that have any, but never with few steps between."""
    values = np.sort(values[values > 0])
    found: list[int] = []
    begin = 0
    for share in shares if len(values) else ():
        knot = int(np.quantile(values, share))
        end = int(np.searchsorted(values, knot, side="right"))
        if end - begin >= _MIN_BETWEEN and len(values) - end >= _MIN_BETWEEN:
            found.append(knot)
            begin = end
    return found


def _ramps(values: npt.NDArray[np.int64], knots: Sequence[int]) -> Float64:
    """Return how far values go within each stretch between knots (values, stretches)."""
    edges = np.array([0, *knots])
    lengths = np.diff(edges, append=np.iinfo(np.int64).max)
    found: Float64 = np.clip(values[:, None] - edges, 0, lengths).astype(np.float64)
    return found


def _named(name: str, knots: Sequence[int]) -> list[str]:
    return [name, *(f"{name}>{knot}" for knot in knots)]
