"""The gauges: of the window's recorded steps, and of what the servers that run now say of themselves."""

import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from prometheus_client.metrics_core import GaugeMetricFamily, InfoMetricFamily, Metric

from taxbreak_vllm.baselines.store import Baselines
from taxbreak_vllm.insight.transition import transitions
from taxbreak_vllm.model.baseline import FloorKind
from taxbreak_vllm.model.breakdown import hdbi, sum_or_none
from taxbreak_vllm.model.engine import EngineState, unexplained_ratio
from taxbreak_vllm.model.errors import BaselineError
from taxbreak_vllm.model.frontend import FrontendState
from taxbreak_vllm.model.server import PhaseBalance
from taxbreak_vllm.model.step import Phase
from taxbreak_vllm.model.transition import SizedStep, SizeUnit
from taxbreak_vllm.model.worker import WorkerState
from taxbreak_vllm.service.metrics.labels import (
    ENGINE_LABELS,
    NS_PER_S,
    SERVER_LABELS,
    STEP_LABELS,
    series_labels,
    server_labels,
)
from taxbreak_vllm.service.results.rows import Balance, Series
from taxbreak_vllm.service.results.sizes import SizedRow
from taxbreak_vllm.service.results.window import replay_shares
from taxbreak_vllm.taxes.server import server_hdbi


def window_gauges(
    balances: Iterable[Balance], dilations: Mapping[Series, list[float]], states: Iterable[WorkerState]
) -> Iterator[Metric]:
    """Yield balance, dilation and coverage of the steps of every server that runs."""
    balance = GaugeMetricFamily(
        "taxbreak_hdbi",
        "Device time over device and orchestration time of the window's sampled steps: 0 host-bound, 1 device-bound.",
        labels=STEP_LABELS,
    )
    dilation = GaugeMetricFamily(
        "taxbreak_profiler_dilation_ratio",
        "Recorded over plain duration of a step, median of the window's sampled steps.",
        labels=STEP_LABELS,
        unit="ratio",
    )
    coverage = GaugeMetricFamily(
        "taxbreak_replay_coverage_ratio",
        "Share of the window's orchestration time that rests on each tier of baseline.",
        labels=(*STEP_LABELS, "tier"),
        unit="ratio",
    )
    running = {server_labels(state) for state in states}
    by_series: dict[Series, list[Balance]] = defaultdict(list)
    for row in balances:
        by_series[row.series].append(row)
    for series, rows in by_series.items():
        labels = series_labels(series)
        if labels[:3] not in running:
            continue
        value = hdbi(sum(row.active_ns or 0 for row in rows), sum_or_none(row.orchestration_ns for row in rows))
        if value is not None:
            balance.add_metric(labels, value)
        if series in dilations:
            dilation.add_metric(labels, statistics.median(dilations[series]))
        tier_sums = map(sum_or_none, zip(*(row.tier_sums for row in rows), strict=True))
        for tier, share in replay_shares(tier_sums).items():
            coverage.add_metric((*labels, tier), share)
    yield from (balance, dilation, coverage)


def turning_points(rows: Iterable[SizedRow], states: Iterable[WorkerState]) -> Iterator[Metric]:
    """Yield from which size of batch on the device decides, of the window's steps of every worker that runs."""
    families = {
        SizeUnit.REQUESTS: GaugeMetricFamily(
            "taxbreak_transition_requests",
            "Requests in a step from which on the device, not the host, decides how long it takes.",
            labels=STEP_LABELS,
        ),
        SizeUnit.PROMPT_TOKENS: GaugeMetricFamily(
            "taxbreak_transition_prompt_tokens",
            "The same in prompt tokens, of steps that work on prompts.",
            labels=STEP_LABELS,
        ),
    }
    running = {(state.server.server_id, *server_labels(state)) for state in states}
    by_series: dict[Series, list[SizedStep]] = defaultdict(list)
    for row in rows:
        if (row.server_id, *series_labels(row.series)[:3]) in running:
            by_series[row.series].append(row.step)
    for series, steps in by_series.items():
        for found in transitions(steps):
            if found.between is not None:
                families[found.unit].add_metric(series_labels(series), found.between[1])
    yield from families.values()


def overhead(states: Iterable[WorkerState]) -> Metric:
    """Return what recording costs each server."""
    family = GaugeMetricFamily(
        "taxbreak_capture_overhead_ratio",
        "Share of serving time that recording has taken since the server started.",
        labels=SERVER_LABELS,
        unit="ratio",
    )
    spent: dict[tuple[str, ...], list[WorkerState]] = defaultdict(list)
    for state in states:
        if state.serving_ns:
            spent[server_labels(state)].append(state)
    for labels, members in spent.items():
        serving_ns = sum(state.serving_ns for state in members)
        family.add_metric(labels, sum(state.overhead_ns for state in members) / serving_ns)
    return family


def unexplained(engines: Iterable[EngineState]) -> Metric:
    """Return what of its iterations no part of an engine's loop explains, times without work aside."""
    family = GaugeMetricFamily(
        "taxbreak_server_unexplained_ratio",
        "Share of the engine's iterations that no part of its loop explains, since its start.",
        labels=ENGINE_LABELS,
        unit="ratio",
    )
    worst: dict[tuple[str, str], float] = {}
    for state in engines:
        if (ratio := unexplained_ratio(state)) is not None:
            labels = (state.model_name, state.engine)
            worst[labels] = max(ratio, worst.get(labels, ratio))
    for labels, ratio in worst.items():
        family.add_metric(labels, ratio)
    return family


