"""How the archive stands, from the archiver's ledger: what went there, what failed, what was lost and what waits."""

import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from taxbreak_vllm.model.errors import SettingsError
from taxbreak_vllm.service.metrics.labels import NS_PER_S
from taxbreak_vllm.service.results.archive import Ledger, Standing, ledger_path
from taxbreak_vllm.settings import Settings

_COUNTERS = (
    ("archive_objects", "kind", "Objects in the archive that this sidecar put or found there, by kind."),
    ("archive_bytes", "", "Bytes of these."),
    ("archive_failures", "reason", "Objects or attempts that failed: away, refused, day_full, unreadable."),
    ("archive_lost", "kind", "What left the spool before it could be archived, by kind."),
)
_RESTING_NS = 60 * 10**9  # an archiver looks every two seconds, and less often while it sends


class ArchiveCollector(Collector):
    """Reads the ledger anew at each scrape; without one there is no series."""

    def __init__(self, ledger_path: Path, *, now_ns: Callable[[], int] = time.time_ns) -> None:
        self._path = ledger_path
        self._now_ns = now_ns

    @classmethod
    def of(cls, settings: Settings, *, now_ns: Callable[[], int] = time.time_ns) -> "ArchiveCollector | None":
        """Make the collector of these settings, None where they name no archive."""
        if settings.archive is None:
            return None
        return cls(ledger_path(settings.results_path, settings.archive), now_ns=now_ns)

    def collect(self) -> Iterator[Metric]:
        """Yield every family that has a series."""
        standing = self._read()
        if standing is None:
            return
        for counter, label, text in _COUNTERS:
            family = CounterMetricFamily(
                f"taxbreak_{counter}", text, labels=[label] if label else [], unit="bytes" if not label else ""
            )
            for (name, value_label), value in sorted(standing.totals.items()):
                if f"archive_{name}" == counter:
                    family.add_metric([value_label] if label else [], value)
            if family.samples:
                yield family
        lag = GaugeMetricFamily(
            "taxbreak_archive_lag_seconds",
            "Age of the oldest capture that is not archived, or since when the archiver is silent; 0 with neither.",
            unit="seconds",
        )
        lag.add_metric([], self._lag_ns(standing) / NS_PER_S)
        yield lag

    def _read(self) -> Standing | None:
        try:
            if not self._path.is_file():
                return None
            with Ledger(self._path) as ledger:
                return ledger.standing()
        except (sqlite3.Error, SettingsError, OSError):  # the archiver says so; what else there is to scrape goes out
            return None

    def _lag_ns(self, standing: Standing) -> int:
        now_ns = self._now_ns()
        silent_ns = now_ns - (standing.looked_unix_ns or now_ns)
        waiting_ns = 0 if standing.oldest_unix_ns is None else now_ns - standing.oldest_unix_ns
        return max(0, waiting_ns, silent_ns if silent_ns > _RESTING_NS else 0)
