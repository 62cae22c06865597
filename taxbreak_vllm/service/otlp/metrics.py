"""Our families of Prometheus as OpenTelemetry's data: what the collector of `/metrics` yields in, `MetricsData` out.

Names, help texts and labels are those of `/metrics`, so nothing is defined twice. The counters are older than this
process and nobody knows since when they count, so they have no start time.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from opentelemetry.sdk.metrics import Exemplar
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Histogram,
    HistogramDataPoint,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.metrics.export import Metric as OtelMetric
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from prometheus_client.metrics_core import Metric
from prometheus_client.samples import Sample

from taxbreak_vllm.service.otlp.ids import step_ids

UNITS = {"seconds": "s", "bytes": "By", "ratio": "1"}  # UCUM, as OpenTelemetry wants it
_UNKNOWN_START = 0
_CUMULATIVE = AggregationTemporality.CUMULATIVE


def metrics_data(
    families: Iterable[Metric], resource: Resource, scope: InstrumentationScope, *, now_ns: int
) -> MetricsData:
    """Convert every family that has a sample."""
    metrics = [_metric(family, now_ns) for family in families if family.samples]
    found = ScopeMetrics(scope=scope, metrics=metrics, schema_url="")
    return MetricsData([ResourceMetrics(resource=resource, scope_metrics=[found], schema_url="")])


def _metric(family: Metric, now_ns: int) -> OtelMetric:
    data: Sum | Gauge | Histogram
    if family.type == "histogram":
        data = Histogram(list(_histogram_points(family.samples, now_ns)), _CUMULATIVE)
    elif family.type == "counter":
        data = Sum(_points(family.samples, now_ns), _CUMULATIVE, is_monotonic=True)
    else:
        data = Gauge(_points(family.samples, now_ns))
    name = family.samples[0].name if family.type == "info" else family.name
    return OtelMetric(name=name, description=family.documentation, unit=UNITS.get(family.unit, ""), data=data)


def _points(samples: Iterable[Sample], now_ns: int) -> list[NumberDataPoint]:
    return [
        NumberDataPoint(
            attributes=sample.labels,
            start_time_unix_nano=_UNKNOWN_START,
            time_unix_nano=now_ns,
            value=float(sample.value),
            exemplars=_exemplars([sample]),
        )
        for sample in samples
    ]


def _histogram_points(samples: Iterable[Sample], now_ns: int) -> Iterator[HistogramDataPoint]:
    """Yield one point for each set of labels; Prometheus counts each bucket's samples in all that follow, too."""
    series: dict[tuple[tuple[str, str], ...], list[Sample]] = defaultdict(list)
    for sample in samples:
        labels = tuple((name, value) for name, value in sample.labels.items() if name != "le")
        series[labels].append(sample)
    for labels, of_series in series.items():
        buckets = [sample for sample in of_series if sample.name.endswith("_bucket")]
        sums = [sample.value for sample in of_series if sample.name.endswith("_sum")]
        up_to = [int(bucket.value) for bucket in buckets]
        bounds = [float(bucket.labels["le"]) for bucket in buckets]
        yield HistogramDataPoint(
            attributes=dict(labels),
            start_time_unix_nano=_UNKNOWN_START,
            time_unix_nano=now_ns,
            count=up_to[-1],
            sum=sums[0],
            bucket_counts=[count - before for count, before in zip(up_to, [0, *up_to], strict=False)],
            explicit_bounds=[bound for bound in bounds if bound != math.inf],
            min=None,  # type: ignore[arg-type]  # optional in OTLP, and not known
            max=None,  # type: ignore[arg-type]
            exemplars=_exemplars(buckets),
        )


def _exemplars(samples: Iterable[Sample]) -> Sequence[Exemplar]:
    """Let the exemplar of a recorded step lead to its span."""
    found = []
    for exemplar in (sample.exemplar for sample in samples if sample.exemplar):
        trace_id, span_id = step_ids(exemplar.labels["step_id"])
        at_ns = round(float(exemplar.timestamp or 0) * 1e9)
        found.append(Exemplar(exemplar.labels, exemplar.value, at_ns, span_id, trace_id))
    return found
