"""The Prometheus metrics: a collector over results and spool, built anew at each scrape.

Counters are those of the `totals` table and never fall. Gauges speak of the window, or of this moment, and go with the
server they speak of. What was not measured has no series. Integer ns become seconds here.
"""

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar

import taxbreak_vllm
from taxbreak_vllm.baselines.store import Baselines
from taxbreak_vllm.model.baseline import FloorKind
from taxbreak_vllm.model.breakdown import hdbi, sum_or_none
from taxbreak_vllm.model.errors import BaselineError
from taxbreak_vllm.model.step import STEP_BUCKETS_NS
from taxbreak_vllm.model.worker import WorkerState
from taxbreak_vllm.service.results.counts import NUM_BUCKETS
from taxbreak_vllm.service.results.live import live
from taxbreak_vllm.service.results.rows import Balance, Series, Total
from taxbreak_vllm.service.results.store import Results
from taxbreak_vllm.service.results.window import replay_shares
from taxbreak_vllm.settings import Settings
from taxbreak_vllm.spool.spool import Spool
from taxbreak_vllm.spool.usage import SpoolUsage

_NS = 1e9
_SERVER = ("model_name", "engine", "rank")
_STEP = (*_SERVER, "phase")
_MAX_STEP_ID = 128 - len("step_id")  # OpenMetrics bounds the label set of an exemplar

_Exemplars = dict[Series, dict[int, Exemplar]]  # by bucket


class _CounterFamily(NamedTuple):
    counter: str
    name: str
    help: str
    label: str = ""
    has_phase: bool = True


_COUNTERS = (
    _CounterFamily("steps", "steps", "Engine steps timed without being recorded.", "graph_mode"),
    _CounterFamily(
        "sampled_steps", "sampled_steps", "Recorded steps that were analyzed; the sums below are over these."
    ),
    _CounterFamily(
        "dropped", "samples_dropped", "Samples lost before their analysis, by reason.", "reason", has_phase=False
    ),
    _CounterFamily(
        "orchestration_ns",
        "orchestration_seconds",
        "Host time of sampled steps by component: ΔFT framework, ΔCT library, ΔKT launch floor (TaxBreak Eq. 1-3).",
        "component",
    ),
    _CounterFamily(
        "exposed_ns",
        "exposed_orchestration_seconds",
        "Host time of sampled steps that the device waited for, by component.",
        "component",
    ),
    _CounterFamily("device_active_ns", "device_active_seconds", "Time the device worked for sampled steps."),
    _CounterFamily(
        "device_idle_ns", "device_idle_seconds", "Idle time of the device in sampled steps, by cause.", "cause"
    ),
    _CounterFamily("tklqt_ns", "tklqt_seconds", "Launch to start, summed over the kernel launches of sampled steps."),
    _CounterFamily("launches", "launches", "Launches that produced device work, in sampled steps."),
    _CounterFamily("kernels", "kernels", "Kernels of sampled steps, by family.", "family"),
    _CounterFamily("output_tokens", "sampled_output_tokens", "Tokens that the sampled steps produced."),
)


