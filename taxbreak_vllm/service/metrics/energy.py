"""The energy of workers' GPUs as a metric: what a meter has added up by worker comes in, at each scrape."""

from collections.abc import Callable, Iterator, Mapping

from prometheus_client.metrics_core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from taxbreak_vllm.service.metrics.labels import SERVER_LABELS


class EnergyCollector(Collector):
    """Tells joules by model name, engine and rank."""

    def __init__(self, joules: Callable[[], Mapping[tuple[str, str, int], float]]) -> None:
        self._joules = joules

    def collect(self) -> Iterator[Metric]:
        """Yield the family, if it has a series."""
        family = CounterMetricFamily(
            "taxbreak_energy_joules",
            "Energy that the GPU of a worker took since the sidecar began to read it.",
            labels=SERVER_LABELS,
        )
        for (model_name, engine, rank), joules in self._joules().items():
            family.add_metric((model_name, engine, str(rank)), joules)
        if family.samples:
            yield family
