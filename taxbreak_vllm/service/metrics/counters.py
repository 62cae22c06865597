"""The counters, as the `totals` table has them: they never fall. What is in ns there is in seconds here.

The steps of the window that were recorded are their exemplars. `histograms` has those whose buckets are counters.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from prometheus_client.metrics_core import CounterMetricFamily, Metric
from prometheus_client.samples import Exemplar

from taxbreak_vllm.service.metrics.labels import (
    ENGINE_LABELS,
    MODEL_LABELS,
    NS_PER_S,
    SERVER_LABELS,
    STEP_LABELS,
    series_labels,
)
from taxbreak_vllm.service.results.rows import Balance, Series, Total

_MAX_STEP_ID = 128 - len("step_id")  # OpenMetrics bounds the label set of an exemplar

Exemplars = dict[Series, dict[int, Exemplar]]  # by bucket


class _CounterFamily(NamedTuple):
    counter: str
    name: str
    help: str
    label: str = ""
    own: tuple[str, ...] = STEP_LABELS
    per_unit: float = 1


_COUNTERS = (
    _CounterFamily("steps", "steps", "Engine steps timed without being recorded.", "graph_mode"),
    _CounterFamily(
        "sampled_steps", "sampled_steps", "Recorded steps that were analyzed; the sums below are over these."
    ),
    _CounterFamily(
        "withheld",
        "withheld_steps",
        "Sampled steps of which a figure is not known, so that the sums leave them out, by figure.",
        "figure",
    ),
    _CounterFamily(
        "dropped", "samples_dropped", "Samples lost before their analysis, by reason.", "reason", SERVER_LABELS
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
    _CounterFamily(
        "device_active_ns",
        "device_active_seconds",
        "Time the device worked for sampled steps, of those whose idle time is known.",
    ),
    _CounterFamily(
        "device_idle_ns", "device_idle_seconds", "Idle time of the device in sampled steps, by cause.", "cause"
    ),
    _CounterFamily(
        "limit_ns", "limit_seconds", "The least time that hardware allows sampled steps, by what it hangs on.", "bound"
    ),
    _CounterFamily(
        "limit_bar_ns",
        "limit_bar_seconds",
        "Iterations of sampled steps by what their device's time went to; the parts sum to them.",
        "part",
    ),
    _CounterFamily(
        "limit_work_ns",
        "limit_work_seconds",
        "The least time of the products (compute) and of the bytes (memory) of sampled steps, each by itself.",
        "work",
    ),
    _CounterFamily(
        "limit_told_ns",
        "limit_told_seconds",
        "Iterations of the sampled steps whose least time is known: what limit_work_seconds is a share of.",
    ),
    _CounterFamily(
        "model_kiloflops", "model_flops", "FLOPs of the matrix engine that sampled steps asked for.", per_unit=1e-3
    ),
    _CounterFamily("model_bytes", "model_bytes", "Bytes that sampled steps had to read and write at the least."),
    _CounterFamily("tklqt_ns", "tklqt_seconds", "Launch to start, summed over the kernel launches of sampled steps."),
    _CounterFamily("launches", "launches", "Launches that produced device work, in sampled steps."),
    _CounterFamily("kernels", "kernels", "Kernels of sampled steps, by family.", "family"),
    _CounterFamily("output_tokens", "sampled_output_tokens", "Tokens that the sampled steps produced."),
    _CounterFamily(
        "engine_iterations",
        "engine_iterations",
        "Steps of which engine and worker were joined, from one start to the next.",
        own=ENGINE_LABELS,
    ),
    _CounterFamily(
        "engine_iterations_ns",
        "engine_iteration_seconds",
        "Time of these iterations: all that is in exposed and idle seconds, and what is left of it to the worker.",
        own=ENGINE_LABELS,
    ),
    _CounterFamily(
        "engine_left_out",
        "engine_left_out_iterations",
        "Iterations that were joined and are in none of these sums, as the device was not asked about them.",
        own=ENGINE_LABELS,
    ),
    _CounterFamily(
        "engine_unjoined",
        "engine_unjoined_steps",
        "Steps of which the worker's times did not come back, or that nobody had time to count.",
        own=ENGINE_LABELS,
    ),
    _CounterFamily(
        "engine_busy_ns",
        "engine_busy_seconds",
        "Time of the engine's thread by part, whether a worker waited for it or not.",
        "part",
        own=ENGINE_LABELS,
    ),
    _CounterFamily(
        "engine_exposed_ns",
        "engine_exposed_seconds",
        "Time of the engine's thread by part in which its worker stood between two calls.",
        "part",
        own=ENGINE_LABELS,
    ),
    _CounterFamily(
        "between_steps_ns",
        "idle_between_steps_seconds",
        "Time a worker stood between two calls while the engine's thread waited too, by cause.",
        "cause",
        own=ENGINE_LABELS,
    ),
    _CounterFamily(
        "requests_not_followed",
        "requests_not_followed",
        "Requests to API servers that are in no histogram of them, by reason.",
        "reason",
        own=MODEL_LABELS,
    ),
)


def exemplars(balances: Iterable[Balance]) -> Exemplars:
    """Return of each series and bucket the recorded step that was analyzed last, newest first."""
    found: Exemplars = defaultdict(dict)
    for row in sorted(balances, key=lambda row: row.started_unix_ns, reverse=True):
        if len(row.step_id) <= _MAX_STEP_ID:
            labels = {"step_id": row.step_id}
            found[row.series][row.bucket] = Exemplar(labels, row.window_ns / NS_PER_S, row.started_unix_ns / NS_PER_S)
    return found


def counters(totals: Iterable[Total], of_steps: Exemplars) -> Iterator[Metric]:
    """Yield the family of every counter."""
    by_counter: dict[str, list[Total]] = defaultdict(list)
    for total in totals:
        by_counter[total.counter].append(total)
    for counter, name, text, label, own, per_unit in _COUNTERS:
        labels = (*own, *([label] if label else []))
        is_time = name.endswith("_seconds")
        divisor = NS_PER_S if is_time else per_unit
        family = CounterMetricFamily(f"taxbreak_{name}", text, labels=labels, unit="seconds" if is_time else "")
        for total in by_counter[counter]:
            series = Series(total.model_name, total.engine, total.rank, total.phase)
            steps = of_steps.get(series, {}).values() if counter == "sampled_steps" else ()
            exemplar = next((step._replace(value=1.0) for step in steps), None)
            values = (*series_labels(series)[: len(own)], *([total.label] if label else []))
            family.add_metric(values, total.value / divisor if divisor != 1 else total.value, exemplar=exemplar)
        yield family
