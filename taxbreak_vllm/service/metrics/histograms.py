"""The histograms, whose buckets are counters of the `totals` table: of steps, and of requests at the API servers.

Those of steps are by phase. An API server serves every engine of its model, so its histograms have no engine.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

from prometheus_client.metrics_core import HistogramMetricFamily, Metric
from prometheus_client.samples import Exemplar

from taxbreak_vllm.model.frontend import SPAN_BUCKETS_NS
from taxbreak_vllm.model.step import STEP_BUCKETS_NS
from taxbreak_vllm.service.metrics.counters import Exemplars
from taxbreak_vllm.service.metrics.labels import MODEL_LABELS, NS_PER_S, STEP_LABELS, series_labels
from taxbreak_vllm.service.results.rows import Series, Total

Labels = tuple[str, ...]


class _Spans(NamedTuple):
    counter: str
    name: str
    help: str
    label: str = ""


_SPANS = (
    _Spans("stage", "request_stage_seconds", "Requests by the time that each stage of them took.", "stage"),
    _Spans("request", "request_seconds", "Requests by the time from their arrival to the end of their answer."),
    _Spans(
        "ttfb",
        "time_to_first_byte_seconds",
        "Requests by the time from their arrival to the first byte of their answer's body.",
    ),
    _Spans(
        "token", "api_token_seconds", "Outputs of one request in 64 by the time of each part of their delivery.", "part"
    ),
    _Spans("loop_lag", "event_loop_lag_seconds", "How late the event loop of an API server was."),
)


def step_histograms(totals: Iterable[Total], of_steps: Exemplars) -> Iterator[Metric]:
    """Yield plain steps by duration, and by the time to the start of the next, which is a server's cadence.

    The exemplar of a bucket of the first is a recorded step that took as long.
    """
    for counter, name, text, exemplars in (
        ("step", "step_seconds", "Duration of engine steps timed without being recorded.", of_steps),
        (
            "iteration",
            "iteration_seconds",
            "From the start of an engine step to the start of the next, of steps that were not recorded.",
            {},
        ),
    ):
        found = _Found(len(STEP_BUCKETS_NS))
        for total in totals:
            series = Series(total.model_name, total.engine, total.rank, total.phase)
            if total.counter == f"{counter}_ns":
                found.sums_ns[series_labels(series)] = total.value
            elif total.counter == f"{counter}_bucket":
                found.buckets[series_labels(series)][int(total.label)] = total.value
        by_labels = {series_labels(series): found for series, found in exemplars.items()}
        yield found.family(name, text, STEP_LABELS, STEP_BUCKETS_NS, by_labels)


def request_histograms(totals: Iterable[Total]) -> Iterator[Metric]:
    """Yield what the API servers tell of their requests and of themselves."""
    for counter, name, text, label in _SPANS:
        found = _Found(len(SPAN_BUCKETS_NS))
        for total in totals:
            part, _, index = total.label.rpartition(" ")
            if total.counter == f"{counter}_ns":
                found.sums_ns[_labels(total, label, total.label)] = total.value
            elif total.counter == f"{counter}_bucket":
                found.buckets[_labels(total, label, part)][int(index)] = total.value
        labels = (*MODEL_LABELS, *([label] if label else []))
        yield found.family(name, text, labels, SPAN_BUCKETS_NS, {})


def _labels(total: Total, label: str, part: str) -> Labels:
    return (total.model_name, *([part] if label else []))


class _Found:
    """The counters of one family of histograms, by the values of its labels."""

    def __init__(self, num_bounds: int) -> None:
        self.sums_ns: dict[Labels, int] = defaultdict(int)
        self.buckets: dict[Labels, list[int]] = defaultdict(lambda: [0] * (num_bounds + 1))

    def family(
        self,
        name: str,
        text: str,
        labels: Sequence[str],
        bounds_ns: Sequence[int],
        exemplars: Mapping[Labels, Mapping[int, Exemplar]],
    ) -> Metric:
        """Return the family of these counters; the exemplars are by labels and bucket."""
        family = HistogramMetricFamily(f"taxbreak_{name}", text, labels=labels, unit="seconds")
        bounds = [*(str(bound_ns / NS_PER_S) for bound_ns in bounds_ns), "+Inf"]
        for values, counts in self.buckets.items():
            own = exemplars.get(values, {})
            up_to = zip(bounds, accumulate(counts), strict=True)
            with_exemplars = [(*bucket, own[index]) if index in own else bucket for index, bucket in enumerate(up_to)]
            family.add_metric(values, with_exemplars, self.sums_ns[values] / NS_PER_S)
        return family
