"""The Prometheus metrics: a collector over results and spool, built anew at each scrape.

Counters are those of the `totals` table and never fall. Gauges speak of the window, or of this moment, and go with the
server they speak of. What was not measured has no series. Integer ns become seconds here.
"""

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
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
from taxbreak_vllm.model import STEP_BUCKETS_NS, WorkerState, hdbi, sum_or_none
from taxbreak_vllm.service.counts import NUM_BUCKETS
from taxbreak_vllm.service.results import Balance, Dilation, Results, Total
from taxbreak_vllm.service.servers import live
from taxbreak_vllm.service.window import replay_shares
from taxbreak_vllm.spool import Spool, Survey

_NS = 1e9
_SERVER = ("model_name", "engine", "rank")
_STEP = (*_SERVER, "phase")
_MAX_STEP_ID = 128 - len("step_id")  # OpenMetrics bounds the label set of an exemplar

_Series = tuple[str, ...]  # the values of _STEP
_Exemplars = dict[_Series, dict[int, Exemplar]]  # by bucket


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
        self, results_path: Path, spool: Spool, *, window_ns: int, now_ns: Callable[[], int] = time.time_ns
    ) -> None:
        self._results_path = results_path
        self._spool = spool
        self._survey = Survey(spool)
        self._window_ns = window_ns
        self._now_ns = now_ns

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
            found[_series(row)][row.bucket] = Exemplar(labels, row.window_ns / _NS, row.started_unix_ns / _NS)
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
            series = (total.model_name, total.engine, str(total.rank), *([total.phase] if has_phase else []))
            steps = exemplars.get(series, {}).values() if counter == "sampled_steps" else ()
            exemplar = next((step._replace(value=1.0) for step in steps), None)
            values = (*series, total.label)[: len(labels)]
            family.add_metric(values, total.value / _NS if is_time else total.value, exemplar=exemplar)
        yield family


def _step_seconds(totals: Iterable[Total], exemplars: _Exemplars) -> Metric:
    """Plain steps by duration; the exemplar of a bucket is a recorded step that took as long."""
    family = HistogramMetricFamily(
        "taxbreak_step_seconds", "Duration of engine steps timed without being recorded.", labels=_STEP, unit="seconds"
    )
    sums_ns: dict[tuple[str, ...], int] = {}
    buckets: dict[tuple[str, ...], list[int]] = defaultdict(lambda: [0] * NUM_BUCKETS)
    for total in totals:
        series = (total.model_name, total.engine, str(total.rank), total.phase)
        if total.counter == "step_ns":
            sums_ns[series] = total.value
        elif total.counter == "step_bucket":
            buckets[series][int(total.label)] = total.value
    bounds = [*(str(bound_ns / _NS) for bound_ns in STEP_BUCKETS_NS), "+Inf"]
    for labels, counts in buckets.items():
        of_series = exemplars.get(labels, {})
        up_to = zip(bounds, accumulate(counts), strict=True)
        with_exemplars = [
            (*bucket, of_series[index]) if index in of_series else bucket for index, bucket in enumerate(up_to)
        ]
        family.add_metric(labels, with_exemplars, sums_ns[labels] / _NS)
    return family


def _window_gauges(
    balances: Iterable[Balance], dilations: Iterable[Dilation], states: Iterable[WorkerState]
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
    by_series: dict[_Series, list[Balance]] = defaultdict(list)
    for row in balances:
        if _series(row)[:3] in running:
            by_series[_series(row)].append(row)
    for series, rows in by_series.items():
        value = hdbi(sum(row.active_ns or 0 for row in rows), sum_or_none(row.orchestration_ns for row in rows))
        if value is not None:
            balance.add_metric(series, value)
        tier_sums = [sum_or_none(of_tier) for of_tier in zip(*(row.tier_sums for row in rows), strict=True)]
        for tier, share in replay_shares(tier_sums).items():
            coverage.add_metric((*series, tier), share)
    ratios: dict[_Series, list[float]] = defaultdict(list)
    for step in dilations:
        ratios[_series(step)].append(step.dilation)
    for series, found in ratios.items():
        if series[:3] in running:
            dilation.add_metric(series, statistics.median(found))
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


def _series(row: Balance | Dilation) -> _Series:
    return (row.model_name, row.engine, str(row.rank), row.phase)


def _server(state: WorkerState) -> tuple[str, ...]:
    return (state.server.model_name, state.server.engine, str(state.server.rank))