def server_balance(balances: Iterable[Balance], engines: Iterable[EngineState]) -> Metric:
    """Return the balance of each phase that also holds what the device waits for between steps."""
    family = GaugeMetricFamily(
        "taxbreak_hdbi_server",
        "As taxbreak_hdbi, with the exposed time of engine, messages and API server in the orchestration.",
        labels=(*ENGINE_LABELS, "phase"),
    )
    recorded: dict[tuple[str, str], dict[Phase, PhaseBalance]] = defaultdict(dict)
    for row in balances:
        of_engine, phase = recorded[row.series.model_name, row.series.engine], Phase(row.series.phase)
        before = of_engine.get(phase, PhaseBalance(num_steps=0, active_ns=0, orchestration_ns=0))
        of_engine[phase] = PhaseBalance(
            num_steps=before.num_steps + row.num_balanced,
            active_ns=before.active_ns + (row.active_ns or 0),
            orchestration_ns=before.orchestration_ns + (row.orchestration_ns or 0),
        )
    by_labels: dict[tuple[str, str], list[EngineState]] = defaultdict(list)
    for state in engines:
        by_labels[state.model_name, state.engine].append(state)
    for labels, states in by_labels.items():
        for phase, value in server_hdbi(recorded[labels], states).phases.items():
            if value is not None:
                family.add_metric((*labels, phase), value)
    return family


def runqueue_waits(
    engines: Iterable[EngineState], workers: Iterable[WorkerState], frontends: Iterable[FrontendState]
) -> Metric:
    """Return how long each process waited for a CPU; an API server is of no engine, so it has no such label."""
    family = GaugeMetricFamily(
        "taxbreak_runqueue_wait_ratio",
        "Share of the time, of late, in which the process's busiest thread wanted to run, that it had no CPU.",
        unit="ratio",
    )
    worst: dict[tuple[tuple[str, str], ...], float] = {}
    for ratio, labels in (
        *((s.runqueue_wait_ratio, _process(s.model_name, f"engine-{s.engine}", s.engine)) for s in engines),
        *(
            (s.runqueue_wait_ratio, _process(s.server.model_name, f"rank-{s.server.rank}", s.server.engine))
            for s in workers
        ),
        *((s.runqueue_wait_ratio, _process(s.model_name, f"api-{s.api}")) for s in frontends),
    ):
        if ratio is not None:
            worst[labels] = max(ratio, worst.get(labels, ratio))
    for labels, ratio in worst.items():
        family.add_sample(family.name, dict(labels), ratio)
    return family


def _process(model_name: str, process: str, engine: str | None = None) -> tuple[tuple[str, str], ...]:
    of_engine = () if engine is None else (("engine", engine),)
    return (("model_name", model_name), *of_engine, ("process", process))


def launch_floors(states: Iterable[WorkerState], path: Path | None) -> Metric:
    """The floors that were measured where a running worker is; none where several places could be meant."""
    family = GaugeMetricFamily(
        "taxbreak_launch_floor_seconds",
        "Least time of a launch, measured with empty kernels: of one, of a graph, and of each node more in a graph.",
        labels=(*SERVER_LABELS, "kind"),
        unit="seconds",
    )
    if path is None or not path.is_file():
        return family
    with suppress(BaselineError), Baselines(path) as baselines:
        for labels, server in {server_labels(state): state.server for state in states}.items():
            told = {"device_type": server.device_type, "device_name": server.device_name, "torch": server.torch}
            view = baselines.view(told)
            if view is None or view.floors is None:
                continue
            graph_ns, node_ns = view.floors.graph_line() or (None, None)
            floors_ns = {"kernel": view.floors.median_ns(FloorKind.KERNEL), "graph": graph_ns, "graph_node": node_ns}
            for kind, floor_ns in floors_ns.items():
                if floor_ns is not None:
                    family.add_metric((*labels, kind), floor_ns / NS_PER_S)
    return family


def recording(states: Iterable[WorkerState]) -> Iterator[Metric]:
    """Yield whether each server records, and whether CUPTI is attached to it."""
    enabled = GaugeMetricFamily(
        "taxbreak_recording_enabled",
        "Whether steps may be recorded: 1, or 0 where recording is off and steps are only timed.",
        labels=SERVER_LABELS,
    )
    attached = GaugeMetricFamily(
        "taxbreak_cupti_attached",
        "Whether CUPTI is attached to the worker: 1 from its first recording of a CUDA device on, else 0.",
        labels=SERVER_LABELS,
    )
    by_server: dict[tuple[str, ...], list[WorkerState]] = defaultdict(list)
    for state in states:
        by_server[server_labels(state)].append(state)
    for labels, members in by_server.items():
        enabled.add_metric(labels, min(state.enabled for state in members))
        attached.add_metric(labels, max(state.cupti_attached for state in members))
    yield from (enabled, attached)


def server_info(states: Iterable[WorkerState]) -> Metric:
    """Return what each worker is built of and runs on; of two on one device under the same labels the newer one's."""
    family = InfoMetricFamily(
        "taxbreak_server",
        "What a running worker is built of and runs on: labels to compare versions by and to join with DCGM's.",
        labels=SERVER_LABELS,
    )
    newest = {
        (*server_labels(state), state.server.device_uuid): state
        for state in sorted(states, key=lambda state: state.started_unix_ns)
    }
    for state in newest.values():
        server = state.server
        told = {
            "vllm": server.vllm,
            "torch": server.torch,
            "cuda": server.cuda,
            "settings_hash": server.settings_hash,
            "gpu": "" if server.device_type == "cpu" else server.device_name,
            "uuid": server.device_uuid,
            "host": server.host,
        }
        family.add_metric(server_labels(state), told)
    return family
