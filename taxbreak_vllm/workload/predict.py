"""What a server would make of other traffic or settings: its recording in, answers out, or why there are none.

A recording is checked once, in this order and up to what fails: every recorded step is batched alike; the recorded
traffic, served again with noise that is drawn, comes out as it was measured; so does its second half with what the
first half cost. Then the answers, each as wide as its draws are apart and as the second half was off.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import msgspec
import numpy as np

from taxbreak_vllm.model.errors import WorkloadError
from taxbreak_vllm.model.workload import Bounds, Fits, FrontendFit, Latencies, Prediction, Validation
from taxbreak_vllm.stages.rows import Column
from taxbreak_vllm.traffic.rows import Added, Int64, Setup
from taxbreak_vllm.workload.bands import band_of, of_steps, spread_of_steps
from taxbreak_vllm.workload.changes import check_together
from taxbreak_vllm.workload.cost import Noise, StepCost, check_delay, check_stalls, fit_cost
from taxbreak_vllm.workload.figures import errors_of, figures, latencies, measured_rows, simulated_rows
from taxbreak_vllm.workload.frontend import FrontendQueue, busiest, fit_frontend, is_closed_loop, request_rows
from taxbreak_vllm.workload.identity import check_identity
from taxbreak_vllm.workload.pairing import paired
from taxbreak_vllm.workload.recording import Recorded
from taxbreak_vllm.workload.requests import Requests, recorded_requests
from taxbreak_vllm.workload.scheduler import VllmScheduler
from taxbreak_vllm.workload.simulate import Served, serve
from taxbreak_vllm.workload.steps import Steps, steps_of
from taxbreak_vllm.workload.task import DECODE, PREFILL, Change
from taxbreak_vllm.workload.times import Times, drawn, worker_times

SEEDS = range(5)
TOLERANCE = {"tokens_per_s": 0.05, "tpot_mean": 0.10, "e2e_mean": 0.10, "ttft_mean": 0.20}
_MAX_BEYOND_RATIO = 0.01


@dataclass(frozen=True, slots=True)
class _Server:
    """What a recording holds of one engine, and what its steps and API servers cost.

    `rows` (requests, columns of `stages.rows.Column`) are what API servers kept of requests that the engine kept too.
    """

    setup: Setup
    steps: Steps
    cost: StepCost
    rows: Int64
    frontend: FrontendFit | None
    num_apis: int
    requests: Requests


@dataclass(frozen=True, slots=True)
class Checked:
    """A recording and what was checked of it: any number of answers are made from it, in any process.

    `reason` says why there are none; `server` is None where its steps are not batched alike.
    """

    engine: str
    vllm: str
    checks: tuple[Validation, ...]
    server: _Server | None = None
    reason: str | None = None

    @property
    def requests(self) -> Requests:
        """The recorded requests."""
        return Requests.of(()) if self.server is None else self.server.requests


def fit(recorded: Recorded, apis: Sequence[Recorded]) -> Fits:
    """Fit what steps and requests of a recording cost; raises WorkloadError where it cannot be told."""
    return Fits(
        engine=recorded.setup.source,
        vllm=recorded.setup.vllm,
        steps=fit_cost(steps_of(recorded)).fit,
        frontend=fit_frontend(busiest(apis), recorded.turns),
    )


def check(recorded: Recorded, apis: Sequence[Recorded]) -> Checked:
    """Check a recording, up to what fails; raises WorkloadError where it cannot be simulated at all."""
    identity = check_identity(recorded)
    said = f"{identity.num_same:,} of {identity.num_steps:,} recorded steps are batched alike"
    alike = Validation(name="identity", passed=identity.is_identical, said=said)
    checked = Checked(recorded.setup.source, recorded.setup.vllm, (alike,))
    if not alike.passed:
        return replace(checked, reason="vLLM's scheduler does not batch the recorded steps as they were")
    server = _server(recorded, apis)
    check_stalls(server.cost)
    if is_closed_loop(server.rows):
        raise WorkloadError(
            "the recorded clients wait for an answer before they ask again, and how long they think is not known: what "
            "they would ask of another server is not either"
        )
    again = _drawn(server, server.cost, server.requests, Change())
    reproduced = _judged("reproduced", again, server.rows)
    checked = replace(checked, server=server, checks=(*checked.checks, reproduced))
    if not reproduced.passed:
        return replace(checked, reason="the recorded traffic does not come out as it was measured")

    half = len(server.steps) // 2
    split_ns = float(server.steps.begin_ns[half])
    later = _drawn(server, fit_cost(server.steps.between(0, half)), server.requests, Change())
    predicted = _judged("half predicts half", later, server.rows[server.rows[:, Column.ARRIVED] >= split_ns])
    checked = replace(checked, checks=(*checked.checks, predicted))
    if not predicted.passed:
        return replace(checked, reason="what the first half of the recording cost does not tell its second half")
    return checked


def answer(checked: Checked, change: Change, requests: Requests, *, load: str) -> Prediction:
    """Predict what becomes of requests, which `load` names, under a change.

    Raises WorkloadError where that cannot be simulated.
    """
    server = checked.server
    found = Prediction(
        engine=checked.engine,
        vllm=checked.vllm,
        load=load,
        changes=change.said(),
        checks=checked.checks,
        measured=measured(checked, change.slo),
        reason=checked.reason,
    )
    return found if server is None or checked.reason is not None else _answered(found, server, requests, change)


def measured(checked: Checked, slo: Mapping[str, float]) -> Latencies | None:
    """Return what the recorded requests saw."""
    return None if checked.server is None else latencies(measured_rows(checked.server.rows), slo=slo)


def _server(recorded: Recorded, apis: Sequence[Recorded]) -> _Server:
    rows = request_rows(apis)
    if not len(rows):
        raise WorkloadError(
            "what requests took in the API servers was not recorded: run vLLM with VLLM_PLUGINS=taxbreak, and ask it"
        )
    place_of = paired((row for row in recorded.rows if isinstance(row, Added)), rows)
    arrived = rows[:, Column.ARRIVED].astype(np.float64)
    requests = recorded_requests(recorded.rows, {number: arrived[place] for number, place in place_of.items()})
    rows = rows[np.isin(arrived, requests.at_ns)]
    if not len(rows):
        raise WorkloadError("none of the requests that the API servers kept is one that the engine kept")
    steps = steps_of(recorded)
    return _Server(
        recorded.setup,
        steps,
        fit_cost(steps),
        rows,
        fit_frontend(busiest(apis), recorded.turns),
        len(apis),
        requests,
    )


def _answered(found: Prediction, server: _Server, requests: Requests, change: Change) -> Prediction:
    check_together(server.setup, change.settings)
    check_delay(server.cost, change.host_added_ns, times=change.host)
    spread, worker = spread_of_steps(found.checks, server.cost.fit.drift_ratio), worker_times(server.steps, change)
    runs = [
        _served(server, server.cost, requests, change, seed, worker, times=of_steps(seed, len(SEEDS), spread))
        for seed in SEEDS
    ]
    all_runs = [run for each in runs for run in each]
    num_steps = sum(run.num_steps for run in all_runs)
    beyond = np.sum([run.num_beyond for run in all_runs], axis=0) / max(1, num_steps)
    for name, share, seen in zip(server.cost.fit.seen, beyond.tolist(), server.cost.seen[1].tolist(), strict=True):
        if share > _MAX_BEYOND_RATIO:
            return replace(
                found,
                reason=f"{share:.1%} of the steps are of more {name.replace('num_', '').replace('_', ' ')} than the "
                f"{seen:,} at most that were recorded: what they cost is not known",
            )
    draws = [latencies(simulated_rows(each), slo=change.slo) for each in runs]
    middle = _middle(draws)
    flat = [figures(each) for each in draws]
    band = {name: band_of(name, [each[name] for each in flat], found.checks) for name in flat[0]}
    return replace(
        found,
        predicted=middle,
        band=band,
        bounds=_bounds(runs),
        notes=notes(server, change),
        worker_ratio={kind: None if each is None else each.middle for kind, each in worker.items()},
    )


def _drawn(server: _Server, cost: StepCost, requests: Requests, change: Change) -> Iterator[list[Served]]:
    """Serve requests with each seed."""
    return (_served(server, cost, requests, change, seed) for seed in SEEDS)


def _served(
    server: _Server,
    cost: StepCost,
    requests: Requests,
    change: Change,
    seed: int,
    worker: Mapping[str, Times | None] = MappingProxyType({}),
    *,
    times: float = 1.0,
) -> list[Served]:
    """Serve requests on each replica, which take turns.

    `worker` is what the worker's steps of a kind take times, `times` what all steps take besides.
    """
    device = [change.device * times * drawn(worker.get(kind), seed, len(SEEDS)) for kind in (DECODE, PREFILL)]
    setup = server.setup
    if change.num_blocks is not None:
        setup = msgspec.structs.replace(setup, num_blocks=change.num_blocks)
    depth = 2 if setup.scheduler.startswith("Async") else 1
    runs = []
    for replica in range(change.replicas):
        noise = Noise(cost, seed * change.replicas + replica)
        queues = [FrontendQueue(server.frontend, factor=change.host) for _ in range(server.num_apis)]
        runs.append(
            serve(
                requests[replica :: change.replicas],
                VllmScheduler(setup, changes=dict(change.settings)),
                cost,
                noise,
                queues,
                graph_mode_of=_graph_modes(server.steps),
                depth=depth,
                host=change.host * times,
                host_added_ns=change.host_added_ns,
                device=device,
            )
        )
    return runs


def _graph_modes(steps: Steps) -> Callable[[bool, int], str]:
    """Return the mode that most steps of a kind and size had."""
    counts: dict[tuple[bool, int], Counter[str]] = {}
    sizes = (steps.work[:, 0] + steps.work[:, 2]).tolist()
    for mode, num_prefills, size in zip(steps.graph_mode, steps.work[:, 1].tolist(), sizes, strict=True):
        counts.setdefault((num_prefills > 0, int(size).bit_length()), Counter())[mode] += 1
    usual = {kind: modes.most_common(1)[0][0] for kind, modes in counts.items()}
    other = Counter(steps.graph_mode).most_common(1)[0][0]
    return lambda is_prefill, size: usual.get((is_prefill, size.bit_length()), other)


def _judged(name: str, runs: Iterable[list[Served]], rows: Int64) -> Validation:
    """Hold runs against what was measured of these requests (requests, columns of `stages.rows.Column`)."""
    told = _middle([latencies(simulated_rows(run, came_ns=rows[:, Column.ARRIVED])) for run in runs])
    off = errors_of(told, latencies(measured_rows(rows)))
    wrong = [figure for figure, most in TOLERANCE.items() if figure in off and abs(off[figure]) > most]
    said = ", ".join(f"{figure.replace('_', ' ')} {off[figure]:+.1%}" for figure in TOLERANCE if figure in off)
    passed = bool(off) and not wrong
    return Validation(name=name, passed=passed, said=said or "no request to compare with", error_ratio=off)


def _middle(found: Sequence[Latencies]) -> Latencies:
    """Return the one whose throughput is in the middle, with the mean of each figure."""

    def mean(parts: Sequence[Mapping[str, float] | None]) -> dict[str, float] | None:
        known = [part for part in parts if part is not None]
        return {name: float(np.mean([part[name] for part in known])) for name in known[0]} if known else None

    ratios = [each.slo_ratio for each in found if each.slo_ratio is not None]
    return Latencies(
        num_requests=found[0].num_requests,
        tokens_per_s=float(np.mean([each.tokens_per_s for each in found])),
        ttft_s=mean([each.ttft_s for each in found]),
        tpot_s=mean([each.tpot_s for each in found]),
        e2e_s=mean([each.e2e_s for each in found]),
        slo_ratio=float(np.mean(ratios)) if ratios else None,
    )


def _bounds(draws: Sequence[Sequence[Served]]) -> Bounds:
    """Return what the first draw's server is busy with, and what requests' time goes to in all of them."""
    runs = draws[0]
    wall = max(1.0, max(run.end_ns for run in runs) - min(run.begin_ns for run in runs))
    busy = {name: max(getattr(run, name) for run in runs) / wall for name in ("frontend_ns", "host_ns", "device_ns")}
    shares = _e2e_shares([run for each in draws for run in each])
    return Bounds(
        frontend_ratio=busy["frontend_ns"],
        host_ratio=busy["host_ns"],
        device_ratio=busy["device_ns"],
        kv_peak_ratio=max(run.kv_peak_ratio for run in runs),
        num_preemptions=sum(run.num_preemptions for run in runs),
        e2e_ratio=shares,
        bound=max(shares, key=lambda name: shares[name]),
    )


def _e2e_shares(runs: Sequence[Served]) -> dict[str, float]:
    """Return what of the mean E2E goes to what; in sum 1, or all 0 without a request."""
    spent = {
        name: sum(getattr(run.spent, f"{name}_ns") for run in runs) for name in ("frontend", "kv", "host", "device")
    }
    times = simulated_rows(runs)
    whole = float((times["sent"] - times["at"]).sum())
    spent["queue"] = max(0.0, whole - sum(spent.values()))
    whole = max(1.0, sum(spent.values()))
    return {name: spent[name] / whole for name in ("frontend", "queue", "kv", "host", "device")}


def notes(server: _Server, change: Change) -> tuple[str, ...]:
    """Say what an answer stands on, and what it takes for granted."""
    found = [f"steps of {len(server.steps):,} and {len(server.rows):,} requests were recorded"]
    if change.host_added_ns:
        found.append("what is added to the host, or taken off, is of the engine's loop, once a step")
    if change.host != 1.0:
        found.append("--host is the engine's loop, the API servers, and of a worker's steps what whatif says of them")
    found += [
        f"what the host takes of a worker's {kind} steps is not known, and stays: {reason}"
        for kind, reason in change.worker.unknown.items()
    ]
    if change.replicas > 1:
        found.append("requests go to the replicas in turn")
    if change.replicas > 1 or change.settings or change.num_blocks is not None:
        found.append("a server that is started anew is taken to be as quick as this start of it was")
    return tuple(found)
