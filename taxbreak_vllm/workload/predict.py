"""What a server would make of other traffic or settings: its recording in, the answer out, or why there is none.

In order, and ended by the first that fails: every recorded step is batched alike; the recorded traffic, served again
with noise that is drawn, comes out as it was measured; so does its second half with what the first half cost. Then the
answer, as wide as its draws are apart and as the second half was off.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec
import numpy as np

from taxbreak_vllm.model.errors import WorkloadError
from taxbreak_vllm.model.workload import Bounds, Fits, FrontendFit, Latencies, Prediction, Validation
from taxbreak_vllm.stages.rows import Column
from taxbreak_vllm.traffic.rows import Int64
from taxbreak_vllm.workload.cost import Noise, StepCost, check_stalls, fit_cost
from taxbreak_vllm.workload.figures import errors_of, figures, latencies, measured_rows, simulated_rows
from taxbreak_vllm.workload.frontend import FrontendQueue, fit_frontend, is_closed_loop, request_rows
from taxbreak_vllm.workload.identity import check_identity
from taxbreak_vllm.workload.recording import Recorded
from taxbreak_vllm.workload.requests import Requests, recorded_requests
from taxbreak_vllm.workload.scheduler import VllmScheduler
from taxbreak_vllm.workload.simulate import Served, serve
from taxbreak_vllm.workload.steps import Steps, steps_of
from taxbreak_vllm.workload.task import Change

SEEDS = range(5)
TOLERANCE = {"tokens_per_s": 0.05, "tpot_mean": 0.10, "e2e_mean": 0.10, "ttft_mean": 0.20}
_MAX_BEYOND_RATIO = 0.01
_LEAST_BAND_RATIO = 0.01  # either way: runs of one server differ by as much

Traffic = Callable[[Requests], Requests]


@dataclass(frozen=True, slots=True)
class _Server:
    """What a recording holds of one engine, and what its steps and API servers cost."""

    recorded: Recorded
    steps: Steps
    cost: StepCost
    rows: Int64
    frontend: FrontendFit | None
    num_apis: int
    requests: Requests


def fit(recorded: Recorded, apis: Sequence[Recorded]) -> Fits:
    """Fit what steps and requests of a recording cost; raises WorkloadError where it cannot be told."""
    return Fits(
        engine=recorded.setup.source,
        vllm=recorded.setup.vllm,
        steps=fit_cost(steps_of(recorded)).fit,
        frontend=fit_frontend(request_rows(apis), recorded.turns),
    )


def predict(recorded: Recorded, apis: Sequence[Recorded], change: Change, traffic: Traffic, *, load: str) -> Prediction:
    """Answer; raises WorkloadError where a recording cannot be simulated at all."""
    answer = Prediction(
        engine=recorded.setup.source, vllm=recorded.setup.vllm, load=load, changes=change.said(), checks=()
    )
    identity = check_identity(recorded)
    passed = identity.is_identical
    said = f"{identity.num_same:,} of {identity.num_steps:,} recorded steps are batched alike"
    answer = _with(answer, Validation(name="identity", passed=passed, said=said))
    if not passed:
        return replace(answer, reason="vLLM's scheduler does not batch the recorded steps as they were")
    server = _server(recorded, apis)
    check_stalls(server.cost)
    if is_closed_loop(server.rows):
        raise WorkloadError(
            "the recorded clients wait for an answer before they ask again, and how long they think is not known: what "
            "they would ask of another server is not either"
        )
    measured = latencies(measured_rows(server.rows), slo=change.slo)
    answer = replace(answer, measured=measured)

    again = [_served(server, server.cost, server.requests, Change(), seed) for seed in SEEDS]
    answer, passed = _judged(answer, "reproduced", again, measured_rows(server.rows), since_ns=0)
    if not passed:
        return replace(answer, reason="the recorded traffic does not come out as it was measured")

    half = len(server.steps) // 2
    split_ns = float(server.steps.begin_ns[half])
    first = fit_cost(server.steps.between(0, half))
    later = [_served(server, first, server.requests, Change(), seed) for seed in SEEDS]
    rows = server.rows[server.rows[:, Column.ARRIVED] >= split_ns]
    answer, passed = _judged(answer, "half predicts half", later, measured_rows(rows), since_ns=split_ns)
    if not passed:
        return replace(answer, reason="what the first half of the recording cost does not tell its second half")

    return _answered(answer, server, traffic(server.requests), change)


def _server(recorded: Recorded, apis: Sequence[Recorded]) -> _Server:
    rows = request_rows(apis)
    if not len(rows):
        raise WorkloadError(
            "what requests took in the API servers was not recorded: run vLLM with VLLM_PLUGINS=taxbreak, and ask it"
        )
    steps = steps_of(recorded)
    return _Server(
        recorded,
        steps,
        fit_cost(steps),
        rows,
        fit_frontend(rows, recorded.turns),
        len(apis),
        recorded_requests(recorded.rows),
    )


def _answered(answer: Prediction, server: _Server, requests: Requests, change: Change) -> Prediction:
    runs = [_served(server, server.cost, requests, change, seed) for seed in SEEDS]
    all_runs = [run for each in runs for run in each]
    num_steps = sum(run.num_steps for run in all_runs)
    beyond = np.sum([run.num_beyond for run in all_runs], axis=0) / max(1, num_steps)
    for name, share, seen in zip(server.cost.fit.seen, beyond.tolist(), server.cost.seen[1].tolist(), strict=True):
        if share > _MAX_BEYOND_RATIO:
            return replace(
                answer,
                reason=f"{share:.1%} of the steps are of more {name.replace('num_', '').replace('_', ' ')} than the "
                f"{seen:,} at most that were recorded: what they cost is not known",
            )
    found = [_latencies(each, slo=change.slo) for each in runs]
    middle = _middle(found)
    band = {}
    for name in figures(middle):
        values = [figures(each)[name] for each in found]
        off = max(_LEAST_BAND_RATIO, *(abs(check.error_ratio.get(name, 0.0)) for check in answer.checks))
        band[name] = (min(values) / (1 + off), max(values) * (1 + off))
    return replace(answer, predicted=middle, band=band, bounds=_bounds(runs[0]), notes=_notes(server, change))


def _served(server: _Server, cost: StepCost, requests: Requests, change: Change, seed: int) -> list[Served]:
    """Serve requests on each replica; they take turns."""
    setup = server.recorded.setup
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
                host=change.host,
                device=change.device,
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


def _judged(
    answer: Prediction, name: str, runs: Sequence[list[Served]], measured: Mapping[str, np.ndarray], *, since_ns: float
) -> tuple[Prediction, bool]:
    told = _middle([_latencies(run, since_ns=since_ns) for run in runs])
    off = errors_of(told, latencies(measured))
    wrong = {figure: off[figure] for figure, most in TOLERANCE.items() if figure in off and abs(off[figure]) > most}
    said = ", ".join(f"{figure.replace('_', ' ')} {off[figure]:+.1%}" for figure in TOLERANCE if figure in off)
    return _with(answer, Validation(name=name, passed=not wrong, said=said, error_ratio=off)), not wrong


def _latencies(runs: Sequence[Served], *, since_ns: float = 0, slo: Mapping[str, float] | None = None) -> Latencies:
    return latencies(simulated_rows(runs, since_ns=since_ns), slo=slo)


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


def _bounds(runs: Sequence[Served]) -> Bounds:
    wall = max(1.0, max(run.end_ns for run in runs) - min(run.begin_ns for run in runs))
    frontend, host, device = (
        max(getattr(run, name) for run in runs) / wall for name in ("frontend_ns", "host_ns", "device_ns")
    )
    kv = max(run.kv_peak_ratio for run in runs)
    preempted = sum(run.num_preemptions for run in runs)
    times = simulated_rows(runs)
    shares = {"frontend": frontend, "host": host, "device": device}
    bound = "KV cache" if preempted else max(shares, key=lambda name: shares[name])
    if not preempted and host + device < 0.5 and frontend < 0.5:
        bound = "nothing: the server waits for requests"
    return Bounds(
        frontend_ratio=frontend,
        host_ratio=host,
        device_ratio=device,
        kv_peak_ratio=kv,
        num_preemptions=preempted,
        queue_ratio=float((times["first"] - times["at"]).sum() / max(1.0, (times["sent"] - times["at"]).sum())),
        bound=bound,
    )


def _notes(server: _Server, change: Change) -> tuple[str, ...]:
    notes = [f"steps of {len(server.steps):,} and {len(server.rows):,} requests were recorded"]
    if change.host != 1.0:
        notes.append(
            "--host is the engine's loop and the API servers; the host's part of a worker's step is in the device's"
        )
    if change.replicas > 1:
        notes.append("requests go to the replicas in turn")
    return tuple(notes)


def _with(answer: Prediction, check: Validation) -> Prediction:
    return replace(answer, checks=(*answer.checks, check))
