"""What a step and the states of workers, engines and API servers add to the counters: (counter, label, value).

All are integers. Whatever is None adds nothing, so that a counter nobody could measure has no series. The names are
those of the `totals` table; `metrics` maps them to families.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from taxbreak_vllm.limit.phases import step_bar
from taxbreak_vllm.model.breakdown import StepBreakdown
from taxbreak_vllm.model.engine import EngineState
from taxbreak_vllm.model.evidence import Figure
from taxbreak_vllm.model.frontend import SPAN_BUCKETS_NS, FrontendState, SpanHistogram
from taxbreak_vllm.model.step import STEP_BUCKETS_NS
from taxbreak_vllm.model.worker import WorkerState

NUM_BUCKETS = len(STEP_BUCKETS_NS) + 1
NUM_SPAN_BUCKETS = len(SPAN_BUCKETS_NS) + 1

_COMPONENTS = ("delta_ft", "delta_ct", "delta_kt")
_CAUSES = ("host", "blocked", "queue", "edge")


class Count(NamedTuple):
    """One addition to one counter; `label` is the value of the counter's own label, "" where it has none."""

    counter: str
    label: str
    value: int


class Key(NamedTuple):
    """A counter of a worker, an engine or an API server; `phase` is "" where the counter knows none."""

    phase: str
    counter: str
    label: str


def step_counts(step: StepBreakdown) -> Iterator[Count]:
    """Yield what one analyzed step adds."""
    yield Count("sampled_steps", "", 1)
    for figure, value in (
        (Figure.HDBI, step.hdbi),
        (Figure.TAXES, step.taxes.delta_ft_ns),
        (Figure.IDLE, step.device.idle_ns),
        (Figure.CAUSES, step.device.idle.host_ns),
    ):
        if value is None:
            yield Count("withheld", figure, 1)
    if step.device.idle.host_ns is not None:  # device time is told by its parts: active, and idle by cause
        yield Count("device_active_ns", "", step.device.active_ns)
    for cause in _CAUSES:
        idle_ns = getattr(step.device.idle, f"{cause}_ns")
        if idle_ns is not None:
            yield Count("device_idle_ns", cause, idle_ns)
    for component in _COMPONENTS:
        tax_ns, exposed_ns = getattr(step.taxes, f"{component}_ns"), getattr(step.exposed, f"{component}_ns")
        if tax_ns is not None:
            yield Count("orchestration_ns", component, tax_ns)
        if exposed_ns or (exposed_ns == 0 and tax_ns is not None):
            yield Count("exposed_ns", component, exposed_ns)  # of an unknown tax, an exposed 0 is no 0
    if step.exposed.other_ns is not None:
        yield Count("exposed_ns", "other", step.exposed.other_ns)
    for family, share in step.families.items():
        yield Count("kernels", family, share.kernels)
    bar, limit = step_bar(step).bar, step.limit
    for part, part_ns in bar.parts_ns().items():
        yield Count("limit_bar_ns", part, part_ns)
    if limit is not None:
        if limit.bound is not None and limit.bar.limit_ns:
            yield Count("limit_ns", limit.bound, limit.bar.limit_ns)
        yield Count("model_kiloflops", "", round(limit.flops / 1000))  # a sum of FLOPs would outgrow 64 bits
        if limit.bytes is not None:
            yield Count("model_bytes", "", limit.bytes)
        shares = (("compute", limit.mfu, limit.compute_ns), ("memory", limit.mbu, limit.memory_ns))
        known = {work: work_ns for work, share, work_ns in shares if share is not None and work_ns is not None}
        for work, work_ns in known.items():
            yield Count("limit_work_ns", work, work_ns)
        if known:
            yield Count("limit_told_ns", "", bar.window_ns)
    for counter, value in (
        ("tklqt_ns", step.tklqt_ns),
        ("launches", step.launches),
        ("output_tokens", step.batch.output_tokens),
    ):
        if value is not None:
            yield Count(counter, "", value)


def engine_counts(state: EngineState) -> Counter[Key]:
    """Return all counters of an engine since its start."""
    counts = Counter(
        {
            Key("", "engine_iterations", ""): state.num_iterations,
            Key("", "engine_iterations_ns", ""): state.iterations_ns,
            Key("", "engine_left_out", ""): state.num_left_out,
            Key("", "engine_unjoined", ""): state.num_unjoined + state.num_lost,
        }
    )
    for counter, parts in (
        ("engine_busy_ns", state.busy_ns),
        ("engine_exposed_ns", state.exposed_ns),
        ("between_steps_ns", state.between_ns),
    ):
        counts.update({Key("", counter, str(part)): value for part, value in parts.items()})
    return counts


def frontend_counts(state: FrontendState) -> Counter[Key]:
    """Return all counters of an API server since its start; a bucket is labelled by stage and index ("render 3")."""
    counts = Counter(
        {
            Key("", "requests_not_followed", reason): num
            for reason, num in (("failed", state.num_failed), ("unknown", state.num_unknown), ("lost", state.num_lost))
        }
    )
    named: tuple[tuple[str, Mapping[str, SpanHistogram]], ...] = (
        ("stage", {str(stage): histogram for stage, histogram in state.stages.items()}),
        ("token", {str(stage): histogram for stage, histogram in state.tokens.items()}),
        ("ttfb", {"": state.ttft}),
        ("request", {"": state.total}),
        ("loop_lag", {"": state.loop_lag}),
    )
    for counter, histograms in named:
        counts.update(_span_counts(counter, histograms))
    return counts


def _span_counts(counter: str, histograms: Mapping[str, SpanHistogram]) -> Counter[Key]:
    counts: Counter[Key] = Counter()
    for name, histogram in histograms.items():
        if len(histogram.bucket_counts) != NUM_SPAN_BUCKETS:
            continue  # of another version of the API server: its buckets mean something else
        counts[Key("", f"{counter}_ns", name)] = histogram.sum_ns
        for index, num in enumerate(histogram.bucket_counts):
            counts[Key("", f"{counter}_bucket", f"{name} {index}")] = num
    return counts


def worker_counts(state: WorkerState) -> Counter[Key]:
    """Return all counters of a worker since its start; buckets of a histogram are labelled by their index."""
    counts: Counter[Key] = Counter()
    for counter, histograms in (("step", state.steps), ("iteration", state.iterations)):
        for histogram in histograms:
            if len(histogram.bucket_counts) != NUM_BUCKETS:
                continue  # of another version of the worker: its buckets mean something else
            if counter == "step":
                counts[Key(histogram.phase, "steps", histogram.graph_mode)] += histogram.num_steps
            counts[Key(histogram.phase, f"{counter}_ns", "")] += histogram.sum_ns
            for index, num_steps in enumerate(histogram.bucket_counts):
                counts[Key(histogram.phase, f"{counter}_bucket", str(index))] += num_steps
    for reason, num_samples in state.dropped.items():
        counts[Key("", "dropped", reason)] += num_samples
    return counts
