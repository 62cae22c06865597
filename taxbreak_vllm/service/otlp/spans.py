"""Recorded steps and requests as OpenTelemetry's spans, at the times when they were.

In: analyzed steps, waterfalls of API servers and whose they are. Out: spans. A request is one trace: a span for the
whole with a child for each stage that took time. All that is known of its id is the 32 random bits that vLLM put behind
it, which vLLM's own spans do not have: those of the same request have its numbers of tokens and about its start.
"""

from collections.abc import Iterable, Iterator, Mapping

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, TraceFlags

from taxbreak_vllm.model.frontend import FrontendState, Waterfall
from taxbreak_vllm.service.otlp.ids import span_id, step_ids, trace_id
from taxbreak_vllm.service.results.rows import StepRow

Attributes = Mapping[str, str | int | float | bool | None]


def step_span(row: StepRow, resource: Resource, scope: InstrumentationScope) -> ReadableSpan:
    """Make the span of one recorded step; what was not measured has no attribute."""
    return _span(
        f"step {row.phase}",
        _context(*step_ids(row.step_id)),
        resource,
        scope,
        start_ns=row.started_unix_ns,
        duration_ns=row.window_ns,
        attributes={
            "taxbreak.step_id": row.step_id,
            "taxbreak.phase": row.phase,
            "taxbreak.graph_mode": row.graph_mode,
            "taxbreak.engine": row.engine,
            "taxbreak.rank": row.rank,
            "taxbreak.capture_id": row.capture_id,
            "taxbreak.device_active_ns": row.active_ns,
            "taxbreak.exposed_ns": row.exposed_ns,
            "taxbreak.delta_ft_ns": row.delta_ft_ns,
            "taxbreak.delta_ct_ns": row.delta_ct_ns,
            "taxbreak.delta_kt_ns": row.delta_kt_ns,
            "taxbreak.hdbi": row.hdbi,
            "taxbreak.dilation": row.dilation,
        },
    )


def request_spans(
    waterfall: Waterfall, state: FrontendState, resource: Resource, scope: InstrumentationScope
) -> Iterator[ReadableSpan]:
    """Make the span of a request and one for each of its stages, in order and without gaps."""
    name = request_name(waterfall, state)
    whole = _context(trace_id("request", *name), span_id("request", *name))
    start_ns = waterfall.started_unix_ns
    yield _span(
        "request",
        whole,
        resource,
        scope,
        start_ns=start_ns,
        duration_ns=waterfall.total_ns,
        kind=SpanKind.SERVER,
        attributes={
            "taxbreak.request_number": f"{waterfall.number:08x}",
            "taxbreak.api": state.api,
            "taxbreak.engine": waterfall.engine,
            "taxbreak.is_streamed": waterfall.is_streamed,
            "taxbreak.ttft_ns": waterfall.ttft_ns,
            "gen_ai.usage.prompt_tokens": waterfall.num_prompt_tokens,  # as vLLM calls them
            "gen_ai.usage.completion_tokens": waterfall.num_output_tokens,
        },
        events=[Event("first byte", timestamp=start_ns + waterfall.ttft_ns)],
    )
    for stage, duration_ns in waterfall.stages_ns.items():
        if duration_ns:
            context = _context(whole.trace_id, span_id("stage", stage, *name))
            yield _span(
                stage, context, resource, scope, start_ns=start_ns, duration_ns=duration_ns, attributes={}, parent=whole
            )
        start_ns += duration_ns


def request_name(waterfall: Waterfall, state: FrontendState) -> tuple[object, ...]:
    """Return what tells a request from all others."""
    return (state.server_id, state.api, waterfall.number, waterfall.started_unix_ns)


def _context(trace: int, span: int) -> SpanContext:
    return SpanContext(trace, span, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED))


def _span(
    name: str,
    context: SpanContext,
    resource: Resource,
    scope: InstrumentationScope,
    *,
    start_ns: int,
    duration_ns: int,
    attributes: Attributes,
    kind: SpanKind = SpanKind.INTERNAL,
    parent: SpanContext | None = None,
    events: Iterable[Event] = (),
) -> ReadableSpan:
    return ReadableSpan(
        name=name,
        context=context,
        parent=parent,
        resource=resource,
        instrumentation_scope=scope,
        kind=kind,
        start_time=start_ns,
        end_time=start_ns + duration_ns,
        attributes={key: value for key, value in attributes.items() if value is not None},
        events=tuple(events),
    )