class TaxbreakCollector(Collector):
    """Reads results and spool anew at each scrape; of the spool it remembers what changes no more."""

    def __init__(
        self,
        results_path: Path,
        spool: Spool,
        *,
        window_ns: int,
        baselines_path: Path | None = None,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._results_path = results_path
        self._baselines_path = baselines_path
        self._spool = spool
        self._survey = SpoolUsage(spool)
        self._window_ns = window_ns
        self._now_ns = now_ns

    @classmethod
    def of(cls, settings: Settings, spool: Spool, *, now_ns: Callable[[], int] = time.time_ns) -> "TaxbreakCollector":
        """Make the collector of these settings."""
        return cls(
            settings.results_path,
            spool,
            window_ns=settings.window_s * 10**9,
            baselines_path=settings.baselines_path,
            now_ns=now_ns,
        )

    def collect(self) -> Iterator[Metric]:
        """Yield every family that has a series."""
        now_ns = self._now_ns()
        states = live(self._spool.states(), now_ns=now_ns)
        with Results(self._results_path) as results:
            totals = results.totals()
            balances = results.balances(since_ns=now_ns - self._window_ns)
            dilations = results.dilations(since_ns=now_ns - self._window_ns)
        exemplars = _exemplars(balances)
        families = (
            *_counters(totals, exemplars),
            _step_seconds(totals, exemplars),
            *_window_gauges(balances, dilations, states),
            *self._gauges(states, now_ns),
        )
        yield from (family for family in families if family.samples)

    def _gauges(self, states: Iterable[WorkerState], now_ns: int) -> Iterator[Metric]:
        yield _overhead(states)
        yield _launch_floors(states, self._baselines_path)
        yield _recording(states)
        size_bytes, oldest_unix_ns = self._survey.read()
        yield GaugeMetricFamily(
            "taxbreak_spool_bytes", "Bytes of all captures in the spool.", value=size_bytes, unit="bytes"
        )
        yield GaugeMetricFamily(
            "taxbreak_analysis_lag_seconds",
            "Age of the oldest capture that waits for its analysis, 0 with none.",
            value=0.0 if oldest_unix_ns is None else max(0, now_ns - oldest_unix_ns) / _NS,
            unit="seconds",
        )
        yield InfoMetricFamily(
            "taxbreak_build", "Version of taxbreak-vllm.", value={"version": taxbreak_vllm.__version__}
        )


def _exemplars(balances: Iterable[Balance]) -> _Exemplars:
    """Return of each series and bucket the recorded step that was analyzed last, newest first."""
    found: _Exemplars = defaultdict(dict)
    for row in sorted(balances, key=lambda row: row.started_unix_ns, reverse=True):
        if len(row.step_id) <= _MAX_STEP_ID:
            labels = {"step_id": row.step_id}
            found[row.series][row.bucket] = Exemplar(labels, row.window_ns / _NS, row.started_unix_ns / _NS)
    return found


def _counters(totals: Iterable[Total], exemplars: _Exemplars) -> Iterator[Metric]:
    by_counter: dict[str, list[Total]] = defaultdict(list)
    for total in totals:
        by_counter[total.counter].append(total)
    for counter, name, text, label, has_phase in _COUNTERS:
        labels = (*(_STEP if has_phase else _SERVER), *([label] if label else []))
        is_time = name.endswith("_seconds")
        family = CounterMetricFamily(f"taxbreak_{name}", text, labels=labels, unit="seconds" if is_time else "")
        for total in by_counter[counter]:
            series = Series(total.model_name, total.engine, total.rank, total.phase)
            steps = exemplars.get(series, {}).values() if counter == "sampled_steps" else ()
            exemplar = next((step._replace(value=1.0) for step in steps), None)
            values = (*_labels(series)[: 4 if has_phase else 3], *([total.label] if label else []))
            family.add_metric(values, total.value / _NS if is_time else total.value, exemplar=exemplar)
        yield family


def _step_seconds(totals: Iterable[Total], exemplars: _Exemplars) -> Metric:
    """Plain steps by duration; the exemplar of a bucket is a recorded step that took as long."""
    family = HistogramMetricFamily(
        "taxbreak_step_seconds", "Duration of engine steps timed without being recorded.", labels=_STEP, unit="seconds"
    )
    sums_ns: dict[Series, int] = {}
    buckets: dict[Series, list[int]] = defaultdict(lambda: [0] * NUM_BUCKETS)
    for total in totals:
        series = Series(total.model_name, total.engine, total.rank, total.phase)
        if total.counter == "step_ns":
            sums_ns[series] = total.value
        elif total.counter == "step_bucket":
            buckets[series][int(total.label)] = total.value
    bounds = [*(str(bound_ns / _NS) for bound_ns in STEP_BUCKETS_NS), "+Inf"]
    for series, counts in buckets.items():
        of_series = exemplars.get(series, {})
        up_to = zip(bounds, accumulate(counts), strict=True)
        with_exemplars = [
            (*bucket, of_series[index]) if index in of_series else bucket for index, bucket in enumerate(up_to)
        ]
        family.add_metric(_labels(series), with_exemplars, sums_ns[series] / _NS)
    return family


def _window_gauges(
    balances: Iterable[Balance], dilations: Mapping[Series, list[float]], states: Iterable[WorkerState]
) -> Iterator[Metric]:
    balance = GaugeMetricFamily(
        "taxbreak_hdbi",
        "Device time over device and orchestration time of the window's sampled steps: 0 host-bound, 1 device-bound.",
        labels=_STEP,
    )
    dilation = GaugeMetricFamily(
        "taxbreak_profiler_dilation_ratio",
        "Recorded over plain duration of a step, median of the window's sampled steps.",
        labels=_STEP,
        unit="ratio",
    )
    coverage = GaugeMetricFamily(
        "taxbreak_replay_coverage_ratio",
        "Share of the window's orchestration time that rests on each tier of baseline.",
        labels=(*_STEP, "tier"),
        unit="ratio",
    )
    running = {_server(state) for state in states}
    by_series: dict[Series, list[Balance]] = defaultdict(list)
    for row in balances:
        by_series[row.series].append(row)
    for series, rows in by_series.items():
        labels = _labels(series)
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


def _overhead(states: Iterable[WorkerState]) -> Metric:
    family = GaugeMetricFamily(
        "taxbreak_capture_overhead_ratio",
        "Share of serving time that recording has taken since the server started.",
        labels=_SERVER,
        unit="ratio",
    )
    spent: dict[tuple[str, ...], list[WorkerState]] = defaultdict(list)
    for state in states:
        if state.serving_ns:
            spent[_server(state)].append(state)
    for labels, members in spent.items():
        serving_ns = sum(state.serving_ns for state in members)
        family.add_metric(labels, sum(state.overhead_ns for state in members) / serving_ns)
    return family


def _launch_floors(states: Iterable[WorkerState], path: Path | None) -> Metric:
    """The floors that were measured where a running worker is; none where several places could be meant."""
    family = GaugeMetricFamily(
        "taxbreak_launch_floor_seconds",
        "Least time of a launch, measured with empty kernels: of one, of a graph, and of each node more in a graph.",
        labels=(*_SERVER, "kind"),
        unit="seconds",
    )
    if path is None or not path.is_file():
        return family
    with suppress(BaselineError), Baselines(path) as baselines:
        for labels, server in {_server(state): state.server for state in states}.items():
            told = {"device_type": server.device_type, "device_name": server.device_name, "torch": server.torch}
            view = baselines.view(told)
            if view is None or view.floors is None:
                continue
            graph_ns, node_ns = view.floors.graph_line() or (None, None)
            floors_ns = {"kernel": view.floors.median_ns(FloorKind.KERNEL), "graph": graph_ns, "graph_node": node_ns}
            for kind, floor_ns in floors_ns.items():
                if floor_ns is not None:
                    family.add_metric((*labels, kind), floor_ns / _NS)
    return family


def _recording(states: Iterable[WorkerState]) -> Metric:
    family = GaugeMetricFamily(
        "taxbreak_recording_enabled",
        "Whether steps may be recorded: 1, or 0 where recording is off and steps are only timed.",
        labels=_SERVER,
    )
    by_server: dict[tuple[str, ...], list[bool]] = defaultdict(list)
    for state in states:
        by_server[_server(state)].append(state.enabled)
    for labels, members in by_server.items():
        family.add_metric(labels, min(members))
    return family


def _labels(series: Series) -> tuple[str, ...]:
    return (series.model_name, series.engine, str(series.rank), series.phase)


def _server(state: WorkerState) -> tuple[str, ...]:
    return (state.server.model_name, state.server.engine, str(state.server.rank))
