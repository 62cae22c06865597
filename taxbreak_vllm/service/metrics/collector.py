"""The Prometheus metrics: a collector over results and spool, built anew at each scrape.

Counters are those of the `totals` table and never fall. Gauges speak of the window, or of this moment, and go with the
server they speak of. What was not measured has no series. Integer ns become seconds here.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from prometheus_client.metrics_core import GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from taxbreak_vllm.model.version import package_version
from taxbreak_vllm.model.worker import WorkerState
from taxbreak_vllm.service.metrics.counters import counters, exemplars
from taxbreak_vllm.service.metrics.gauges import (
    launch_floors,
    overhead,
    recording,
    runqueue_waits,
    server_balance,
    server_info,
    turning_points,
    unexplained,
    window_gauges,
)
from taxbreak_vllm.service.metrics.histograms import request_histograms, step_histograms
from taxbreak_vllm.service.metrics.labels import NS_PER_S
from taxbreak_vllm.service.results.live import live
from taxbreak_vllm.service.results.store import Results
from taxbreak_vllm.settings import Settings
from taxbreak_vllm.spool.spool import Spool
from taxbreak_vllm.spool.usage import SpoolUsage

MAX_COMPARED_STEPS = 1000  # the newest, over sizes of batches


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
        engines = live(self._spool.engine_states(), now_ns=now_ns)
        frontends = live(self._spool.frontend_states(), now_ns=now_ns)
        with Results(self._results_path) as results:
            totals = results.totals()
            balances = results.balances(since_ns=now_ns - self._window_ns)
            dilations = results.dilations(since_ns=now_ns - self._window_ns)
            sizes = results.sizes(since_ns=now_ns - self._window_ns, limit=MAX_COMPARED_STEPS)
        of_steps = exemplars(balances)
        families = (
            *counters(totals, of_steps),
            *step_histograms(totals, of_steps),
            *request_histograms(totals),
            *window_gauges(balances, dilations, states),
            *turning_points(sizes, states),
            unexplained(engines),
            server_balance(balances, engines),
            runqueue_waits(engines, states, frontends),
            *self._gauges(states, now_ns),
        )
        yield from (family for family in families if family.samples)

    def _gauges(self, states: Iterable[WorkerState], now_ns: int) -> Iterator[Metric]:
        yield overhead(states)
        yield launch_floors(states, self._baselines_path)
        yield from recording(states)
        yield server_info(states)
        size_bytes, oldest_unix_ns = self._survey.read()
        yield GaugeMetricFamily(
            "taxbreak_spool_bytes", "Bytes of all captures in the spool.", value=size_bytes, unit="bytes"
        )
        yield GaugeMetricFamily(
            "taxbreak_analysis_lag_seconds",
            "Age of the oldest capture that waits for its analysis, 0 with none.",
            value=0.0 if oldest_unix_ns is None else max(0, now_ns - oldest_unix_ns) / NS_PER_S,
            unit="seconds",
        )
        yield InfoMetricFamily("taxbreak_build", "Version of taxbreak-vllm.", value={"version": package_version()})
