"""Sends what the sidecar knows to a collector, every few seconds, from a thread of its own.

In: the collector of `/metrics`, results and spool. Out: OTLP over HTTP. Nothing waits for it and nothing is queued:
what a collector was away for is read again the next time, the newest of it. What it did not take is counted.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path

from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics.export import MetricExportResult
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from prometheus_client.metrics_core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from taxbreak_vllm.model.version import package_version
from taxbreak_vllm.service.otlp.metrics import metrics_data
from taxbreak_vllm.service.otlp.spans import request_name, request_spans, step_span
from taxbreak_vllm.service.results.store import Results
from taxbreak_vllm.spool.spool import Spool

MAX_STEPS = 512  # looked through a turn, the newest
MAX_TOLD = 128  # steps and requests in one message; a request is up to 13 spans
TIMEOUT_S = 5.0  # of one message
LEAVE_S = 1.5

logger = logging.getLogger("taxbreak.otlp")


class OtlpExporter(Collector):
    """Exports in turns, and is itself a collector: of how many messages failed."""

    def __init__(
        self,
        collector: Collector,
        results_path: Path,
        spool: Spool,
        *,
        window_ns: int,
        url: str | None = None,
        interval_s: float = 15.0,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._spans = OTLPSpanExporter(endpoint=_endpoint(url, "traces"), timeout=TIMEOUT_S)
        self._metrics = OTLPMetricExporter(endpoint=_endpoint(url, "metrics"), timeout=TIMEOUT_S)
        logging.getLogger("opentelemetry.exporter").setLevel(logging.CRITICAL)  # each failure is a line there
        self._collector = collector
        self._results_path = results_path
        self._spool = spool
        self._window_ns = window_ns
        self._interval_s = interval_s
        self._now_ns = now_ns
        self._scope = InstrumentationScope("taxbreak", package_version())
        self._sent: set[object] = set()
        self._failures = Counter({"metrics": 0, "traces": 0})
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="taxbreak-otlp", daemon=True)

    def start(self) -> None:
        """Begin to export."""
        self._thread.start()

    def close(self) -> None:
        """Export what is new once more, unless that takes long: a collector that hangs holds nobody up."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(LEAVE_S)
        self._spans.shutdown()  # type: ignore[no-untyped-call]
        self._metrics.shutdown()

    def collect(self) -> Iterator[Metric]:
        """Yield how many messages the collector did not take."""
        family = CounterMetricFamily(
            "taxbreak_otlp_failures", "Messages that the OpenTelemetry collector did not take.", labels=("signal",)
        )
        for signal, count in self._failures.items():
            family.add_metric((signal,), count)
        yield family

    def turn(self) -> None:
        """Export the metrics as of now, and the steps and requests that are new."""
        self._send("metrics", self._send_metrics)
        self._send("traces", self._send_spans)

    def _run(self) -> None:
        while True:
            is_last = self._stop.wait(self._interval_s)
            self.turn()
            if is_last:
                return

    def _send(self, signal: str, send: Callable[[], bool]) -> None:
        try:
            is_done = send()
            reason = "the collector does not take them"
        except Exception as error:  # a collector that is away must not end the thread, nor damaged results
            is_done, reason = False, repr(error)
        if not is_done:
            self._failures[signal] += 1
            if self._failures[signal] == 1:
                logger.warning(
                    "taxbreak: %s are not exported: %s; taxbreak_otlp_failures_total counts on", signal, reason
                )

    def _send_metrics(self) -> bool:
        families = [*self._collector.collect(), *self.collect()]
        data = metrics_data(families, _resource({}), self._scope, now_ns=self._now_ns())
        return self._metrics.export(data) is MetricExportResult.SUCCESS

    def _send_spans(self) -> bool:
        fresh = dict(self._fresh())
        names = list(fresh)
        is_done = True
        for start in range(0, len(names), MAX_TOLD):
            part = names[start : start + MAX_TOLD]
            spans = [span for name in part for span in fresh[name]]
            if spans and self._spans.export(spans) is not SpanExportResult.SUCCESS:
                is_done = False
                break
            self._sent.update(part)
        return is_done

    def _fresh(self) -> Iterator[tuple[object, list[ReadableSpan]]]:
        """Yield the spans of what was not sent before, by its name; what is no longer among the newest is forgotten."""
        since_ns = self._now_ns() - self._window_ns
        vllm = {state.server.server_id: state.server.vllm for state in self._spool.states()}
        seen: set[object] = set()
        with Results(self._results_path) as results:
            rows = results.steps(since_ns=since_ns, limit=MAX_STEPS)
        for row in reversed(rows):
            seen.add(row.step_id)
            if row.step_id not in self._sent:
                resource = _resource_of(row.server_id, row.model_name, vllm.get(row.server_id, ""))
                yield row.step_id, [step_span(row, resource, self._scope)]
        for state in self._spool.frontend_states():
            resource = _resource_of(state.server_id, state.model_name, vllm.get(state.server_id, ""))
            for waterfall in self._spool.waterfalls(state.server_id, state.api):
                name = request_name(waterfall, state)
                seen.add(name)
                if name not in self._sent and waterfall.started_unix_ns >= since_ns:
                    yield name, list(request_spans(waterfall, state, resource, self._scope))
        self._sent &= seen


def _endpoint(url: str | None, signal: str) -> str | None:
    """Return where a signal goes; None leaves it to the variables that OpenTelemetry has for that."""
    return None if url is None else f"{url.rstrip('/')}/v1/{signal}"


@cache
def _resource_of(server_id: str, model_name: str, vllm: str) -> Resource:
    told = {"service.instance.id": server_id, "vllm.model_name": model_name, "vllm.version": vllm}
    return _resource({name: value for name, value in told.items() if value})


def _resource(attributes: Mapping[str, str]) -> Resource:
    """Return a resource; what OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say comes first."""
    ours = {"service.name": "taxbreak", "service.version": package_version(), **attributes}
    return Resource(ours).merge(OTELResourceDetector().detect())
